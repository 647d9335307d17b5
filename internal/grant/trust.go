package grant

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// Limits on the trust file.
const (
	maxRootKeys   = 16
	maxIssuerKeys = 8
	maxApprovers  = 2000
	maxQuorums    = 500
	maxStanding   = 200
	maxRequesters = 10000
	maxManaged    = 10000 // requesters with a manager
	maxQuorumHost = 5000  // hosts that one quorum or standing rule names
)

// Key is an Ed25519 public key; in JSON it is standard base64.
type Key ed25519.PublicKey

// MarshalText encodes the key as standard base64.
func (k Key) MarshalText() ([]byte, error) {
	return []byte(base64.StdEncoding.EncodeToString(k)), nil
}

// UnmarshalText accepts exactly what MarshalText writes, and only keys of the right length.
func (k *Key) UnmarshalText(text []byte) error {
	raw, err := strictBase64(string(text))
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if len(raw) != ed25519.PublicKeySize {
		return fmt.Errorf("key has %d bytes, want %d", len(raw), ed25519.PublicKeySize)
	}
	*k = raw
	return nil
}

// Approver is a person whose SSH signatures count, in the groups that they count for.
type Approver struct {
	Name    string   `json:"name"`
	Groups  []string `json:"groups"`
	SSHKeys []string `json:"ssh_keys"`
	// Manages are the requesters for whom this person counts as group "manager".
	Manages []string `json:"manages,omitempty"`
	// VerifyRequired: only FIDO2 signatures count that say that the user was verified.
	VerifyRequired bool `json:"verify_required,omitempty"`
}

// Trust is the file that a host obeys: whose signatures mean what. It is read-only once opened.
type Trust struct {
	Version       uint64     `json:"version"`
	Organisation  string     `json:"organisation"`
	Epoch         uint64     `json:"epoch"`
	RootThreshold int        `json:"root_threshold"`
	RootKeys      []Key      `json:"root_keys"`
	IssuerKeys    []Key      `json:"issuer_keys"`
	Approvers     []Approver `json:"approvers"`
	Quorums       []Quorum   `json:"quorums"`
	// Standing rules open grants without approvals, for Requesters only.
	Standing   []Standing  `json:"standing,omitempty"`
	Requesters []Requester `json:"requesters,omitempty"`
}

// Issuers returns the keys whose grants and host states count.
func (t *Trust) Issuers() []ed25519.PublicKey { return publicKeys(t.IssuerKeys) }

func publicKeys(keys []Key) []ed25519.PublicKey {
	out := make([]ed25519.PublicKey, len(keys))
	for i, k := range keys {
		out[i] = ed25519.PublicKey(k)
	}
	return out
}

// Approver returns the approver of that name, or nil.
func (t *Trust) Approver(name string) *Approver {
	for i := range t.Approvers {
		if t.Approvers[i].Name == name {
			return &t.Approvers[i]
		}
	}
	return nil
}

// MarshalTrust checks a trust file and returns the canonical JSON that root keys sign.
func MarshalTrust(t *Trust) ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	return json.Marshal(t)
}

// SealTrust signs a trust file with root keys.
func SealTrust(t *Trust, roots ...ed25519.PrivateKey) ([]byte, error) {
	payload, err := MarshalTrust(t)
	if err != nil {
		return nil, err
	}
	return Seal(TypeTrust, payload, roots...)
}

// OpenTrust verifies a trust file. With a current one, the new one must be of a greater version, of
// the same organisation, of no lower epoch, and signed by the root thresholds of both. Without (at
// enrolment, where the join token's pin vouches for the connection) it must be signed by its own.
func OpenTrust(env []byte, current *Trust) (*Trust, error) {
	if current != nil { // before anything of the new one is parsed
		_, err := Open(env, TypeTrust, MaxTrust, current.RootThreshold, publicKeys(current.RootKeys))
		if err != nil {
			return nil, fmt.Errorf("trust file, root keys of version %d: %w", current.Version, err)
		}
	}
	next, err := openTrust(env)
	if err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	if current == nil {
		return next, nil
	}
	switch {
	case next.Version <= current.Version:
		return nil, fmt.Errorf("trust file version %d is not newer than %d",
			next.Version, current.Version)
	case next.Organisation != current.Organisation:
		return nil, fmt.Errorf("trust file is of organisation %q, not %q",
			next.Organisation, current.Organisation)
	case next.Epoch < current.Epoch:
		return nil, fmt.Errorf("trust file's epoch falls from %d to %d", current.Epoch, next.Epoch)
	}
	return next, nil
}

// openTrust needs the keys inside of the payload to verify the payload: a file that names its own
// keys proves only that its signers hold them, so whoever calls must have another reason to trust.
func openTrust(env []byte) (*Trust, error) {
	if len(env) > MaxTrust {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(env), MaxTrust)
	}
	sealed, payload, err := parseEnvelope(env)
	if err != nil {
		return nil, err
	}
	if sealed.PayloadType != TypeTrust {
		return nil, fmt.Errorf("%w: payload type %q, want %q",
			ErrMalformed, VisibleText(sealed.PayloadType), TypeTrust)
	}
	t, err := parseTrust(payload)
	if err != nil {
		return nil, err
	}
	_, err = Open(env, TypeTrust, MaxTrust, t.RootThreshold, publicKeys(t.RootKeys))
	return t, err
}

func parseTrust(payload []byte) (*Trust, error) {
	t := new(Trust)
	if err := json.Unmarshal(payload, t); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if again, err := json.Marshal(t); err != nil || !bytes.Equal(again, payload) {
		return nil, fmt.Errorf("%w: not in canonical form", ErrMalformed)
	}
	return t, nil
}

func (t *Trust) check() error {
	if t.Version == 0 || t.Epoch == 0 {
		return errors.New("version or epoch is missing")
	}
	if err := CheckOrganisation(t.Organisation); err != nil {
		return err
	}
	if err := distinctKeys("root", t.RootKeys, maxRootKeys); err != nil {
		return err
	}
	if err := distinctKeys("issuer", t.IssuerKeys, maxIssuerKeys); err != nil {
		return err
	}
	if t.RootThreshold < 1 || t.RootThreshold > len(t.RootKeys) {
		return fmt.Errorf("root threshold %d with %d root keys", t.RootThreshold, len(t.RootKeys))
	}
	if err := t.checkApprovers(); err != nil {
		return err
	}
	return errors.Join(t.checkQuorums(), t.checkStanding(), t.checkRequesters())
}

func distinctKeys(what string, keys []Key, limit int) error {
	if len(keys) == 0 || len(keys) > limit {
		return fmt.Errorf("%d %s keys: want 1 to %d", len(keys), what, limit)
	}
	seen := make(map[string]bool)
	for _, k := range keys {
		if len(k) != ed25519.PublicKeySize || seen[string(k)] {
			return fmt.Errorf("%s key is of the wrong length or stands twice", what)
		}
		seen[string(k)] = true
	}
	return nil
}

// checkApprovers demands that a key stands under one person only: else one person counts as two.
func (t *Trust) checkApprovers() error {
	if len(t.Approvers) > maxApprovers {
		return fmt.Errorf("%d approvers; at most %d", len(t.Approvers), maxApprovers)
	}
	owner := make(map[string]string)
	names := make(map[string]bool)
	manager := make(map[string]string)
	for _, a := range t.Approvers {
		for _, who := range a.Manages {
			if err := CheckUserName(who); err != nil {
				return fmt.Errorf("approver %s manages: %w", a.Name, err)
			}
			if other, has := manager[who]; has || len(manager) >= maxManaged || who == a.Name {
				return fmt.Errorf("approvers %s and %s both manage %s, or there are more than %d",
					other, a.Name, who, maxManaged)
			}
			manager[who] = a.Name
		}
		if err := CheckUserName(a.Name); err != nil {
			return fmt.Errorf("approver: %w", err)
		}
		if names[a.Name] {
			return fmt.Errorf("approver %s stands twice", a.Name)
		}
		names[a.Name] = true
		for _, g := range a.Groups {
			if err := CheckGroupName(g); err != nil {
				return fmt.Errorf("approver %s: %w", a.Name, err)
			}
		}
		for _, k := range a.SSHKeys {
			if err := checkCanonicalKey(k); err != nil {
				return fmt.Errorf("approver %s: %w", a.Name, err)
			}
			if other, taken := owner[k]; taken {
				return fmt.Errorf("approvers %s and %s share an SSH key", other, a.Name)
			}
			owner[k] = a.Name
		}
	}
	return nil
}

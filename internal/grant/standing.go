package grant

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Digest is a SHA-256; in JSON it is 64 lower-case hexadecimal digits.
type Digest [sha256.Size]byte

// MarshalText encodes the digest as hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText accepts exactly what MarshalText writes.
func (d *Digest) UnmarshalText(text []byte) error {
	b, err := parseHex32(string(text))
	*d = b
	return err
}

// Standing is a rule that opens grants without approvals: the role with exactly these rights, for
// requesters of these groups. Root keys sign it with the trust file, so that no control plane makes
// one up.
type Standing struct {
	Name          string   `json:"name"`
	Role          string   `json:"role"`
	Rights        Digest   `json:"rights"`
	MaxDurationMS int64    `json:"max_duration_ms"`
	Groups        []string `json:"groups"`
	// Hosts are those that it holds for; none means every host.
	Hosts []HostID `json:"hosts,omitempty"`
	// Emergency rules open emergency requests and nothing else.
	Emergency bool `json:"emergency,omitempty"`
}

// Requester is a person for whom standing rules may open a grant, with the only keys that they may
// log in with then.
type Requester struct {
	Name    string   `json:"name"`
	UID     uint32   `json:"uid"`
	Groups  []string `json:"groups"`
	SSHKeys []string `json:"ssh_keys"`
}

// RightsDigest names what terms give: login, unix groups and sudo rules.
func RightsDigest(t *curfewv1.Terms) (Digest, error) {
	rights, err := canonical.Marshal(&curfewv1.Terms{
		AllowLogin: t.GetAllowLogin(), Groups: t.GetGroups(), SudoRules: t.GetSudoRules(),
		RootEquivalent: t.GetRootEquivalent(),
	})
	if err != nil {
		return Digest{}, fmt.Errorf("encoding rights: %w", err)
	}
	return sha256.Sum256(append([]byte("curfew rights v1\x00"), rights...)), nil
}

// StandingRule returns the standing rule of that name.
func (t *Trust) StandingRule(name string) (Standing, bool) {
	for _, s := range t.Standing {
		if s.Name == name {
			return s, true
		}
	}
	return Standing{}, false
}

func (t *Trust) requester(name string) (Requester, bool) {
	i, ok := slices.BinarySearchFunc(t.Requesters, name, func(r Requester, name string) int {
		return strings.Compare(r.Name, name)
	})
	if !ok {
		return Requester{}, false
	}
	return t.Requesters[i], true
}

// CheckStanding demands that a standing rule of the trust file opens these terms on these hosts, and
// that nobody pretends to have approved them.
func CheckStanding(
	t *Trust, terms *curfewv1.Terms, hosts []HostID, approvals []*curfewv1.Approval,
) error {
	name := terms.GetStandingRule()
	rule, ok := t.StandingRule(name)
	if !ok {
		return fmt.Errorf("trust file version %d has no standing rule %s", t.Version, VisibleText(name))
	}
	rights, err := RightsDigest(terms)
	if err != nil {
		return err
	}
	switch {
	case len(approvals) > 0:
		return errors.New("they are opened by a standing rule and carry approvals")
	case rule.Role != terms.GetRole() || rule.Rights != rights:
		return fmt.Errorf("standing rule %s is for other rights, of role %s", name, rule.Role)
	case rule.Emergency != terms.GetEmergency():
		return fmt.Errorf("standing rule %s and the terms differ about an emergency", name)
	case terms.GetDurationMs() > rule.MaxDurationMS:
		return fmt.Errorf("standing rule %s gives at most %d s", name, rule.MaxDurationMS/1000)
	}
	for _, host := range hosts {
		if len(rule.Hosts) > 0 && !slices.Contains(rule.Hosts, host) {
			return fmt.Errorf("standing rule %s is not for host %s", name, host)
		}
	}
	return t.checkRequester(rule, terms)
}

// checkRequester ties the terms to the person that the root keys named: else whoever holds an
// issuer's key would put their own key under anybody's name.
func (t *Trust) checkRequester(rule Standing, terms *curfewv1.Terms) error {
	who := terms.GetRequester()
	person, ok := t.requester(who)
	if !ok || !slices.ContainsFunc(rule.Groups, func(g string) bool {
		return slices.Contains(person.Groups, g)
	}) {
		return fmt.Errorf("standing rule %s is not for %s", rule.Name, VisibleText(who))
	}
	if person.UID != terms.GetUid() || terms.GetLogin() != who {
		return fmt.Errorf("login %s with uid %d is not %s's", VisibleText(terms.GetLogin()),
			terms.GetUid(), who)
	}
	for _, k := range terms.GetAuthorizedKeys() {
		if !slices.Contains(person.SSHKeys, k) {
			return fmt.Errorf("they log %s in with a key that is not theirs", who)
		}
	}
	return nil
}

func (t *Trust) checkStanding() error {
	if len(t.Standing) > maxStanding {
		return fmt.Errorf("%d standing rules; at most %d", len(t.Standing), maxStanding)
	}
	for i, s := range t.Standing {
		err := errors.Join(CheckRoleName(s.Name), CheckRoleName(s.Role))
		for _, g := range s.Groups {
			err = errors.Join(err, CheckGroupName(g))
		}
		switch {
		case err != nil:
		case len(s.Groups) == 0 || len(s.Groups) > MaxGroups:
			err = fmt.Errorf("%d groups: want 1 to %d", len(s.Groups), MaxGroups)
		case len(s.Hosts) > maxQuorumHost:
			err = fmt.Errorf("%d hosts; at most %d", len(s.Hosts), maxQuorumHost)
		case s.MaxDurationMS < MinDuration.Milliseconds() || s.MaxDurationMS > MaxDuration.Milliseconds():
			err = fmt.Errorf("a longest duration of %d ms: want %s to %s", s.MaxDurationMS, MinDuration,
				MaxDuration)
		case slices.ContainsFunc(t.Standing[:i], func(o Standing) bool { return o.Name == s.Name }):
			err = errors.New("it stands twice")
		}
		if err != nil {
			return fmt.Errorf("standing rule %q: %w", VisibleText(s.Name), err)
		}
	}
	return nil
}

func (t *Trust) checkRequesters() error {
	if len(t.Requesters) > maxRequesters {
		return fmt.Errorf("%d requesters; at most %d", len(t.Requesters), maxRequesters)
	}
	uids := make(map[uint32]string, len(t.Requesters))
	keys := make(map[string]string)
	for i, r := range t.Requesters {
		if err := CheckUserName(r.Name); err != nil {
			return fmt.Errorf("requester: %w", err)
		}
		if i > 0 && t.Requesters[i-1].Name >= r.Name {
			return fmt.Errorf("requester %s: not sorted, or one stands twice", r.Name)
		}
		if other, taken := uids[r.UID]; taken || r.UID < firstLoginUID {
			return fmt.Errorf("requester %s: uid %d is %s's or nobody's", r.Name, r.UID, other)
		}
		uids[r.UID] = r.Name
		for _, g := range r.Groups {
			if err := CheckGroupName(g); err != nil {
				return fmt.Errorf("requester %s: %w", r.Name, err)
			}
		}
		for _, k := range r.SSHKeys {
			if err := checkCanonicalKey(k); err != nil {
				return fmt.Errorf("requester %s: %w", r.Name, err)
			}
			if other, taken := keys[k]; taken {
				return fmt.Errorf("requesters %s and %s share an SSH key", other, r.Name)
			}
			keys[k] = r.Name
		}
	}
	return nil
}

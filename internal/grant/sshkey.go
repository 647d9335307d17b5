package grant

import (
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	maxSSHKeyLine = 8 << 10
	minRSABits    = 2048
)

// ParseSSHKey reads one public key in authorized_keys form. Options are refused: they would become
// syntax in a file that sshd parses as root.
func ParseSSHKey(line string) (ssh.PublicKey, error) {
	line = strings.TrimSpace(line)
	if len(line) > maxSSHKeyLine {
		return nil, fmt.Errorf("SSH key of %d bytes; at most %d", len(line), maxSSHKeyLine)
	}
	if strings.ContainsAny(line, "\n\r\x00") {
		return nil, errors.New("SSH key spans several lines; give one key")
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, fmt.Errorf("not an SSH public key such as \"ssh-ed25519 AAAA… name\": %w", err)
	}
	if len(options) > 0 || len(rest) > 0 {
		return nil, errors.New("SSH key carries options; give only type and key")
	}
	return key, checkKeyStrength(key)
}

func checkKeyStrength(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		crypto, ok := key.(ssh.CryptoPublicKey)
		if !ok {
			return errors.New("RSA key cannot be inspected")
		}
		if pub, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); !ok || pub.N.BitLen() < minRSABits {
			return fmt.Errorf("RSA key is shorter than %d bits; use ed25519", minRSABits)
		}
		return nil
	}
	return fmt.Errorf("SSH key type %s is not accepted; use ed25519, ecdsa or rsa", key.Type())
}

// CanonicalSSHKey returns "type base64" of a public key line, without options or comment.
func CanonicalSSHKey(line string) (string, error) {
	key, err := ParseSSHKey(line)
	if err != nil {
		return "", err
	}
	return SSHKeyText(key), nil
}

// SSHKeyText is the canonical text of a key: "type base64".
func SSHKeyText(key ssh.PublicKey) string {
	return key.Type() + " " + base64.StdEncoding.EncodeToString(key.Marshal())
}

func checkCanonicalKey(line string) error {
	canonical, err := CanonicalSSHKey(line)
	if err != nil {
		return err
	}
	if canonical != line {
		return errors.New("SSH key is not in the form \"type base64\"")
	}
	return nil
}

// IsSecurityKey tells whether an SSH key is kept on a FIDO2 device (PROTOCOL.u2f).
func IsSecurityKey(line string) bool {
	kind, _, _ := strings.Cut(line, " ")
	return kind == ssh.KeyAlgoSKED25519 || kind == ssh.KeyAlgoSKECDSA256
}

package cli

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/internal/grant"
)

const (
	defaultPort   = "7443"
	maxConfigSize = 64 << 10
	configName    = "config.yaml"
	keyName       = "session.key"
	verifiedName  = "verified.json"
)

// config is config.yaml: which control plane, pinned by its CA, and who signs in there. It is
// written by login and holds no secret.
type config struct {
	// Server is host:port.
	Server string `yaml:"server"`
	// User is the name that signed in last.
	User string `yaml:"user"`
	// CA is the control plane's CA certificate in PEM; only chains to it are believed.
	CA string `yaml:"ca"`
	// NextCA is the CA that the control plane has announced to be known by next; empty: none.
	NextCA string `yaml:"next_ca,omitempty"`
	// SSHKey is the public key that signed in last; approvals are signed by it too.
	SSHKey string `yaml:"ssh_key,omitempty"`
	// KeyFile is the private key's file where it did not come from ssh-agent.
	KeyFile string `yaml:"key_file,omitempty"`
	// Method is how the last sign-in went: sso, device, or empty for the SSH key.
	Method string `yaml:"method,omitempty"`

	ca, nextCA *x509.Certificate
}

// pins are what a connection is held against.
func (c *config) pins() [][32]byte {
	pins := [][32]byte{sha256.Sum256(c.ca.Raw)}
	if c.nextCA != nil {
		pins = append(pins, sha256.Sum256(c.nextCA.Raw))
	}
	return pins
}

// announced takes in by which CAs the control plane says that it is, and will be, known.
func (c *config) announced(authorities [][]byte) {
	c.NextCA, c.nextCA = "", nil
	for _, der := range authorities[:min(len(authorities), 4)] {
		cert, err := x509.ParseCertificate(der)
		if err != nil || !cert.IsCA || cert.Equal(c.ca) {
			continue
		}
		c.NextCA, c.nextCA = pemCertificate(cert), cert
	}
}

// configDir is where this person's configuration lives.
func configDir(getenv func(string) string) (string, error) {
	if dir := getenv("CURFEW_CONFIG_DIR"); dir != "" {
		return dir, nil
	}
	if dir := getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "curfew"), nil
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".config", "curfew"), nil
	}
	return "", fail(exitFailed, "there is no home directory to keep the configuration in").
		hint("set CURFEW_CONFIG_DIR")
}

// loadConfig reads config.yaml strictly. A missing file is fs.ErrNotExist.
func loadConfig(dir string) (*config, error) {
	path := filepath.Join(dir, configName)
	data, err := readCapped(path, maxConfigSize)
	if err != nil {
		return nil, err
	}
	cfg, err := parseConfig(data)
	if err != nil {
		return nil, fail(exitFailed, "%s: %w", path, err).
			hint("mend that line, or delete the file and run curfew login --server … --ca-pin …")
	}
	return cfg, nil
}

func parseConfig(data []byte) (*config, error) {
	var cfg config
	if err := loadYAML(data, &cfg); err != nil {
		return nil, err
	}
	lines := fieldLines(data)
	bad := func(name string, err error) error {
		if line := lines[name]; line > 0 {
			return fmt.Errorf("line %d: field %s: %w", line, name, err)
		}
		return fmt.Errorf("field %s: %w", name, err)
	}
	server, err := serverAddress(cfg.Server)
	if err != nil {
		return nil, bad("server", err)
	}
	cfg.Server = server
	if err := grant.CheckUserName(cfg.User); err != nil {
		return nil, bad("user", err)
	}
	if !slices.Contains([]string{"", methodSSO, methodDevice}, cfg.Method) {
		return nil, bad("method", fmt.Errorf("%q is neither sso nor device", cfg.Method))
	}
	if cfg.ca, err = parseCA(cfg.CA); err != nil {
		return nil, bad("ca", err)
	}
	if cfg.NextCA != "" {
		if cfg.nextCA, err = parseCA(cfg.NextCA); err != nil {
			return nil, bad("next_ca", err)
		}
	}
	if cfg.SSHKey != "" {
		if _, err := grant.CanonicalSSHKey(cfg.SSHKey); err != nil {
			return nil, bad("ssh_key", err)
		}
	}
	return &cfg, nil
}

// loadYAML decodes exactly one document and refuses unknown and doubled fields; its errors name
// line and field.
func loadYAML(data []byte, into any) error {
	err := yaml.Load(data, into, yaml.WithKnownFields(), yaml.WithUniqueKeys())
	if err == nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(strings.TrimPrefix(err.Error(), "yaml: ")), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return errors.New(strings.Join(lines, " "))
}

// fieldLines finds the line of each top-level field, for errors.
func fieldLines(data []byte) map[string]int {
	lines := map[string]int{}
	for i, line := range strings.Split(string(data), "\n") {
		if name, _, ok := strings.Cut(line, ":"); ok && lines[name] == 0 {
			lines[name] = i + 1
		}
	}
	return lines
}

func pemCertificate(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

func parseCA(text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA {
		return nil, errors.New("the certificate is not a CA's")
	}
	return cert, nil
}

// serverAddress checks host[:port] and adds the default port.
func serverAddress(s string) (string, error) {
	if s == "" {
		return "", errors.New("the server address is empty: write host or host:port")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), defaultPort
	}
	if host == "" || strings.ContainsAny(host, "/@[] ") ||
		strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return "", fmt.Errorf("the server address %q is not host or host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("the server address %q has a bad port", s)
	}
	return net.JoinHostPort(host, port), nil
}

// pin is the CA certificate's fingerprint as people hand it on.
func pinOf(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func parsePin(s string) ([32]byte, error) {
	var pin [32]byte
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(pin) {
		return pin, fmt.Errorf("the CA pin %q is not 43 characters of base64url", s)
	}
	copy(pin[:], b)
	return pin, nil
}

// loginCommand is what to type to sign in again with this configuration.
func (c *config) loginCommand() string {
	if c == nil || c.ca == nil {
		return c.loginCommandWithPin()
	}
	return "curfew login"
}

func (c *config) loginCommandWithPin() string {
	server, user := "HOST:"+defaultPort, "NAME"
	if c != nil && c.Server != "" {
		server = c.Server
	}
	if c != nil && c.User != "" {
		user = c.User
	}
	return fmt.Sprintf("curfew login --server %s --user %s --ca-pin PIN", server, user)
}

func (c *config) save(dir string) error {
	data, err := yaml.Dump(c)
	if err != nil {
		return fmt.Errorf("encoding the configuration: %w", err)
	}
	head := "# Written by curfew login. No secret stands here; session.key is the secret.\n"
	return writeFile(dir, configName, append([]byte(head), data...))
}

// readCapped reads a small file whole and refuses a larger one.
func readCapped(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readCappedFrom(f, path, limit)
}

func readCappedFrom(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, nil
}

// writeFile replaces a file of the configuration directory by rename, 0600 in a 0700 directory.
func writeFile(dir, name string, data []byte) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the configuration directory: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+name+".*") // CreateTemp makes it 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing %s: %w", filepath.Join(dir, name),
				errors.Join(err, f.Close(), removeIfThere(f.Name())))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return f.Close()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

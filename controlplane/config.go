package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/internal/grant"
)

// Where a control plane keeps its things unless it is told otherwise.
const (
	ConfigPath     = "/etc/curfew/controlplane.yaml"
	DefaultDataDir = "/var/lib/curfew-controlplane"
	DefaultListen  = ":7443"
)

const (
	maxConfig   = 1 << 20
	maxWebhooks = 16
)

// Webhook is one receiver of notices.
type Webhook struct {
	URL        string
	SecretFile string
}

// Config is /etc/curfew/controlplane.yaml. A field that is left out keeps its default; an unknown
// one is refused.
type Config struct {
	// Listen is the address of the one port for people and hosts.
	Listen string
	// URL is the HOST:PORT that they dial; empty takes what `init` was told.
	URL string
	// Organisation must be what `init` was told; empty takes it.
	Organisation string
	DataDir      string
	// SessionTTL is how long a sign-in lasts.
	SessionTTL time.Duration
	// Lease is how long a host that is cut off opens new access.
	Lease time.Duration
	// PendingTTL is how long a request waits for decisions.
	PendingTTL time.Duration
	Webhooks   []Webhook
	// Mail tells approvers by mail; nil for none. Its password and CAs are read when it is needed.
	Mail                         *notify.Mail
	MailPasswordFile, MailCAFile string
	// OIDC is the provider that people sign in at, SCIM where it provisions; nil for none.
	OIDC *OIDC
	SCIM *SCIM
	// LoginNames turns the provider's names into login names, for both.
	LoginNames identity.LoginNames
	// GroupPrefix is what the provider's groups must begin with to count.
	GroupPrefix string
	// IssuerCAFile holds CA certificates that issuers' are checked against, beside the system's.
	IssuerCAFile string
	// WorkloadTTL is how long a pipeline's sign-in lasts.
	WorkloadTTL time.Duration
	// TicketChecks are asked about tickets where the policy says so.
	TicketChecks []TicketCheck
	// MetricsListen is where metrics and health are served: unix:/PATH or a loopback HOST:PORT; empty for
	// nowhere. Nobody is asked there who he is.
	MetricsListen string
	// CloudJoin says which instances of clouds may join without a token; empty: none.
	CloudJoin CloudJoin
}

// TicketCheck is a URL that knows about tickets.
type TicketCheck struct {
	Name       string
	URL        string
	SecretFile string
}

// DefaultConfig is what holds without a file.
func DefaultConfig() Config {
	return Config{
		Listen: DefaultListen, DataDir: DefaultDataDir, SessionTTL: 8 * time.Hour,
		Lease: issue.DefaultLease, PendingTTL: 24 * time.Hour, WorkloadTTL: defaultWorkloadTime,
	}
}

// LoadConfig reads the file at path; without one the defaults hold. An error names line and field.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return DefaultConfig(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("it is longer than %d bytes", maxConfig)
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading %s: %w", path, err)
	}
	c, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ParseConfig reads the file's content over the defaults.
func ParseConfig(data []byte) (Config, error) {
	c := DefaultConfig()
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithUniqueKeys())
	if err != nil {
		return c, err
	}
	doc := new(yaml.Node)
	if err := loader.Load(doc); errors.Is(err, io.EOF) {
		return c, nil // nothing but comments
	} else if err != nil {
		return c, fmt.Errorf("it is not YAML (L is the line, C the column): %w", err)
	}
	if second := new(yaml.Node); !errors.Is(loader.Load(second), io.EOF) {
		return c, fmt.Errorf("line %d: a second document begins; there is only one", second.Line)
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return c, nil
	}
	return c, eachField(doc.Content[0], "", map[string]func(*yaml.Node) error{
		"listen":       text(&c.Listen, checkListen),
		"url":          text(&c.URL, CheckURL),
		"organisation": text(&c.Organisation, grant.CheckOrganisation),
		"data_dir":     text(&c.DataDir, checkDir),
		"session_ttl":  span(&c.SessionTTL, identity.MinSessionTTL, identity.MaxSessionTTL),
		"lease":        span(&c.Lease, 10*time.Second, grant.MaxLease),
		"pending_ttl":  span(&c.PendingTTL, access.MinPendingTTL, access.MaxPendingTTL),
		"webhooks":     c.webhooks,
		"mail":         c.mail,
		"oidc":         c.oidc,
		"scim":         c.scim,
		"login_names":  c.loginNames,
		"group_prefix": text(&c.GroupPrefix, checkPrefix),

		"issuer_ca_file":       text(&c.IssuerCAFile, checkDir),
		"workload_session_ttl": span(&c.WorkloadTTL, identity.MinSessionTTL, identity.MaxSessionTTL),
		"ticket_checks":        c.ticketChecks,
		"cloud_join":           c.cloudJoin,
		"metrics_listen":       text(&c.MetricsListen, checkMetricsListen),
	})
}

// eachField walks a mapping and refuses fields that are unknown or stand twice, by line and name.
func eachField(n *yaml.Node, prefix string, fields map[string]func(*yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want lines of the form field: value", n.Line)
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := prefix + grant.VisibleText(key.Value)
		read, known := fields[key.Value]
		if !known {
			return fmt.Errorf("line %d: %s: there is no such field", key.Line, name)
		}
		if seen[key.Value] {
			return fmt.Errorf("line %d: %s: it stands twice", key.Line, name)
		}
		seen[key.Value] = true
		if err := read(value); err != nil {
			var placed placedError
			if errors.As(err, &placed) {
				return err
			}
			return fmt.Errorf("line %d: %s: %w", value.Line, name, err)
		}
	}
	return nil
}

// placedError says its line itself.
type placedError struct{ error }

// Unwrap is the error without its place.
func (e placedError) Unwrap() error { return e.error }

func scalar(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode {
		return "", errors.New("want one value")
	}
	return n.Value, nil
}

func text(to *string, check func(string) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		v, err := scalar(n)
		if err == nil {
			err = check(v)
		}
		if err == nil {
			*to = v
		}
		return err
	}
}

func span(to *time.Duration, low, high time.Duration) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		v, err := scalar(n)
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(v)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 8h or 90s", grant.VisibleText(v))
		}
		if d < low || d > high {
			return fmt.Errorf("%s is out of range: %s to %s", d, low, high)
		}
		*to = d
		return nil
	}
}

func (c *Config) webhooks(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode || len(n.Content) > maxWebhooks {
		return fmt.Errorf("want a list of at most %d", maxWebhooks)
	}
	for _, item := range n.Content {
		var w Webhook
		err := eachField(item, "webhooks.", map[string]func(*yaml.Node) error{
			"url":         text(&w.URL, notify.CheckURL),
			"secret_file": text(&w.SecretFile, checkSecret),
		})
		if err != nil {
			return placedError{err}
		}
		if w.URL == "" || w.SecretFile == "" {
			return placedError{fmt.Errorf("line %d: webhooks: each has url and secret_file", item.Line)}
		}
		for _, other := range c.Webhooks {
			if other.URL == w.URL {
				return placedError{fmt.Errorf("line %d: webhooks.url: it stands twice", item.Line)}
			}
		}
		c.Webhooks = append(c.Webhooks, w)
	}
	return nil
}

func (c *Config) ticketChecks(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode || len(n.Content) > maxWebhooks {
		return fmt.Errorf("want a list of at most %d", maxWebhooks)
	}
	for _, item := range n.Content {
		var t TicketCheck
		err := eachField(item, "ticket_checks.", map[string]func(*yaml.Node) error{
			"name":        text(&t.Name, grant.CheckRoleName),
			"url":         text(&t.URL, notify.CheckURL),
			"secret_file": text(&t.SecretFile, checkSecret),
		})
		if err != nil {
			return placedError{err}
		}
		if t.Name == "" || t.URL == "" || t.SecretFile == "" {
			return placedError{fmt.Errorf("line %d: ticket_checks: each has name, url and secret_file",
				item.Line)}
		}
		for _, other := range c.TicketChecks {
			if other.Name == t.Name {
				return placedError{fmt.Errorf("line %d: ticket_checks.name: it stands twice", item.Line)}
			}
		}
		c.TicketChecks = append(c.TicketChecks, t)
	}
	return nil
}

func checkDir(v string) error {
	if !filepath.IsAbs(v) || filepath.Clean(v) != v {
		return fmt.Errorf("%q is not a clean absolute path", grant.VisibleText(v))
	}
	return nil
}

var credentialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkSecret admits the path of a secret, or the name of one that systemd hands over.
func checkSecret(v string) error {
	name, ok := strings.CutPrefix(v, notify.Credential)
	if !ok {
		return checkDir(v)
	}
	if !credentialName.MatchString(name) {
		return fmt.Errorf("%q is no name of a credential: letters, digits, dot, - and _",
			grant.VisibleText(name))
	}
	return nil
}

func checkListen(v string) error {
	_, port, err := net.SplitHostPort(v)
	if err == nil {
		err = checkPort(port, 0)
	}
	if err != nil {
		return fmt.Errorf("%q is not [HOST]:PORT", grant.VisibleText(v))
	}
	return nil
}

// CheckURL accepts HOST:PORT: a lower-case DNS name or an IP address, and a port.
func CheckURL(v string) error {
	host, port, err := net.SplitHostPort(v)
	if err == nil {
		err = checkPort(port, 1)
	}
	if err == nil && net.ParseIP(host) == nil {
		err = grant.CheckHostName(host)
	}
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT, such as curfew.example.org:7443", grant.VisibleText(v))
	}
	return nil
}

func checkPort(v string, low int) error {
	port, err := strconv.Atoi(v)
	if err != nil || port < low || port > 65535 {
		return fmt.Errorf("port %q", v)
	}
	return nil
}

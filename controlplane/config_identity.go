package controlplane

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/oidc"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	maxWords            = 32
	minDeprovision      = 10 * time.Second
	maxDeprovision      = 24 * time.Hour
	defaultDeprovision  = time.Minute
	defaultWorkloadTime = time.Hour
)

// OIDC is the OpenID provider that people sign in at.
type OIDC struct {
	Issuer   string
	ClientID string
	// SecretFile is empty for a public client.
	SecretFile   string
	Scopes       []string
	Audiences    []string
	Claims       oidc.ClaimNames
	CreateUsers  bool
	DeviceFlow   bool
	RedirectPort int
	// DeprovisionAfter is 0 when SCIM sees to it.
	DeprovisionAfter time.Duration
}

// SCIM is where the provider's SCIM client finds us.
type SCIM struct {
	Listen            string
	CertFile, KeyFile string // both empty on loopback, behind a proxy
}

func defaultOIDC() OIDC {
	return OIDC{
		Scopes:           []string{"openid", "profile", "email", "offline_access"},
		Claims:           oidc.ClaimNames{User: "preferred_username", Email: "email", Groups: "groups"},
		DeprovisionAfter: defaultDeprovision,
	}
}

func (c *Config) oidc(n *yaml.Node) error {
	o := defaultOIDC()
	err := eachField(n, "oidc.", map[string]func(*yaml.Node) error{
		"issuer":             text(&o.Issuer, oidc.CheckIssuer),
		"client_id":          text(&o.ClientID, checkWord),
		"client_secret_file": text(&o.SecretFile, checkSecret),
		"scopes":             words(&o.Scopes, checkWord),
		"audiences":          words(&o.Audiences, checkWord),
		"create_users":       flag(&o.CreateUsers),
		"device_flow":        flag(&o.DeviceFlow),
		"redirect_port":      port(&o.RedirectPort),
		"deprovision_after":  spanOrNone(&o.DeprovisionAfter, minDeprovision, maxDeprovision),
		"claims": func(n *yaml.Node) error {
			return inside(eachField(n, "oidc.claims.", map[string]func(*yaml.Node) error{
				"user":    text(&o.Claims.User, checkWord),
				"email":   text(&o.Claims.Email, checkWordOrNone),
				"groups":  text(&o.Claims.Groups, checkWordOrNone),
				"manager": text(&o.Claims.Manager, checkWordOrNone),
			}))
		},
	})
	if err != nil {
		return inside(err)
	}
	if o.Issuer == "" || o.ClientID == "" {
		return placedError{fmt.Errorf("line %d: oidc: issuer and client_id are needed", n.Line)}
	}
	if !slices.Contains(o.Scopes, "openid") {
		return placedError{fmt.Errorf("line %d: oidc.scopes: openid is not among them", n.Line)}
	}
	c.OIDC = &o
	return nil
}

func (c *Config) scim(n *yaml.Node) error {
	s := SCIM{}
	err := eachField(n, "scim.", map[string]func(*yaml.Node) error{
		"listen":    text(&s.Listen, checkListen),
		"cert_file": text(&s.CertFile, checkDir),
		"key_file":  text(&s.KeyFile, checkDir),
	})
	if err != nil {
		return inside(err)
	}
	host, _, _ := net.SplitHostPort(s.Listen)
	ip := net.ParseIP(host)
	switch {
	case s.Listen == "":
		return placedError{fmt.Errorf("line %d: scim: listen is needed", n.Line)}
	case (s.CertFile == "") != (s.KeyFile == ""):
		return placedError{fmt.Errorf("line %d: scim: cert_file and key_file go together", n.Line)}
	case s.CertFile == "" && (ip == nil || !ip.IsLoopback()):
		return placedError{fmt.Errorf("line %d: scim.listen: without cert_file and key_file only a "+
			"loopback address, for a proxy on this machine", n.Line)}
	}
	c.SCIM = &s
	return nil
}

func (c *Config) loginNames(n *yaml.Node) error {
	return inside(eachField(n, "login_names.", map[string]func(*yaml.Node) error{
		"domains":    words(&c.LoginNames.Domains, checkDomain),
		"lower_case": flag(&c.LoginNames.LowerCase),
	}))
}

func (c *Config) mail(n *yaml.Node) error {
	m := notify.Mail{TLS: notify.StartTLS}
	var mode string
	err := eachField(n, "mail.", map[string]func(*yaml.Node) error{
		"server":        text(&m.Server, CheckURL),
		"tls":           text(&mode, func(v string) error { return m.TLS.Set(v) }),
		"from":          text(&m.From, identity.CheckEmail),
		"username":      text(&m.Username, checkWord),
		"password_file": text(&c.MailPasswordFile, checkSecret),
		"ca_file":       text(&c.MailCAFile, checkDir),
	})
	if err != nil {
		return inside(err)
	}
	if m.Server == "" || m.From == "" {
		return placedError{fmt.Errorf("line %d: mail: server and from are needed", n.Line)}
	}
	if (m.Username == "") != (c.MailPasswordFile == "") {
		return placedError{fmt.Errorf("line %d: mail: username and password_file go together", n.Line)}
	}
	c.Mail = &m
	return nil
}

// inside marks errors of a nested field as placed already, so that no outer field adds its own line.
func inside(err error) error {
	var placed placedError
	if err == nil || errors.As(err, &placed) {
		return err
	}
	return placedError{err}
}

func words(to *[]string, check func(string) error) func(*yaml.Node) error {
	return wordsUpTo(maxWords, to, check)
}

func wordsUpTo(most int, to *[]string, check func(string) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 || len(n.Content) > most {
			return fmt.Errorf("want a list of 1 to %d", most)
		}
		*to = nil
		for _, item := range n.Content {
			var v string
			if err := text(&v, check)(item); err != nil {
				return placedError{fmt.Errorf("line %d: %w", item.Line, err)}
			}
			if slices.Contains(*to, v) {
				return placedError{fmt.Errorf("line %d: %q stands twice", item.Line, v)}
			}
			*to = append(*to, v)
		}
		return nil
	}
}

func flag(to *bool) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		v, err := scalar(n)
		if err != nil {
			return err
		}
		if v != "true" && v != "false" {
			return fmt.Errorf("%q is neither true nor false", grant.VisibleText(v))
		}
		*to = v == "true"
		return nil
	}
}

func port(to *int) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		v, err := scalar(n)
		if err == nil {
			err = checkPort(v, 1024)
		}
		if err == nil {
			*to, err = strconv.Atoi(v)
		}
		return err
	}
}

// spanOrNone is a span that may also be 0s.
func spanOrNone(to *time.Duration, low, high time.Duration) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if v, err := scalar(n); err == nil && v == "0s" {
			*to = 0
			return nil
		}
		return span(to, low, high)(n)
	}
}

// checkWord accepts what goes into a URL or is compared as a whole.
func checkWord(v string) error {
	if v == "" || len(v) > 256 || grant.VisibleText(v) != v || strings.ContainsAny(v, " ") {
		return fmt.Errorf("%q is empty, too long or has spaces in it", grant.VisibleText(v))
	}
	return nil
}

func checkWordOrNone(v string) error {
	if v == "" {
		return nil
	}
	return checkWord(v)
}

func checkDomain(v string) error {
	if err := grant.CheckHostName(v); err != nil {
		return fmt.Errorf("%q is not a domain", grant.VisibleText(v))
	}
	return nil
}

func checkPrefix(v string) error {
	if v == "" {
		return nil
	}
	return checkWord(v)
}

package controlplane

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/controlplane/enrol/cloud"
	"github.com/curfew-access/curfew/controlplane/oidc"
	"github.com/curfew-access/curfew/internal/grant"
)

const maxAccounts = 512

// CloudJoin says which instances of which clouds may join without a token. A cloud that is nil: none.
type CloudJoin struct {
	AWS   *CloudAWS
	GCP   *CloudGCP
	Azure *CloudAzure
}

// CloudAWS are accounts of AWS, and the file of the certificates that AWS signs with.
type CloudAWS struct {
	Certificates      string
	Accounts, Regions []string
	MaxAge            time.Duration
}

// CloudGCP are projects of Google Cloud.
type CloudGCP struct {
	Projects     []string
	Issuer, Keys string
	MaxAge       time.Duration
}

// CloudAzure are subscriptions of Azure, and files of certificates that its leaf leads to a root by.
type CloudAzure struct {
	Subscriptions        []string
	Intermediates, Roots string
	MaxAge               time.Duration
}

func (c *Config) cloudJoin(n *yaml.Node) error {
	j := CloudJoin{}
	err := eachField(n, "cloud_join.", map[string]func(*yaml.Node) error{
		"aws": j.aws, "gcp": j.gcp, "azure": j.azure,
	})
	c.CloudJoin = j
	return inside(err)
}

func (j *CloudJoin) aws(n *yaml.Node) error {
	a := CloudAWS{MaxAge: cloud.DefaultMaxAge}
	err := eachField(n, "cloud_join.aws.", map[string]func(*yaml.Node) error{
		"certificates": text(&a.Certificates, checkDir),
		"accounts":     wordsUpTo(maxAccounts, &a.Accounts, checkForm(awsAccount, "the 12 digits of an account")),
		"regions":      words(&a.Regions, checkForm(awsRegion, "a region such as eu-central-1")),
		"max_age":      span(&a.MaxAge, cloud.MinMaxAge, cloud.MaxMaxAge),
	})
	if err != nil {
		return inside(err)
	}
	if a.Certificates == "" || len(a.Accounts) == 0 {
		return placedError{fmt.Errorf("line %d: cloud_join.aws: certificates and accounts are needed", n.Line)}
	}
	j.AWS = &a
	return nil
}

func (j *CloudJoin) gcp(n *yaml.Node) error {
	g := CloudGCP{MaxAge: cloud.DefaultMaxAge}
	err := eachField(n, "cloud_join.gcp.", map[string]func(*yaml.Node) error{
		"projects": wordsUpTo(maxAccounts, &g.Projects, checkForm(gcpProject, "a project's id")),
		"issuer":   text(&g.Issuer, oidc.CheckIssuer),
		"keys":     text(&g.Keys, oidc.CheckIssuer),
		"max_age":  span(&g.MaxAge, cloud.MinMaxAge, cloud.MaxMaxAge),
	})
	if err != nil {
		return inside(err)
	}
	if len(g.Projects) == 0 {
		return placedError{fmt.Errorf("line %d: cloud_join.gcp: projects are needed", n.Line)}
	}
	if (g.Issuer == "") != (g.Keys == "") {
		return placedError{fmt.Errorf("line %d: cloud_join.gcp: issuer and keys go together", n.Line)}
	}
	j.GCP = &g
	return nil
}

func (j *CloudJoin) azure(n *yaml.Node) error {
	a := CloudAzure{MaxAge: cloud.DefaultMaxAge}
	err := eachField(n, "cloud_join.azure.", map[string]func(*yaml.Node) error{
		"subscriptions": wordsUpTo(maxAccounts, &a.Subscriptions,
			checkForm(azureSubscription, "a subscription's id in lower case")),
		"intermediates": text(&a.Intermediates, checkDir),
		"roots":         text(&a.Roots, checkDir),
		"max_age":       span(&a.MaxAge, cloud.MinMaxAge, cloud.MaxMaxAge),
	})
	if err != nil {
		return inside(err)
	}
	if len(a.Subscriptions) == 0 {
		return placedError{fmt.Errorf("line %d: cloud_join.azure: subscriptions are needed", n.Line)}
	}
	j.Azure = &a
	return nil
}

var (
	awsAccount        = regexp.MustCompile(`^[0-9]{12}$`)
	awsRegion         = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)
	gcpProject        = regexp.MustCompile(`^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$`)
	azureSubscription = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

func checkForm(form *regexp.Regexp, what string) func(string) error {
	return func(v string) error {
		if !form.MatchString(v) {
			return fmt.Errorf("%q is not %s", grant.VisibleText(v), what)
		}
		return nil
	}
}

// verifier reads the certificates and builds what admits instances; nil when none may join.
func (j CloudJoin) verifier(client *http.Client) (*cloud.Verifier, error) {
	if j == (CloudJoin{}) {
		return nil, nil
	}
	c := cloud.Config{HTTP: client}
	var err, errs error
	if a := j.AWS; a != nil {
		c.AWS = &cloud.AWS{Accounts: a.Accounts, Regions: a.Regions, MaxAge: a.MaxAge}
		c.AWS.Certificates, err = readCertificates("cloud_join.aws.certificates", a.Certificates)
		errs = errors.Join(errs, err)
	}
	if g := j.GCP; g != nil {
		c.GCP = &cloud.GCP{Projects: g.Projects, Issuer: g.Issuer, KeysURL: g.Keys, MaxAge: g.MaxAge}
	}
	if a := j.Azure; a != nil {
		c.Azure = &cloud.Azure{Subscriptions: a.Subscriptions, MaxAge: a.MaxAge}
		if a.Intermediates != "" {
			c.Azure.Intermediates, err = readCertificates("cloud_join.azure.intermediates", a.Intermediates)
			errs = errors.Join(errs, err)
		}
		if a.Roots != "" {
			roots, err := readCertificates("cloud_join.azure.roots", a.Roots)
			errs = errors.Join(errs, err)
			c.Azure.Roots = x509.NewCertPool()
			for _, cert := range roots {
				c.Azure.Roots.AddCert(cert)
			}
		}
	}
	if errs != nil {
		return nil, errs
	}
	return cloud.New(c)
}

func readCertificates(field, path string) ([]*x509.Certificate, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	certs, err := cloud.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", field, path, err)
	}
	return certs, nil
}

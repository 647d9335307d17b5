package controlplane_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
)

func TestConfig(t *testing.T) {
	c, err := controlplane.ParseConfig([]byte(`
# a comment
listen: "127.0.0.1:7000"
url: curfew.example.org:7443
organisation: acme
data_dir: /srv/curfew
session_ttl: 1h
lease: 2m
pending_ttl: 12h
webhooks:
  - url: https://chat.example.org/hook
    secret_file: /etc/curfew/hook
  - url: https://pager.example.org/hook
    secret_file: credential:pager
metrics_listen: unix:/run/curfew-controlplane/metrics.sock
`))
	must(t, err)
	if c.Listen != "127.0.0.1:7000" || c.URL != "curfew.example.org:7443" || c.DataDir != "/srv/curfew" ||
		c.SessionTTL != time.Hour || c.Lease != 2*time.Minute || c.PendingTTL != 12*time.Hour ||
		c.MetricsListen != "unix:/run/curfew-controlplane/metrics.sock" || len(c.Webhooks) != 2 ||
		c.Webhooks[0].SecretFile != "/etc/curfew/hook" || c.Webhooks[1].SecretFile != "credential:pager" {
		t.Errorf("it reads as %+v", c)
	}
	if _, err := controlplane.ParseConfig([]byte("mail: {password_file: 'credential:../x'}")); err == nil ||
		!strings.Contains(err.Error(), "no name of a credential") {
		t.Errorf("a credential outside of its folder: %v", err)
	}
	for _, text := range []string{"metrics_listen: 127.0.0.1:9471", "metrics_listen: '[::1]:0'"} {
		if _, err := controlplane.ParseConfig([]byte(text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"", "# nothing\n", "---\n"} {
		c, err := controlplane.ParseConfig([]byte(text))
		if err != nil || c.Listen != ":7443" || c.MetricsListen != "" {
			t.Errorf("%q reads as %+v, %v", text, c, err)
		}
	}
	if c, err := controlplane.LoadConfig(filepath.Join(t.TempDir(), "none")); err != nil ||
		c.DataDir != "/var/lib/curfew-controlplane" {
		t.Errorf("without a file: %+v, %v", c, err)
	}
}

func TestIdentityConfig(t *testing.T) {
	c, err := controlplane.ParseConfig([]byte(`
oidc:
  issuer: https://login.example.org/realm
  client_id: curfew
  client_secret_file: /etc/curfew/oidc
  scopes: [openid, profile]
  audiences: [curfew-cli]
  claims: {user: email, groups: roles, manager: boss, email: ""}
  create_users: true
  device_flow: true
  redirect_port: 8250
  deprovision_after: 30s
login_names: {domains: [acme.org], lower_case: true}
group_prefix: curfew-
issuer_ca_file: /etc/curfew/ca.pem
workload_session_ttl: 2h
scim: {listen: "127.0.0.1:7444"}
mail:
  server: smtp.example.org:587
  from: curfew@example.org
  username: curfew
  password_file: /etc/curfew/smtp
`))
	must(t, err)
	o := c.OIDC
	if o.Claims.User != "email" || o.Claims.Manager != "boss" || o.Claims.Email != "" || !o.DeviceFlow ||
		o.DeprovisionAfter != 30*time.Second || o.RedirectPort != 8250 || !c.LoginNames.LowerCase ||
		c.GroupPrefix != "curfew-" || c.SCIM.Listen != "127.0.0.1:7444" || c.Mail.TLS != "starttls" ||
		c.WorkloadTTL != 2*time.Hour || c.MailPasswordFile != "/etc/curfew/smtp" {
		t.Errorf("it reads as %+v, %+v, %+v", c, o, c.Mail)
	}
	c, err = controlplane.ParseConfig([]byte("oidc: {issuer: \"http://127.0.0.1:1\", client_id: c, " +
		"deprovision_after: 0s}"))
	must(t, err)
	if c.OIDC.DeprovisionAfter != 0 || c.OIDC.Claims.User != "preferred_username" || c.OIDC.CreateUsers ||
		c.OIDC.DeviceFlow {
		t.Errorf("the defaults are %+v", c.OIDC)
	}
}

func TestCloudJoinConfig(t *testing.T) {
	c, err := controlplane.ParseConfig([]byte(`
cloud_join:
  aws: {certificates: /etc/curfew/aws.pem, accounts: ["123456789012"], regions: [eu-central-1], max_age: 5m}
  gcp: {projects: [acme-prod]}
  azure: {subscriptions: [8d10da13-8125-4ba9-a717-bf7490507b3d], intermediates: /etc/curfew/azure.pem}
`))
	must(t, err)
	j := c.CloudJoin
	if j.AWS.MaxAge != 5*time.Minute || j.AWS.Accounts[0] != "123456789012" || j.AWS.Regions[0] != "eu-central-1" ||
		j.GCP.Projects[0] != "acme-prod" || j.GCP.MaxAge != 10*time.Minute || j.GCP.Issuer != "" ||
		j.Azure.Intermediates != "/etc/curfew/azure.pem" || j.Azure.Roots != "" {
		t.Errorf("it reads as %+v, %+v, %+v", j.AWS, j.GCP, j.Azure)
	}
	if c, err := controlplane.ParseConfig(nil); err != nil || c.CloudJoin != (controlplane.CloudJoin{}) {
		t.Errorf("without a word of it: %+v, %v", c.CloudJoin, err)
	}
}

// A broken configuration is refused by line and field.
func TestBrokenConfig(t *testing.T) {
	for text, want := range map[string]string{
		"listen: \":7443\"\nlisten: \":1\"": "line 2",
		"listen: 7443\n":                    "line 1: listen:",
		"\nlease: soon\n":                   "line 2: lease:",
		"lease: 25h":                        "line 1: lease:",
		"lease: -5m":                        "line 1: lease:",
		"url: https://x/":                   "line 1: url:",
		"url: [a]":                          "line 1: url:",
		"organisation: ACME":                "line 1: organisation:",
		"data_dir: var/lib":                 "line 1: data_dir:",
		"session_ttl: 1s":                   "line 1: session_ttl:",
		"colour: red":                       "line 1: colour: there is no such field",
		"webhooks: https://x":               "line 1: webhooks:",
		"webhooks:\n  - url: ftp://x\n    secret_file: /s":       "line 2: webhooks.url:",
		"webhooks:\n  - url: https://x":                          "line 2: webhooks:",
		"webhooks:\n  - url: https://x\n    key: /s":             "line 3: webhooks.key:",
		"webhooks:\n  - url: https://u:p@x\n    secret_file: /s": "line 2: webhooks.url:",
		"- listen":                            "line 1:",
		"listen: \":1\"\n---\nlisten: \":2\"": "second document",
		"listen: [":                           "L2",

		"metrics_listen: ':9471'":             "line 1: metrics_listen:",
		"metrics_listen: 0.0.0.0:9471":        "line 1: metrics_listen:",
		"metrics_listen: web.example.org:1":   "is neither unix:/PATH nor a loopback address",
		"metrics_listen: 127.0.0.1":           "line 1: metrics_listen:",
		"metrics_listen: unix:m.sock":         "line 1: metrics_listen:",
		"metrics_listen: unix:/run/../m.sock": "line 1: metrics_listen:",

		"oidc: yes":                      "line 1: want lines",
		"oidc:\n  issuer: https://x.org": "line 2: oidc: issuer and client_id",
		"oidc:\n  issuer: http://x.org":  "line 2: oidc.issuer:",
		"oidc:\n  issuer: ftp://x.org":   "line 2: oidc.issuer:",
		"oidc:\n  colour: red":           "line 2: oidc.colour: there is no such field",
		"oidc:\n  claims:\n    user: ''": "line 3: oidc.claims.user:",
		"oidc:\n  claims:\n    name: x":  "line 3: oidc.claims.name: there is no such field",
		"oidc:\n  create_users: maybe":   "line 2: oidc.create_users:",
		"oidc:\n  deprovision_after: 1s": "line 2: oidc.deprovision_after:",
		"oidc:\n  redirect_port: 80":     "line 2: oidc.redirect_port:",
		"oidc:\n  scopes: openid":        "line 2: oidc.scopes:",
		"oidc:\n  scopes:\n  - a\n  - a": "line 4: ",
		"oidc:\n  issuer: https://x.org\n  client_id: c\n  scopes: [profile]": "oidc.scopes: openid",
		"login_names:\n  domains: [ACME.org]":                                 "line 2: ",
		"group_prefix: 'a b'":                                                 "line 1: group_prefix:",
		"scim:\n  listen: ':7444'":                                            "scim.listen: without cert_file",
		"scim:\n  listen: 'example.org:7444'":                                 "scim.listen: without cert_file",
		"scim: {}":                                                            "line 1: scim: listen",
		"scim:\n  listen: '127.0.0.1:1'\n  cert_file: /c":                     "scim: cert_file and key_file",
		"mail: {}":               "line 1: mail: server and from",
		"mail:\n  tls: none":     "line 2: mail.tls:",
		"mail:\n  from: \"a b\"": "line 2: mail.from:",
		"mail:\n  server: smtp":  "line 2: mail.server:",
		"mail:\n  server: s:25\n  from: a@b.org\n  username: u": "mail: username and password_file",
		"workload_session_ttl: 1s":                              "line 1: workload_session_ttl:",

		"cloud_join: yes":                                                     "line 1: want lines",
		"cloud_join:\n  oci: {}":                                              "line 2: cloud_join.oci: there is no such field",
		"cloud_join:\n  aws: {}":                                              "line 2: cloud_join.aws: certificates and accounts",
		"cloud_join:\n  gcp: {}":                                              "line 2: cloud_join.gcp: projects",
		"cloud_join:\n  azure: {}":                                            "line 2: cloud_join.azure: subscriptions",
		"cloud_join: {aws: {accounts: []}}":                                   "cloud_join.aws.accounts: want a list of 1",
		"cloud_join: {aws: {certificates: /a, accounts: ['*']}}":              "is not the 12 digits",
		"cloud_join: {aws: {certificates: a, accounts: ['123456789012']}}":    "cloud_join.aws.certificates:",
		"cloud_join: {aws: {regions: [everywhere]}}":                          "is not a region",
		"cloud_join: {gcp: {projects: ['']}}":                                 "is not a project's id",
		"cloud_join: {gcp: {projects: [acme-prod], max_age: 24h}}":            "cloud_join.gcp.max_age:",
		"cloud_join: {gcp: {projects: [acme-prod], keys: 'https://x.org/k'}}": "issuer and keys go together",
		"cloud_join: {gcp: {keys: 'http://x.org/k'}}":                         "is not https",
		"cloud_join: {azure: {subscriptions: [acme]}}":                        "is not a subscription's id",
		"cloud_join: {azure: {roots: azure.pem}}":                             "cloud_join.azure.roots:",
	} {
		_, err := controlplane.ParseConfig([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q says %v, want %q", text, err, want)
		}
	}
}

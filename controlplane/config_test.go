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
`))
	must(t, err)
	if c.Listen != "127.0.0.1:7000" || c.URL != "curfew.example.org:7443" || c.DataDir != "/srv/curfew" ||
		c.SessionTTL != time.Hour || c.Lease != 2*time.Minute || c.PendingTTL != 12*time.Hour ||
		len(c.Webhooks) != 1 || c.Webhooks[0].SecretFile != "/etc/curfew/hook" {
		t.Errorf("it reads as %+v", c)
	}
	for _, text := range []string{"", "# nothing\n", "---\n"} {
		if c, err := controlplane.ParseConfig([]byte(text)); err != nil || c.Listen != ":7443" {
			t.Errorf("%q reads as %+v, %v", text, c, err)
		}
	}
	if c, err := controlplane.LoadConfig(filepath.Join(t.TempDir(), "none")); err != nil ||
		c.DataDir != "/var/lib/curfew-controlplane" {
		t.Errorf("without a file: %+v, %v", c, err)
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
	} {
		_, err := controlplane.ParseConfig([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q says %v, want %q", text, err, want)
		}
	}
}

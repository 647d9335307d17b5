package controlplane_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/grant"
)

// FuzzConfig reads files of any content: what is accepted is within its limits, and a refusal says on
// one line what is wrong.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"listen: \":7443\"\nurl: cp:7443\norganisation: acme\ndata_dir: /srv/x\nlease: 2m\n",
		"session_ttl: 1h\npending_ttl: 12h\nwebhooks:\n  - {url: https://a/b, secret_file: /etc/s}\n",
		"listen: \":1\"\n---\nlisten: \":2\"", "&a [*a]\n", "url: &x cp:1\nlisten: *x\n", "? [a]\n: b\n",
		"\"\\x1b[2J\": 1\n", "lease: \"\\u202e\"\n", "webhooks: [{}, {}]\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := controlplane.ParseConfig(data)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if line = strings.TrimSuffix(line, "\n"); grant.VisibleText(line) != line {
					t.Errorf("the refusal has control characters: %q", err)
				}
			}
			return
		}
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			t.Errorf("listen %q is accepted", c.Listen)
		}
		if c.URL != "" && controlplane.CheckURL(c.URL) != nil {
			t.Errorf("url %q is accepted", c.URL)
		}
		if c.Organisation != "" && grant.CheckOrganisation(c.Organisation) != nil {
			t.Errorf("organisation %q is accepted", c.Organisation)
		}
		if !filepath.IsAbs(c.DataDir) || filepath.Clean(c.DataDir) != c.DataDir {
			t.Errorf("data_dir %q is accepted", c.DataDir)
		}
		if c.Lease < 10*time.Second || c.Lease > grant.MaxLease || c.SessionTTL <= 0 || c.PendingTTL <= 0 {
			t.Errorf("times of %s, %s and %s are accepted", c.Lease, c.SessionTTL, c.PendingTTL)
		}
		for i, w := range c.Webhooks {
			if !filepath.IsAbs(w.SecretFile) || !strings.HasPrefix(w.URL, "http") {
				t.Errorf("webhook %+v is accepted", w)
			}
			for _, other := range c.Webhooks[:i] {
				if other.URL == w.URL {
					t.Errorf("webhook %s stands twice", w.URL)
				}
			}
		}
	})
}

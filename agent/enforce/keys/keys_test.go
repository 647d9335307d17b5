package keys

import (
	"context"
	"crypto/ed25519"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func line(t *testing.T, seed byte) string {
	t.Helper()
	private := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('a'+seed)), 32)))
	pub, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub)))
}

func TestRender(t *testing.T) {
	end := time.Date(2026, 11, 24, 12, 0, 0, 999, time.UTC)
	a, b := line(t, 1), line(t, 2)
	got, err := Render(Style{}, []Key{
		{Line: b, End: end},
		{Line: a, End: end},
		{Line: a, End: end.Add(time.Minute)},
		{Line: a, End: end.Add(-time.Minute)},
	})
	if err != nil {
		t.Fatal(err)
	}
	first, second := `expiry-time="20261124120100Z" `+a, `expiry-time="20261124120000Z" `+b
	if a > b {
		first, second = second, first
	}
	if want := first + "\n" + second + "\n"; string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestRenderRefuses(t *testing.T) {
	good := line(t, 1)
	for _, bad := range []string{
		"", "ssh-ed25519", good + "\n" + line(t, 2), `command="x" ` + good, good + " comment",
		"ssh-ed25519 AAAA", " " + good,
	} {
		if got, err := Render(Style{}, []Key{{Line: bad, End: time.Now()}}); err == nil {
			t.Errorf("%q was rendered as %q", bad, got)
		}
	}
}

// Before 9.1 sshd reads local time: the text must name the same moment, and in the hour that is
// repeated when summer ends, an earlier one.
func TestLocalTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatalf("this test needs tzdata: %v", err)
	}
	style := Style{Zone: berlin}
	for in, want := range map[string]string{
		"2026-07-01T12:00:00Z": "20260701140000",
		"2026-12-01T12:00:00Z": "20261201130000",
		"2026-10-24T23:30:00Z": "20261025013000",
		"2026-10-25T00:30:00Z": "20261025013000", // 02:30 the first time
		"2026-10-25T01:30:00Z": "20261025013000", // 02:30 the second time
		"2026-10-25T02:30:00Z": "20261025033000",
	} {
		end, err := time.Parse(time.RFC3339, in)
		if err != nil {
			t.Fatal(err)
		}
		if got := style.format(end); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestStyleOf(t *testing.T) {
	for out, zoned := range map[string]bool{
		"OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17 1 Jul 2025": true,
		"OpenSSH_9.1p1":  true,
		"OpenSSH_10.0p2": true,
		"OpenSSH_9.0p1":  false,
		"unknown option -- V\nOpenSSH_8.4p1 Debian-5+deb11u3, OpenSSL 1.1.1w\nusage: sshd": false,
	} {
		style, ok := styleOf(out)
		if !ok || (style.Zone == nil) != zoned {
			t.Errorf("%q: %+v, %v; want a zone in the text: %v", out, style, ok, zoned)
		}
	}
	if style := Detect(context.Background(), "/nonexistent"); style.Zone != nil {
		t.Error("an unknown sshd must get UTC, which fails closed")
	}
	if style := Detect(context.Background(), "/usr/sbin/sshd", "/usr/bin/ssh"); style.Zone != nil {
		t.Error("this machine's OpenSSH is taken for one before 9.1")
	}
}

// ssh-keygen reads the options and the key the way sshd does.
func TestSSHReadsTheKey(t *testing.T) {
	text, err := Render(Style{}, []Key{{Line: line(t, 1), End: time.Now().Add(time.Hour)}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ssh-keygen", "-l", "-f", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ED25519") {
		t.Errorf("ssh-keygen: %v: %s", err, out)
	}
}

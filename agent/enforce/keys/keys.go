// Package keys renders the authorized_keys file of one granted login.
//
// sshd reads /run/curfew/keys/<login> and nothing else for Curfew accounts, so the file holds the
// keys of the live grants that open logins, each with the moment it stops counting, and no other
// option. That moment is the second lock: with the agent dead sshd itself refuses the key. Keys come
// in checked form from the grants' terms; the text goes to agent/enforce.
package keys

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// Key is one public key ("type base64") and the last moment it opens a login.
type Key struct {
	Line string
	End  time.Time
}

// Style is how the host's sshd reads expiry-time.
type Style struct {
	// Zone is nil for UTC with a Z, which OpenSSH reads from 9.1 on. Older ones refuse the Z and read
	// the machine's local time, which then stands here.
	Zone *time.Location
}

// Render returns the file for these keys, sorted; a key that several grants carry counts until the
// last of them ends.
func Render(style Style, keys []Key) ([]byte, error) {
	until := make(map[string]time.Time)
	for _, k := range keys {
		line, err := grant.CanonicalSSHKey(k.Line)
		if err != nil {
			return nil, fmt.Errorf("rendering authorized keys: %w", err)
		}
		if line != k.Line {
			return nil, fmt.Errorf("rendering authorized keys: %q is not in canonical form", k.Line)
		}
		if k.End.After(until[line]) {
			until[line] = k.End
		}
	}
	lines := make([]Key, 0, len(until))
	for line, end := range until {
		lines = append(lines, Key{Line: line, End: end})
	}
	slices.SortFunc(lines, func(a, b Key) int { return cmp.Compare(a.Line, b.Line) })
	var b bytes.Buffer
	for _, k := range lines {
		fmt.Fprintf(&b, "expiry-time=\"%s\" %s\n", style.format(k.End), k.Line)
	}
	return b.Bytes(), nil
}

func (s Style) format(end time.Time) string {
	const layout = "20060102150405"
	if s.Zone == nil {
		return end.UTC().Format(layout + "Z")
	}
	end = end.In(s.Zone)
	// In the hour that clocks repeat, a local time means two moments: take the one before it, so that
	// the key never lives longer than its grant.
	for range 3 {
		text := end.Format(layout)
		if end.Add(-time.Hour).Format(layout) != text && end.Add(time.Hour).Format(layout) != text {
			break
		}
		end = end.Add(-time.Hour)
	}
	return end.Format(layout)
}

var version = regexp.MustCompile(`OpenSSH_([0-9]+)\.([0-9]+)`)

// Detect asks the host's sshd, or else its ssh, for the version. A host that does not say gets the Z:
// an sshd that cannot read it refuses the key, which keeps access closed.
func Detect(ctx context.Context, programs ...string) Style {
	for _, program := range programs {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		// Old sshd does not know -V and says its version in the complaint.
		out, err := exec.CommandContext(ctx, program, "-V").CombinedOutput()
		cancel()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			continue
		}
		if style, ok := styleOf(string(out)); ok {
			return style
		}
	}
	return Style{}
}

func styleOf(out string) (Style, bool) {
	m := version.FindStringSubmatch(out)
	if m == nil {
		return Style{}, false
	}
	major, errMajor := strconv.Atoi(m[1])
	minor, errMinor := strconv.Atoi(m[2])
	if errMajor != nil || errMinor != nil {
		return Style{}, false
	}
	if major > 9 || major == 9 && minor >= 1 {
		return Style{}, true
	}
	return Style{Zone: time.Local}, true
}

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// While a request is pending no way in opens, be it a shell, a file or a forward: attack A23. The
// same ways work once it is approved, so that they could have opened.
func TestPendingRequestOpensNothing(t *testing.T) {
	s := tell(t, stage.Options{Name: "pending"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	gus, err := s.Person(s.ctx, "gus")
	s.ok(err)
	s.ok(gus.LetIn(s.ctx, s.Hosts["web1"], "gus"))
	for _, who := range []*stage.Person{alice, gus} {
		id, err := who.Ask(s.ctx, "web1", "docs", 10*time.Minute)
		s.ok(err)
		ways := waysIn(who.Name() + "@web1")
		for way, script := range ways {
			r, err := who.Command(s.ctx, "bash", "-c", script)
			s.ok(err)
			if r.Exit == 0 || strings.Contains(r.Out, "open") {
				t.Errorf("%s of %s's opens while the request is pending: %s", way, who.Name(), r)
			}
		}
		s.curfew(bob, 0, []string{"approve", id, "--yes"})
		s.ok(s.Applied(s.ctx, who, id))
		for way, script := range ways {
			r, err := who.Command(s.ctx, "bash", "-c", script)
			s.ok(err)
			if r.Exit != 0 || !strings.Contains(r.Out, "open") {
				t.Errorf("%s of %s's does not open with a grant: %s", way, who.Name(), r)
			}
		}
	}
}

// waysIn are scripts for a laptop. Each prints "open" when it got through.
func waysIn(target string) map[string]string {
	// A forward is tried while its connection stands; 22 on the host answers with a banner.
	forward := func(flags, try string) string {
		return `ssh -o BatchMode=yes -o ExitOnForwardFailure=yes -N ` + flags + ` ` + target + ` & ssh=$!
trap 'kill $ssh 2>/dev/null' EXIT
for i in $(seq 30); do
  kill -0 $ssh 2>/dev/null || exit 1
  ` + try + ` && echo open && exit 0
  sleep 0.1
done
exit 1`
	}
	const banner = `{ read -t 2 line </dev/tcp/127.0.0.1/2210 && [[ $line == SSH-2.0* ]]; } 2>/dev/null`
	const socks = `timeout 3 bash -c '
exec 3<>/dev/tcp/127.0.0.1/2210 && printf "\5\1\0" >&3 && head -c 2 <&3 >/dev/null &&
printf "\5\1\0\1\177\0\0\1\0\26" >&3 && head -c 10 <&3 >/dev/null && head -c 7 <&3 | grep -q SSH-2.0
' 2>/dev/null`
	return map[string]string{
		"a command": `ssh -o BatchMode=yes ` + target + ` echo open`,
		"sftp": `echo 'get /etc/hostname name' >batch &&
sftp -o BatchMode=yes -b batch ` + target + ` >/dev/null && echo open`,
		"scp":        `scp -o BatchMode=yes ` + target + `:/etc/hostname name && echo open`,
		"scp of old": `scp -O -o BatchMode=yes ` + target + `:/etc/hostname name && echo open`,
		"-L":         forward("-L 2210:127.0.0.1:22", banner),
		"-D":         forward("-D 2210", socks),
		// From the host's port back to the laptop, which dials the host: there and back again.
		"-R": forward("-R 2211:"+strings.SplitAfter(target, "@")[1]+":22 -L 2210:127.0.0.1:2211", banner),
		"-W": `ssh -o BatchMode=yes -W 127.0.0.1:22 ` + target +
			` </dev/null 2>/dev/null | grep -q SSH-2.0 && echo open`,
	}
}

package seen

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func line(n int, comm, message string) string {
	return fmt.Sprintf(`{"__CURSOR":"c%d","__REALTIME_TIMESTAMP":"17900000000000%02d","_COMM":%q,"MESSAGE":%q}`+"\n",
		n, n, comm, message)
}

func at(n int64) time.Time { return time.UnixMicro(1790000000000000 + n) }

// The lines are those of Debian 11 to 13 and of sudo-rs.
func TestReadsWhatWasUsed(t *testing.T) {
	text := line(1, "sshd", "pam_unix(sshd:session): session opened for user gus(uid=1001) by (uid=0)") +
		line(2, "sudo", "     lou : TTY=pts/0 ; PWD=/home/lou ; USER=root ; COMMAND=/usr/bin/id -u") +
		line(3, "sudo", "pam_unix(sudo:session): session opened for user root(uid=0) by lou(uid=1002)") +
		line(4, "su", "pam_unix(su-l:session): session opened for user root(uid=0) by lou(uid=1002)") +
		line(5, "cron", "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)") +
		line(6, "sudo", "gus : command not allowed ; TTY=pts/1 ; PWD=/ ; USER=root ; COMMAND=/usr/bin/id") +
		line(7, "sudo", "carol : PWD=/ ; USER=www-data ; COMMAND=/usr/bin/ls a ; COMMAND=b") +
		`{"__CURSOR":"c8","__REALTIME_TIMESTAMP":"1790000000000008","_COMM":"sudo","MESSAGE":[108,255]}` + "\n" +
		"not JSON\n" +
		line(9, "sshd-session", "pam_unix(sshd:session): session opened for user bob by (uid=0)") +
		line(10, "sshd", "Accepted publickey for gus from 10.0.0.1 port 5 ssh2") +
		line(11, "sudo", "lou : 3 incorrect password attempts ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/usr/bin/id")
	var j Journal
	got, more, err := j.read(strings.NewReader(text))
	if err != nil || more || j.Cursor != "c11" {
		t.Errorf("cursor %s, more %t, %v", j.Cursor, more, err)
	}
	want := []Use{
		{At: at(1), Login: "gus", Service: "sshd"},
		{At: at(2), Login: "lou", Service: "sudo", As: "root", Command: "/usr/bin/id -u"},
		{At: at(4), Login: "lou", Service: "su-l", As: "root"},
		{At: at(7), Login: "carol", Service: "sudo", As: "www-data", Command: "/usr/bin/ls a ; COMMAND=b"},
		{At: at(9), Login: "bob", Service: "sshd"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A journal that is larger than one look is read in several, and nothing is read twice or left out.
func TestReadsALongJournalInPieces(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "journalctl")
	// One that knows cursors: lines 1 to 40,000 of about 200 bytes, and one far too long.
	script := `#!/bin/sh
from=1
for a; do case $a in --after-cursor=c*) from=$((${a#--after-cursor=c} + 1)) ;; esac; done
awk -v from=$from 'BEGIN {
  for (i = from; i <= 40000; i++) {
    if (i == 7) { printf "{\"__CURSOR\":\"c7\",\"MESSAGE\":\""; for (k = 0; k < 100000; k++) printf "x"; print "\"}" }
    printf "{\"__CURSOR\":\"c%d\",\"__REALTIME_TIMESTAMP\":\"1790000000000000\",\"_COMM\":\"sshd\",\"MESSAGE\":\"pam_unix(sshd:session): session opened for user u%d(uid=1) by (uid=0)\"}\n", i, i
  }
}'
`
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	j := Journal{Program: program}
	var all []Use
	for looks := 0; ; looks++ {
		list, more, err := j.Look(context.Background(), time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
		if !more {
			if looks == 0 {
				t.Error("one look was enough")
			}
			break
		}
	}
	if len(all) != 40000 || all[39999].Login != "u40000" {
		t.Errorf("%d uses", len(all))
	}
	for i, u := range all {
		if u.Login != fmt.Sprintf("u%d", i+1) {
			t.Fatalf("use %d is of %s", i, u.Login)
		}
	}
}

func TestJournalThatCannotBeRead(t *testing.T) {
	program := filepath.Join(t.TempDir(), "journalctl")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho broken >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{program, "/nowhere/journalctl"} {
		if _, _, err := (&Journal{Program: p}).Look(context.Background(), time.Now()); err == nil {
			t.Errorf("%s: no error", p)
		}
	}
}

// The first use of a thing is told at once, more of the same once an hour, and nothing is lost.
func TestTallyTellsFirstAtOnce(t *testing.T) {
	tally, now := NewTally(), at(0)
	use := Use{At: now, Login: "lou", Service: "sudo", As: "root", Command: "/usr/bin/id"}
	other := use
	other.Command = "/usr/bin/true"
	tally.Add([]Use{use, use, other})
	if got := tally.Take(now, false); len(got) != 2 || got[0].Times+got[1].Times != 3 {
		t.Errorf("at first: %v", got)
	}
	tally.Add([]Use{use})
	if got := tally.Take(now.Add(time.Minute), false); got != nil || !tally.Waits() {
		t.Errorf("a minute later: %v", got)
	}
	tally.Add([]Use{use})
	if got := tally.Take(now.Add(time.Hour), false); len(got) != 1 || got[0].Times != 2 {
		t.Errorf("an hour later: %v", got)
	}
	tally.Add([]Use{other})
	if got := tally.Take(now.Add(time.Hour), true); len(got) != 1 || tally.Waits() {
		t.Errorf("at the end: %v", got)
	}
	many := make([]Use, maxKeys+5)
	for i := range many {
		many[i] = Use{Login: fmt.Sprint("u", i), Service: "sshd"}
	}
	tally.Add(many)
	if got := tally.Take(now, true); len(got) != maxTold || tally.Lost != 5 {
		t.Errorf("too many: %d told, %d lost", len(got), tally.Lost)
	}
}

package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/e2e/stage"
)

// diagnosis runs curfew-agent doctor on a host: whether it is well, and what is wrong in words.
func (s *story) diagnosis(host string) (well bool, found map[string]string) {
	s.t.Helper()
	out := s.on(host, `curfew-agent doctor --json 2>/dev/null && echo '"well"' || echo '"ill"'`)
	dec := json.NewDecoder(strings.NewReader(out))
	var lines []struct{ What, Level, Error, Mend string }
	var verdict string
	if err := dec.Decode(&lines); err != nil {
		s.t.Fatalf("doctor says: %v\n%s", err, out)
	}
	s.ok(dec.Decode(&verdict))
	found = make(map[string]string)
	for _, l := range lines {
		if l.Level == "ok" {
			continue
		}
		found[l.What] = l.Level + ": " + l.Error
		if l.Mend == "" {
			s.t.Errorf("doctor says %q of %s and not how to mend it", l.Error, l.What)
		}
	}
	if len(lines) < 25 {
		s.t.Errorf("doctor looked at %d things", len(lines))
	}
	return verdict == "well", found
}

// Doctor finds nothing on a host as Debian and Curfew's packages leave it; and whatever one breaks of
// what enforcement leans on is named, by sshd's and sudo's own word, and is well again once mended.
func TestDoctorFindsWhatEnforcementLeansOn(t *testing.T) {
	s := tell(t, stage.Options{})
	s.outsider() // rescue has a key
	well, found := s.diagnosis("web1")
	delete(found, "the clock is kept in time") // the machine's own, which the test must not set
	if !well || len(found) > 0 {
		t.Fatalf("a new host: %v", found)
	}
	s.on("web1", `
cp -a /etc/pam.d /etc/ssh /etc/sudoers /etc/nsswitch.conf /root/
sed -i '/^account.*pam_nologin/a account sufficient pam_localuser.so' /etc/pam.d/sshd
printf 'Match User *\n  AuthorizedKeysFile .ssh/authorized_keys\n' >/etc/ssh/sshd_config.d/00-first.conf
sed -i 's/^UsePAM yes/UsePAM no/' /etc/ssh/sshd_config
echo 'AllowGroups sre' >>/etc/ssh/sshd_config
sed -i '/^Defaults.*env_reset/a Defaults !pam_session' /etc/sudoers
echo 'gus ALL=(root) NOPASSWD: /usr/bin/id' >/etc/sudoers.d/gus
sed -i 's/^passwd:.*/passwd: files/' /etc/nsswitch.conf
gpasswd -d rescue curfew-breakglass
systemctl stop curfew-link`)
	well, found = s.diagnosis("web1")
	for what, words := range map[string]string{
		"PAM, account of sshd":                       "problem: not everybody is asked about: pam_localuser.so",
		"sshd's authorizedkeysfile":                  "problem: ",
		"sshd's usepam":                              "problem: ",
		"sshd lets Curfew accounts in":               "warning: AllowGroups lets only",
		"sudo's settings":                            "problem: a grant's rule would be defeated by !pam_session",
		"managed people have no standing sudo rules": "warning: gus has /usr/bin/id",
		"nsswitch.conf, passwd":                      "problem: ",
		"break-glass":                                "problem: nobody is in the group",
		"the control plane is connected":             "problem: not connected",
	} {
		if !strings.HasPrefix(found[what], words) {
			t.Errorf("%s: %q, want %q…", what, found[what], words)
		}
		delete(found, what)
	}
	if well {
		t.Error("doctor calls a broken host well")
	}
	delete(found, "the clock is kept in time")
	if len(found) > 0 {
		t.Errorf("found beside: %v", found)
	}
	s.on("web1", `
rm -r /etc/pam.d /etc/ssh /etc/sudoers.d/gus; mv /root/pam.d /root/ssh /etc/; mv /root/sudoers /etc/sudoers
/usr/lib/curfew/setup agent
usermod -aG curfew-breakglass rescue
systemctl start curfew-link`)
	s.ok(s.Connected(s.ctx, "web1"))
	if well, found = s.diagnosis("web1"); !well {
		t.Errorf("after mending: %v", found)
	}
}

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Every script that a package runs as root is one that sh understands and shellcheck has nothing to say of.
func TestScripts(t *testing.T) {
	run(t, ".", "./deps.sh")
	var scripts []string
	for _, pattern := range []string{"../deb/*.p*", "../rpm/*", "../scripts/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		scripts = append(scripts, found...)
	}
	for _, s := range scripts {
		run(t, ".", "sh", "-n", s)
	}
	run(t, ".", append([]string{"shellcheck", "--shell=dash"}, scripts...)...)
}

// TestRPM puts the rpms of two versions into a root, where rpm runs their scriptlets. The root is Debian's,
// which has every program that they call, but for authselect.
func TestRPM(t *testing.T) {
	run(t, ".", "./deps.sh")
	both := rpms(t, []string{"libnss-curfew", "libpam-curfew", "curfew-agent", "curfew-controlplane"}, "v1.2.3", "v1.2.4")
	older, newer := both[0], both[1]
	t.Run("contents", func(t *testing.T) { testRPMContents(t, older) })
	t.Run("rpmlint", func(t *testing.T) {
		all := append(rpms(t, []string{"curfew"}, "v1.2.3")[0], older...)
		run(t, ".", append([]string{"rpmlint", "--strict", "--config", "rpmlint.toml"}, all...)...)
	})
	t.Run("plain", func(t *testing.T) { testRPMLife(t, newRoot(t), older, newer) })
	t.Run("authselect", func(t *testing.T) { testAuthselect(t, newRoot(t), older, newer) })
	t.Run("refused", func(t *testing.T) { testRefusedErasure(t, newRoot(t), older) })
}

// rpms builds some of the packages, once, and packs them as each of these versions.
func rpms(t *testing.T, only []string, versions ...string) (files [][]string) {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	b := Build{
		Top: top, Out: t.TempDir(), work: t.TempDir(), Kinds: []string{"rpm"}, Only: only,
		Say: func(s string) { t.Log(s) },
	}
	packages, err := b.packages()
	if err != nil {
		t.Fatal(err)
	}
	for i, described := range versions {
		if b.Version, err = ParseVersion(described, commit); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := b.compile(t.Context(), "amd64", packages); err != nil {
				t.Fatal(err)
			}
			if err := b.document(t.Context(), "amd64", packages); err != nil {
				t.Fatal(err)
			}
		}
		files = append(files, nil)
		for _, p := range packages {
			file, err := b.pack(t.Context(), p, "rpm", "amd64")
			if err != nil {
				t.Fatal(err)
			}
			files[i] = append(files[i], file)
		}
	}
	return files
}

// testRPMContents asks rpm what is in the packages: every scriptlet of the tree, what it needs, and files
// in the places of rpm's world.
func testRPMContents(t *testing.T, files []string) {
	titles := map[string]string{
		"pre": "preinstall", "post": "postinstall", "preun": "preuninstall", "postun": "postuninstall",
	}
	scripts := 0
	for _, file := range files {
		name, _, _ := strings.Cut(filepath.Base(file), "-1.2.3")
		said := run(t, ".", "rpm", "-qp", "--scripts", file)
		for suffix, title := range titles {
			text, err := os.ReadFile("../rpm/" + name + "." + suffix)
			head := title + " scriptlet (using /bin/sh):\n"
			if err != nil {
				if strings.Contains(said, head) {
					t.Errorf("%s has a %s that the tree has not", name, title)
				}
				continue
			}
			scripts++
			if !strings.Contains(said, head+string(text)) {
				t.Errorf("%s lacks its %s scriptlet: %s", name, title, said)
			}
		}
		if needs := run(t, ".", "rpm", "-qp", "--requires", file); !strings.Contains(needs, "/bin/sh\n") {
			t.Errorf("%s runs scripts and does not need /bin/sh: %s", name, needs)
		}
	}
	if all, _ := filepath.Glob("../rpm/*"); scripts != len(all) {
		t.Errorf("%d of %d scriptlets are in packages", scripts, len(all))
	}
	for name, want := range map[string][]string{
		"libpam-curfew": {"/usr/lib64/security/pam_curfew.so", "/usr/share/authselect/vendor/curfew/system-auth"},
		"libnss-curfew": {"/usr/lib64/libnss_curfew.so.2"},
		"curfew-agent":  {"/usr/lib/sysusers.d/curfew-agent.conf", "/etc/ssh/sshd_config.d/50-curfew.conf"},
	} {
		i := slices.IndexFunc(files, func(f string) bool { return strings.HasPrefix(filepath.Base(f), name) })
		list := run(t, ".", "rpm", "-qpl", files[i])
		for _, place := range want {
			if !strings.Contains(list, place+"\n") {
				t.Errorf("%s lacks %s", name, place)
			}
		}
		if strings.Contains(list, "pam-configs") || strings.Contains(list, "apparmor") {
			t.Errorf("%s has files that only Debian reads: %s", name, list)
		}
	}
	if needs := run(t, ".", "rpm", "-qp", "--requires", files[slices.IndexFunc(files, func(f string) bool {
		return strings.Contains(f, "curfew-agent")
	})]); !strings.Contains(needs, "libpam-curfew = 1.2.3-1\n") || !strings.Contains(needs, "systemd >= 247\n") {
		t.Errorf("curfew-agent needs %s", needs)
	}
}

// testRPMLife installs, upgrades and erases on a host that nothing writes PAM stacks for.
func testRPMLife(t *testing.T, r root, older, newer []string) {
	before := r.etc()
	if said := r.rpm("-i", older...); !strings.Contains(said, "nothing here writes PAM stacks") {
		t.Errorf("the installation says %s", said)
	}
	r.sh(`visudo -cq; grep -q includedir /etc/sudoers.d/curfew
grep -Eq '^passwd:\s+files curfew( |$)' /etc/nsswitch.conf; grep -Eq '^shadow:\s+files curfew( |$)' /etc/nsswitch.conf
getent -s files passwd curfew-link curfew-controlplane; getent -s files group curfew-users curfew-breakglass
[ "$(stat -c '%a %U' /var/lib/curfew /var/lib/curfew-link)" = "700 root
700 curfew-link" ]
[ -d /run/curfew/sudoers.d ]
[ "$(systemctl is-enabled curfew-join.service)" = enabled ]
[ "$(systemctl is-enabled curfew-agent.target)" = disabled ]`)
	if pam := r.sh("grep -rl curfew /etc/pam.d || true"); pam != "" {
		t.Errorf("a package writes PAM stacks by itself: %s", pam)
	}
	// What an administrator did to the host is theirs.
	r.sh(`systemctl --quiet disable curfew-join.service; systemctl --quiet enable curfew-agent.target
echo '# mine' >>/etc/ssh/sshd_config.d/50-curfew.conf`)
	installed := r.etc()
	r.rpm("-U", newer...)
	if diff := differ(installed, r.etc()); diff != "" {
		t.Errorf("an upgrade changes /etc:\n%s", diff)
	}
	if said := r.rpm("-q", "curfew-agent"); !strings.HasPrefix(said, "curfew-agent-1.2.4") {
		t.Errorf("after the upgrade there is %s", said)
	}
	r.sh("sed -i '/^# mine/d' /etc/ssh/sshd_config.d/50-curfew.conf; touch /var/lib/curfew-controlplane/root.key")
	said := r.rpm("-e", names(older)...)
	if !strings.Contains(said, "the root key, the CA and the trail stay") {
		t.Errorf("the removal says %s", said)
	}
	if diff := differ(before, r.etc()); diff != "" {
		t.Errorf("what is left in /etc is not what was there before:\n%s", diff)
	}
	r.sh("! ls -d /usr/lib/curfew/* /usr/lib64/security/pam_curfew.so /usr/lib64/libnss_curfew* /run/curfew")
	r.sh("[ -d /var/lib/curfew ]; [ -e /var/lib/curfew-controlplane/root.key ]; visudo -cq")
}

// standIn takes authselect's place: what it prints and demands is what authselect(8) says. It keeps a record
// of what it is told, and of whether the module is there at that moment.
const standIn = `#!/bin/sh
conf=/etc/authselect/authselect.conf
[ "$1" = list-features ] || [ "$1" = current ] ||
  echo "$* [$(ls /usr/lib64/security/pam_curfew.so 2>/dev/null)]" >>/authselect.log
case $1 in
current) [ -s $conf ] || { echo "No existing configuration detected."; exit 2; }; cat $conf ;;
list-features)
  case $2 in
  curfew) sed -n 's/^\(with.*\)::$/\1/p' /usr/share/authselect/vendor/curfew/README | grep . ;;
  sssd) printf '%s\n' with-sudo with-mkhomedir with-smartcard with-silent-lastlog ;;
  *) exit 2 ;;
  esac ;;
select) [ ! -e /authselect.broken ] || exit 4; shift; echo "$*" | sed 's/ --quiet//' >$conf ;;
esac
`

// testAuthselect tries what a host with authselect is told and what becomes of its profile.
func testAuthselect(t *testing.T, r root, older, newer []string) {
	r.write("/usr/bin/authselect", standIn, 0o755)
	r.sh(`mkdir -p /etc/authselect; mv /etc/nsswitch.conf /etc/authselect/
ln -s /etc/authselect/nsswitch.conf /etc/nsswitch.conf
echo sssd with-sudo with-mkhomedir >/etc/authselect/authselect.conf`)
	before := r.etc()
	said := r.rpm("-i", older...)
	const command = "authselect select curfew with-sssd with-sudo with-mkhomedir"
	if !strings.Contains(said, "type: "+command+"\n") {
		t.Errorf("the administrator is not told what to type: %s", said)
	}
	if text := r.sh("cat /etc/nsswitch.conf; cat /authselect.log 2>/dev/null || true"); strings.Contains(text, "curfew") {
		t.Errorf("the installation does by itself what is authselect's to do:\n%s", text)
	}
	for profile, want := range map[string]string{
		"sssd with-smartcard":          "knows nothing of with-smartcard:",
		"custom/ours with-sudo":        "knows nothing of the profile custom/ours:",
		"minimal without-nullok":       "type: authselect select curfew without-nullok\n",
		"local with-silent-lastlog":    "type: authselect select curfew with-silent-lastlog\n",
		"winbind with-krb5 with-mdns4": "knows nothing of the profile winbind with-krb5:",
	} {
		said := r.sh("echo " + profile + " >/etc/authselect/authselect.conf; /usr/lib/curfew/setup-pam 2>&1")
		if !strings.Contains(said, want) {
			t.Errorf("on a host with the profile %s setup-pam says %q, want %q", profile, said, want)
		}
	}
	if said := r.sh(`cp /etc/nsswitch.conf /tmp/nsswitch; echo '# /etc/authselect/user-nsswitch.conf' >>/etc/nsswitch.conf
echo minimal >/etc/authselect/authselect.conf; /usr/lib/curfew/setup-pam 2>&1
cat /tmp/nsswitch >/etc/nsswitch.conf`); !strings.Contains(said, "curfew with-user-nsswitch") {
		t.Errorf("a map of the administrator's would be lost: %s", said)
	}
	r.sh(command)
	r.rpm("-U", newer...)
	r.sh("touch /authselect.broken")
	if said := r.fails("-e", names(older)...); !strings.Contains(said, "authselect select sssd --force") {
		t.Errorf("where the profile cannot be changed the removal says %s", said)
	}
	r.sh("[ -e /usr/lib64/security/pam_curfew.so ]; rm /authselect.broken")
	r.rpm("-e", "libpam-curfew")
	log := r.sh("cat /authselect.log")
	module := " [/usr/lib64/security/pam_curfew.so]\n"
	back := "select sssd with-sudo with-mkhomedir --quiet" + module
	if want := strings.TrimPrefix(command, "authselect ") + module + "apply-changes" + module + back + back; log != want {
		t.Errorf("authselect is told\n%swant\n%s", log, want)
	}
	if diff := differ(before, r.etc()); diff != "" {
		t.Errorf("what is left in /etc is not what was there before:\n%s", diff)
	}
}

// testRefusedErasure tries a host whose grants cannot be ended: all that they need stays.
func testRefusedErasure(t *testing.T, r root, files []string) {
	r.rpm("-i", files...)
	// As on a booted host, with an agent whose record nobody can read.
	r.sh("mkdir -p /run/systemd/system; echo broken >/var/lib/curfew/root.key; chmod 600 /var/lib/curfew/root.key")
	installed := r.etc()
	said := r.fails("-e", "curfew-agent", "libpam-curfew", "libnss-curfew")
	const there = "-curfew: curfew-agent is still there"
	for _, want := range []string{"so the agent stays", "libpam" + there, "libnss" + there} {
		if !strings.Contains(said, want) {
			t.Errorf("the refusal does not say %q: %s", want, said)
		}
	}
	if diff := differ(installed, r.etc()); diff != "" {
		t.Errorf("a refused removal changes /etc:\n%s", diff)
	}
	r.sh(`ls /usr/lib/curfew/curfew-enforce /usr/lib64/security/pam_curfew.so /usr/lib64/libnss_curfew.so.2
rm -r /var/lib/curfew; mkdir /var/lib/curfew`)
	r.rpm("-e", "curfew-agent", "libpam-curfew", "libnss-curfew")
}

// names are packages by their names alone.
func names(files []string) []string {
	var list []string
	for _, f := range files {
		name, _, _ := strings.Cut(filepath.Base(f), "-1.2.")
		list = append(list, name)
	}
	return list
}

package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const control = "[success=ok ignore=ignore module_unknown=ignore default=die] pam_curfew.so\n"

// wellHost is a host on which everything is as Debian and Curfew's package leave it.
func wellHost() map[string]string {
	files := map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\ncurfew-link:x:999:999::/:/usr/sbin/nologin\n" +
			"rescue:x:1003:1003::/home/rescue:/bin/sh\ngus:x:1001:1001::/home/gus:/bin/sh\n",
		"etc/group":                        "root:x:0:\ncurfew-users:x:990:\ncurfew-breakglass:x:991:rescue\n",
		"etc/shadow":                       "root:*:1::::::\nrescue:!:19000:0:99999:7:::\n",
		"home/rescue/.ssh/authorized_keys": "# kept safe\nssh-ed25519 AAAA rescue\n",
		"bin/sh":                           "",
		"usr/lib/x86_64-linux-gnu/security/pam_curfew.so": "",
		"usr/lib/x86_64-linux-gnu/libnss_curfew.so.2":     "",
		"usr/sbin/sshd":                    "",
		"home/.keep":                       "",
		"run/curfew/keys/.keep":            "",
		"run/curfew/sudoers.d/.keep":       "",
		"run/systemd/system/.keep":         "",
		"run/systemd/private":              "",
		"sys/fs/cgroup/cgroup.controllers": "",
		"etc/ssh/sshd_config":              "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n",
		"etc/ssh/sshd_config.d/50-curfew.conf": "Match Group curfew-users\n" +
			"\tAuthorizedKeysFile /run/curfew/keys/%u\nMatch all\n",
		"etc/nsswitch.conf": "# names\npasswd: files curfew systemd\ngroup:\tfiles [NOTFOUND=continue] " +
			"curfew # ours\nshadow: files curfew\nsudoers: files\n",
		"etc/pam.d/common-account": "account " + control +
			"account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\n" +
			"account requisite pam_deny.so\naccount required pam_permit.so\n",
		"etc/pam.d/common-auth": "auth required pam_unix.so\n",
	}
	session := "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n" +
		"session required pam_permit.so\nsession required pam_unix.so\n"
	files["etc/pam.d/common-session"] = session + "session optional pam_systemd.so\nsession " + control
	files["etc/pam.d/common-session-noninteractive"] = session + "session " + control
	for _, name := range []string{"sshd", "login", "su", "sudo-i"} {
		files["etc/pam.d/"+name] = "@include common-auth\naccount required pam_nologin.so\n" +
			"@include common-account\nsession optional pam_motd.so\n@include common-session\n"
	}
	for _, name := range []string{"sudo", "cron"} {
		files["etc/pam.d/"+name] = "@include common-auth\n@include common-account\n" +
			"@include common-session-noninteractive\n"
	}
	files["usr/lib/pam.d/systemd-user"] = "@include common-account\n"
	return files
}

const wellSSHD = `usepam yes
pubkeyauthentication yes
authorizedkeysfile /run/curfew/keys/%u
authorizedkeyscommand none
trustedusercakeys none
authenticationmethods publickey
permituserrc no
`

// look furnishes a host and looks at it; said is what sshd says of itself.
func look(t *testing.T, files map[string]string, said string, change func(*Host)) []Finding {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := Host{
		Root: root, Kernel: "6.1.0-18-amd64", BreakGlass: "curfew-breakglass", HomeRoot: "/home",
		Gated: []string{"gus"},
		Run: func(_ context.Context, argv ...string) ([]byte, error) {
			if len(argv) < 4 || argv[1] != "-T" {
				return nil, fmt.Errorf("unexpected %q", argv)
			}
			text, err := os.ReadFile(argv[3])
			if err == nil && !strings.Contains(string(text), "Include ") {
				err = errors.New("the copy includes nothing")
			}
			return []byte(said), err
		},
		Clock: func() error { return nil },
	}
	if change != nil {
		change(&h)
	}
	return Look(t.Context(), h)
}

func TestWellHost(t *testing.T) {
	for _, f := range look(t, wellHost(), wellSSHD, nil) {
		if f.Err != nil {
			t.Errorf("%s: %v", f.What, f.Err)
		}
	}
}

// Each break is found, under a name that says where, with a way to mend it; and nothing else is.
func TestBreaks(t *testing.T) {
	file := func(name, text string) func(map[string]string) {
		return func(files map[string]string) { files[name] = text }
	}
	gone := func(name string) func(map[string]string) {
		return func(files map[string]string) { delete(files, name) }
	}
	swap := func(name, old, new string) func(map[string]string) {
		return func(files map[string]string) {
			if !strings.Contains(files[name], old) {
				panic(name + " does not hold " + old)
			}
			files[name] = strings.ReplaceAll(files[name], old, new)
		}
	}
	for _, tt := range []struct {
		what  string // of the one finding
		says  string
		files func(map[string]string)
		sshd  string // instead of what sshd says
		host  func(*Host)
	}{
		{what: "PAM module", says: "there is no", files: gone("usr/lib/x86_64-linux-gnu/security/pam_curfew.so")},
		{what: "NSS module", says: "there is no", files: gone("usr/lib/x86_64-linux-gnu/libnss_curfew.so.2")},
		{what: "group curfew-users", says: "missing", files: swap("etc/group", "curfew-users", "other")},
		{what: "user curfew-link", says: "missing", files: swap("etc/passwd", "curfew-link", "other")},
		{what: "folder /run/curfew/keys", says: "there is no", files: gone("run/curfew/keys/.keep")},
		{
			what: "nsswitch.conf, passwd", says: "does not name curfew",
			files: swap("etc/nsswitch.conf", "passwd: files curfew", "#passwd: files curfew\npasswd: files"),
		},
		{
			what: "nsswitch.conf, group", says: "NOTFOUND=return",
			files: swap("etc/nsswitch.conf", "[NOTFOUND=continue]", "sss [UNAVAIL=continue NOTFOUND=return]"),
		},
		{
			what: "nsswitch.conf, shadow", says: "!UNAVAIL=return",
			files: swap("etc/nsswitch.conf", "shadow: files", "shadow: files sss [!UNAVAIL=return]"),
		},
		{
			what: "nsswitch.conf, passwd", says: "before files",
			files: swap("etc/nsswitch.conf", "passwd: files curfew", "passwd: curfew files"),
		},
		{
			what: "nsswitch.conf, initgroups", says: "does not name curfew",
			files: swap("etc/nsswitch.conf", "shadow:", "initgroups: files\nshadow:"),
		},
		{what: "sudo reads its files", says: "no files", files: swap("etc/nsswitch.conf", "sudoers: files", "sudoers: [SUCCESS=return]")},
		{what: "sudo rules of a directory", says: "sss", files: swap("etc/nsswitch.conf", "sudoers: files", "sudoers: files sss")},
		{
			what: "PAM, account of sshd", says: "no pam_curfew.so",
			files: swap("etc/pam.d/sshd", "@include common-account\n", "account required pam_unix.so\n"),
		},
		{
			what: "PAM, account of login", says: "pam_localuser.so in /etc/pam.d/login ends the stack with yes",
			files: swap("etc/pam.d/login", "@include common-account", "account sufficient pam_localuser.so\n@include common-account"),
		},
		{
			what: "PAM, account of su", says: "pam_succeed_if.so in /etc/pam.d/su jumps over Curfew's line",
			files: swap("etc/pam.d/su", "@include common-account",
				"account [success=1 \\\n default=ignore] pam_succeed_if.so user ingroup staff\n@include common-account"),
		},
		{
			what: "PAM, account of su", says: "pam_succeed_if.so in /etc/pam.d/su ends the stack with yes",
			files: swap("etc/pam.d/su", "@include common-account",
				"account sufficient pam_succeed_if.so uid = 0 use_uid quiet\n"+
					"account sufficient pam_succeed_if.so uid = 0 quiet\n@include common-account"),
		},
		{
			what: "PAM, account of cron", says: "pam_access.so in /etc/pam.d/sub ends the stack with yes",
			files: func(f map[string]string) {
				f["etc/pam.d/sub"] = "account sufficient pam_access.so\naccount " + control
				f["etc/pam.d/cron"] = "account substack sub\nsession required pam_unix.so\n"
			},
		},
		{
			what: "PAM, account of systemd-user", says: "module_unknown=die",
			files: swap("usr/lib/pam.d/systemd-user", "@include common-account", "account required pam_unix.so\n"+
				"account [success=ok ignore=ignore default=die] pam_curfew.so"),
		},
		{
			what: "PAM, account of systemd-user", says: "a denial would not be one",
			files: swap("usr/lib/pam.d/systemd-user", "@include common-account", "account optional pam_curfew.so"),
		},
		{
			what: "PAM, account of systemd-user", says: "lines behind it are skipped",
			files: swap("usr/lib/pam.d/systemd-user", "@include common-account",
				"account [success=done ignore=ignore module_unknown=ignore default=die] pam_curfew.so"),
		},
		{
			what: "PAM, account of systemd-user", says: "conf=/tmp/x",
			files: swap("usr/lib/pam.d/systemd-user", "@include common-account",
				"account "+strings.TrimSpace(control)+" conf=/tmp/x"),
		},
		{
			what: "PAM, session of sudo-i", says: "before pam_systemd.so",
			files: func(f map[string]string) {
				f["etc/pam.d/sudo-i"] = "@include common-account\nsession " + control + "session optional pam_systemd.so\n"
			},
		},
		{
			what: "PAM, session of sudo", says: "no pam_curfew.so",
			files: func(f map[string]string) {
				f["etc/pam.d/sudo"] = "@include common-account\nsession required pam_unix.so\n"
			},
		},
		{
			what: "other services by which people get in", says: "vsftpd (the account stack has no",
			files: file("etc/pam.d/vsftpd", "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_unix.so\n"),
		},
		{what: "sshd has Curfew's settings", says: "no line", files: file("etc/ssh/sshd_config.d/50-curfew.conf", "#\n")},
		{what: "sshd's usepam", says: "does not ask PAM", sshd: strings.Replace(wellSSHD, "usepam yes", "usepam no", 1)},
		{
			what: "sshd's authorizedkeysfile", says: ".ssh/authorized_keys",
			sshd: strings.Replace(wellSSHD, "/run/curfew/keys/%u", ".ssh/authorized_keys", 1),
		},
		{
			what: "sshd's authenticationmethods", says: "any",
			sshd: strings.Replace(wellSSHD, "authenticationmethods publickey", "authenticationmethods any", 1),
		},
		{what: "sshd lets Curfew accounts in", says: "AllowGroups lets only", sshd: wellSSHD + "allowgroups sre\nallowgroups staff\n"},
		{what: "sshd lets Curfew accounts in", says: "AllowUsers lets only", sshd: wellSSHD + "allowusers dana@10.0.0.1\n"},
		{what: "sshd lets Curfew accounts in", says: "DenyGroups holds", sshd: wellSSHD + "denygroups curfew-*\n"},
		{what: "kernel 5.4.0", says: "openat2", host: func(h *Host) { h.Kernel = "5.4.0" }},
		{what: "kernel 5.10.0-28-amd64", says: "process by process", host: func(h *Host) { h.Kernel = "5.10.0-28-amd64" }},
		{what: "cgroup version 2", says: "there is none", files: gone("sys/fs/cgroup/cgroup.controllers")},
		{what: "systemd is PID 1", says: "private", files: gone("run/systemd/private")},
		{what: "the clock is kept in time", says: "nobody keeps it", host: func(h *Host) {
			h.Clock = func() error { return errors.New("nobody keeps it") }
		}},
		{what: "break-glass", says: "is missing", files: swap("etc/group", "curfew-breakglass", "other")},
		{what: "break-glass", says: "nobody is in", files: swap("etc/group", "991:rescue", "991:")},
		{what: "break-glass", says: "neither a password nor a key", files: gone("home/rescue/.ssh/authorized_keys")},
		{what: "break-glass", says: "has expired", files: swap("etc/shadow", "7:::\n", "7::19001:\n")},
		{
			what: "break-glass", says: "shell /usr/sbin/nologin",
			files: swap("etc/passwd", "/home/rescue:/bin/sh", "/home/rescue:/usr/sbin/nologin"),
		},
		{what: "people of gated_users and elevate_users", says: "hans does not exist", host: func(h *Host) {
			h.Gated = append(h.Gated, "hans")
		}},
		{what: "people of gated_users and elevate_users", says: "never gated", host: func(h *Host) {
			h.Elevate = []string{"rescue"}
		}},
		{what: "homes at /homes", says: "there is no", host: func(h *Host) { h.HomeRoot = "/homes" }},
	} {
		t.Run(tt.what+": "+tt.says, func(t *testing.T) {
			files, said := maps.Clone(wellHost()), wellSSHD
			if tt.files != nil {
				tt.files(files)
			}
			if tt.sshd != "" {
				said = tt.sshd
			}
			found := 0
			for _, f := range look(t, files, said, tt.host) {
				if f.Err == nil {
					continue
				}
				found++
				if f.What != tt.what || !strings.Contains(f.Err.Error(), tt.says) {
					t.Errorf("%s: %v", f.What, f.Err)
				}
				if f.Mend == "" {
					t.Errorf("%s: %v: and no word on how to mend it", f.What, f.Err)
				}
			}
			if found == 0 {
				t.Error("nothing is found")
			}
		})
	}
}

// Folders and modules that others may write to are worth nothing.
func TestWhoMayWrite(t *testing.T) {
	h := Host{Root: t.TempDir()}
	if err := os.Mkdir(h.at("keys"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.rootsOwn("keys"); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(h.at("keys"), 0o775); err != nil {
		t.Fatal(err)
	}
	if err := h.rootsOwn("keys"); err == nil || !strings.Contains(err.Error(), "0775") {
		t.Errorf("a folder that a group may write to: %v", err)
	}
	if err := errors.Join(os.Chmod(h.at("keys"), 0o755), os.Chown(h.at("keys"), 1000, 0)); err != nil {
		t.Fatal(err)
	}
	if err := h.rootsOwn("keys"); err == nil || !strings.Contains(err.Error(), "not root's") {
		t.Errorf("somebody's folder: %v", err)
	}
}

func TestSudoVersions(t *testing.T) {
	for said, ok := range map[string]bool{
		"Sudo version 1.9.13p3\nmore": true, "Sudo version 1.8.20": true, "Sudo version 2.0.0": true,
		"Sudo version 1.8.19p2": false, "sudo-rs 0.2.5": false, "": false,
	} {
		if err := tooOld(said); (err == nil) != ok {
			t.Errorf("%q: %v", said, err)
		}
	}
}

// An include that leads back to itself ends.
func TestIncludesEnd(t *testing.T) {
	files := wellHost()
	files["etc/pam.d/login"] = "@include login\n"
	files["etc/ssh/sshd_config"] = "Include /etc/ssh/sshd_config\n"
	found := make(map[string]string)
	for _, f := range look(t, files, wellSSHD, nil) {
		if f.Err != nil {
			found[f.What] = f.Err.Error()
		}
	}
	if !strings.Contains(found["PAM, account of login"], "includes itself") ||
		!strings.Contains(found["sshd's settings"], "too many") {
		t.Errorf("%v", found)
	}
}

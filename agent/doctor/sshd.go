package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	sshdConfig = "etc/ssh/sshd_config"
	dropIn     = "etc/ssh/sshd_config.d/50-curfew.conf"
	// probe stands for a Curfew account, of which there may be none at the moment.
	probe       = "curfew-doctor"
	maxSSHFiles = 256
)

// match is the line under which sshd reads Curfew's settings for Curfew's accounts.
var match = regexp.MustCompile(`(?mi)^[ \t]*Match[ \t]+Group[ \t]+curfew-users[ \t]*$`)

// sshd asks sshd itself what holds for a Curfew account. sshd cannot be asked about a group whose
// members do not exist yet, so it reads a copy of its configuration in which Curfew's block is for a
// user of that name instead; everything else in the copy is as the host has it.
func (h Host) sshd(ctx context.Context) []Finding {
	if _, err := os.Stat(h.at("usr/sbin/sshd")); err != nil {
		return []Finding{{
			What: "sshd", Err: err, Warning: true, Mend: "install openssh-server, if people are to log in",
		}}
	}
	list := []Finding{{What: "sshd has Curfew's settings", Mend: "reinstall curfew-agent"}}
	text, err := h.read(dropIn)
	if err == nil && !match.MatchString(text) {
		err = fmt.Errorf("/%s has no line: Match Group curfew-users", dropIn)
	}
	if list[0].Err = err; err != nil {
		return list
	}
	said, err := h.askSSHD(ctx)
	if err != nil {
		return append(list, Finding{What: "sshd's settings", Err: err, Mend: "sshd -t, and mend what it says"})
	}
	return append(list, judgeSSHD(said)...)
}

// askSSHD returns what sshd would do with a Curfew account: keywords in lower case, a value a line.
func (h Host) askSSHD(ctx context.Context) (said map[string][]string, err error) {
	dir, err := os.MkdirTemp("", "curfew-doctor-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := copier{host: h, dir: dir}
	main, err := c.copy(sshdConfig, 0)
	if err != nil {
		return nil, err
	}
	out, err := h.Run(ctx, h.at("usr/sbin/sshd"), "-T", "-f", main, "-C",
		"user="+probe+",host=curfew.invalid,addr=192.0.2.1,laddr=192.0.2.2,lport=22")
	if err != nil {
		return nil, err
	}
	said = make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		keyword, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		said[strings.ToLower(keyword)] = append(said[strings.ToLower(keyword)], value)
	}
	return said, nil
}

// copier copies sshd's files, with includes that lead to the copies.
type copier struct {
	host Host
	dir  string
	n    int
}

var include = regexp.MustCompile(`(?i)^[ \t]*Include[ \t=]+(.*)$`)

func (c *copier) copy(name string, depth int) (string, error) {
	if c.n++; c.n > maxSSHFiles || depth > 16 {
		return "", fmt.Errorf("/%s and what it includes are too many files", sshdConfig)
	}
	to := filepath.Join(c.dir, fmt.Sprintf("%d.conf", c.n))
	text, err := c.host.read(name)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for line := range strings.Lines(match.ReplaceAllString(text, "Match User "+probe)) {
		m := include.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if m == nil {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
			continue
		}
		for pattern := range strings.FieldsSeq(m[1]) {
			copies, err := c.included(strings.Trim(pattern, `"`), depth)
			if err != nil {
				return "", err
			}
			b.WriteString(copies)
		}
	}
	return to, os.WriteFile(to, []byte(b.String()), 0o600)
}

func (c *copier) included(pattern string, depth int) (string, error) {
	if !path.IsAbs(pattern) {
		pattern = "/etc/ssh/" + pattern
	}
	names, err := filepath.Glob(c.host.at(pattern))
	if err != nil {
		return "", fmt.Errorf("including %s: %w", pattern, err)
	}
	var b strings.Builder
	for _, name := range names {
		rel, err := filepath.Rel(c.host.Root, name)
		if err != nil {
			return "", err
		}
		to, err := c.copy(rel, depth+1)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "Include %s\n", to)
	}
	return b.String(), nil
}

// effective are the settings of Curfew's block (packaging/sshd_config.d), as sshd must say them.
var effective = []struct{ keyword, value, why string }{
	{"usepam", "yes", "sshd does not ask PAM, and so nobody asks Curfew"},
	{"pubkeyauthentication", "yes", "no key of a grant opens anything"},
	{"authorizedkeysfile", "/run/curfew/keys/%u", "keys of grants are not read, or others count beside them"},
	{"authorizedkeyscommand", "none", "keys of a command count for Curfew accounts"},
	{"trustedusercakeys", "none", "certificates count for Curfew accounts"},
	{"authenticationmethods", "publickey", "something else than a grant's key opens a login, or is needed too"},
	{"permituserrc", "no", "a file of an earlier grant runs at the next login"},
}

func judgeSSHD(said map[string][]string) []Finding {
	var list []Finding
	for _, e := range effective {
		f := Finding{
			What: "sshd's " + e.keyword,
			Mend: "let sshd_config begin with: Include /etc/ssh/sshd_config.d/*.conf\n" +
				"         and take away what says otherwise before: grep -ri " + e.keyword + " /etc/ssh",
		}
		if e.keyword == "usepam" || e.keyword == "pubkeyauthentication" {
			f.Mend = "write " + e.keyword + " " + e.value + " into sshd_config, then: systemctl reload ssh"
		}
		if got := strings.Join(said[e.keyword], " "); !strings.EqualFold(got, e.value) {
			f.Err = fmt.Errorf("it is %q for a Curfew account, not %q: %s", got, e.value, e.why)
		}
		list = append(list, f)
	}
	return append(list, allowed(said))
}

// allowed looks at the lists that say who may come by ssh at all.
func allowed(said map[string][]string) Finding {
	f := Finding{
		What: "sshd lets Curfew accounts in", Warning: true,
		Mend: "name curfew-users in AllowGroups, and Curfew's people in AllowUsers if that is set",
	}
	const group = "curfew-users"
	switch {
	case fits(said["denygroups"], group):
		f.Err = fmt.Errorf("DenyGroups holds %s", strings.Join(said["denygroups"], " "))
	case len(said["allowusers"]) > 0 && !fits(said["allowusers"], probe):
		f.Err = fmt.Errorf("AllowUsers lets only these in: %s", strings.Join(said["allowusers"], " "))
	case len(said["allowgroups"]) > 0 && !fits(said["allowgroups"], group):
		f.Err = fmt.Errorf("AllowGroups lets only these in: %s", strings.Join(said["allowgroups"], " "))
	case fits(said["denyusers"], probe):
		f.Err = fmt.Errorf("DenyUsers keeps out: %s", strings.Join(said["denyusers"], " "))
	}
	return f
}

// fits tells whether one of sshd's patterns fits a name.
func fits(patterns []string, name string) bool {
	for _, line := range patterns {
		for p := range strings.FieldsSeq(line) {
			p, _, _ = strings.Cut(p, "@")
			if ok, err := path.Match(p, name); err == nil && ok {
				return true
			}
		}
	}
	return false
}

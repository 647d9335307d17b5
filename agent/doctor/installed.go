package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/curfew-access/curfew/agent/enforce/account"
)

// installed looks for what the package puts in place, and who may change it.
func (h Host) installed(context.Context) []Finding {
	list := []Finding{
		{
			What: "PAM module", Err: h.rootsOwn("usr/lib/*/security/pam_curfew.so",
				"lib/*/security/pam_curfew.so", "usr/lib64/security/pam_curfew.so"),
			Mend: "reinstall libpam-curfew",
		},
		{
			What: "NSS module", Err: h.rootsOwn("usr/lib/*/libnss_curfew.so.2",
				"lib/*/libnss_curfew.so.2", "usr/lib64/libnss_curfew.so.2"),
			Mend: "reinstall libnss-curfew",
		},
	}
	local, err := account.ReadLocal(h.at(""))
	if err != nil {
		return append(list, Finding{What: "/etc/passwd and /etc/group", Err: err, Mend: "mend the file"})
	}
	if _, ok := local.Group("curfew-users"); !ok {
		err = errors.New("it is missing from /etc/group")
	}
	list = append(list, Finding{What: "group curfew-users", Err: err, Mend: "systemd-sysusers"})
	err = nil
	if _, ok := local.User("curfew-link"); !ok {
		err = errors.New("it is missing from /etc/passwd")
	}
	list = append(list, Finding{What: "user curfew-link", Err: err, Mend: "systemd-sysusers"})
	for _, dir := range []string{"run/curfew", "run/curfew/keys", "run/curfew/sudoers.d"} {
		list = append(list, Finding{
			What: "folder /" + dir, Err: h.rootsOwn(dir),
			Mend: "systemd-tmpfiles --create curfew-agent.conf",
		})
	}
	return list
}

// rootsOwn demands a file or folder, by any of the names, that is root's and that nobody else can
// write: sshd and sudo refuse what others can write, and so should anybody.
func (h Host) rootsOwn(patterns ...string) error {
	for _, p := range patterns {
		names, err := filepath.Glob(h.at(p))
		if err != nil {
			return err
		}
		for _, name := range names {
			info, err := os.Stat(name)
			if err != nil {
				return err
			}
			owner, ok := info.Sys().(*syscall.Stat_t)
			switch {
			case !ok || owner.Uid != 0:
				return fmt.Errorf("%s is not root's", name)
			case info.Mode().Perm()&0o022 != 0:
				return fmt.Errorf("%s has mode %04o: others may write to it", name, info.Mode().Perm())
			}
			return nil
		}
	}
	return fmt.Errorf("there is no /%s", strings.Join(patterns, " or /"))
}

// names looks at nsswitch.conf: the lines by which anybody on this host finds Curfew's accounts.
func (h Host) names(context.Context) []Finding {
	text, err := h.read("etc/nsswitch.conf")
	if err != nil {
		return []Finding{{What: "nsswitch.conf", Err: err, Mend: setup}}
	}
	lines := nsswitch(text)
	var list []Finding
	for _, db := range []string{"passwd", "group", "shadow"} {
		list = append(list, Finding{
			What: "nsswitch.conf, " + db, Err: reachesCurfew(db, lines[db]), Mend: setup,
		})
	}
	if line, ok := lines["initgroups"]; ok {
		// Where this line stands, glibc takes a user's groups from it and not from group.
		list = append(list, Finding{
			What: "nsswitch.conf, initgroups", Err: reachesCurfew("initgroups", line),
			Mend: "delete the line initgroups from /etc/nsswitch.conf, or put curfew behind files in it",
		})
	}
	if line, ok := lines["sudoers"]; ok {
		list = append(list, h.sudoersSources(line)...)
	}
	return list
}

// sudoersSources looks at where sudo takes rules from. Rules of a directory cannot be read here, so
// that nobody can tell which of them stand beside a grant's.
func (h Host) sudoersSources(line []string) []Finding {
	list := []Finding{{What: "sudo reads its files"}}
	foreign := false
	list[0].Err = errors.New("the line sudoers of nsswitch.conf has no files: sudo reads no rule of a grant")
	list[0].Mend = "put files first in the line sudoers of /etc/nsswitch.conf"
	for _, source := range line {
		switch {
		case source == "files":
			list[0].Err = nil
		case strings.HasPrefix(source, "["):
		default:
			foreign = true
		}
	}
	if foreign {
		list = append(list, Finding{
			What: "sudo rules of a directory", Warning: true,
			Err: fmt.Errorf("nsswitch.conf says sudoers: %s; rules that stand there are not seen by "+
				"Curfew, and pass a managed person by", strings.Join(line, " ")),
			Mend: "take managed people's rules out of the directory, or let the line say: sudoers: files",
		})
	}
	return list
}

var sources = regexp.MustCompile(`\[[^\]]*\]|[^\s\[\]]+`)

// nsswitch splits nsswitch.conf into services and [actions] by database.
func nsswitch(text string) map[string][]string {
	lines := make(map[string][]string)
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		db, rest, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		db = strings.TrimSpace(db)
		if _, twice := lines[db]; !twice { // glibc takes the first
			lines[db] = sources.FindAllString(rest, -1)
		}
	}
	return lines
}

// reachesCurfew demands that a look-up that files cannot answer comes to Curfew: nothing before may
// end it. Sources behind Curfew are of no account.
func reachesCurfew(db string, line []string) error {
	files := false
	for i, source := range line {
		switch {
		case source == "curfew":
			if !files && db != "initgroups" {
				return fmt.Errorf("in %s, curfew stands before files: local people come first", db)
			}
			return nil
		case source == "files" || source == "compat":
			files = true
		case strings.HasPrefix(source, "["):
			if what := ends(source); what != "" && i > 0 {
				return fmt.Errorf("in %s, %s behind %s ends the look-up before it comes to curfew", db,
					what, line[i-1])
			}
		}
	}
	return fmt.Errorf("the line %s does not name curfew", db)
}

// ends returns the part of an action list that ends look-ups which found nothing, or "".
func ends(actions string) string {
	for part := range strings.FieldsSeq(strings.Trim(actions, "[]")) {
		status, action, _ := strings.Cut(strings.ToUpper(part), "=")
		other, negated := strings.CutPrefix(status, "!")
		if action == "RETURN" && (negated && other != "NOTFOUND" || status == "NOTFOUND") {
			return "[" + part + "]"
		}
	}
	return ""
}

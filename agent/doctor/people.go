package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
)

// people looks at whom agent.yaml names, and at who gets in when all else fails.
func (h Host) people(context.Context) []Finding {
	local, err := account.ReadLocal(h.at(""))
	if err != nil {
		return nil // said by another part
	}
	list := []Finding{h.breakGlass(local)}
	var missing []string
	for _, name := range slices.Concat(h.Gated, h.Elevate) {
		u, ok := local.User(name)
		switch {
		case !ok:
			missing = append(missing, name+" does not exist in /etc/passwd")
		case u.UID < 1000:
			missing = append(missing, name+" has a system uid, which is never gated")
		case slices.ContainsFunc(local.MembersOf(h.BreakGlass), func(m account.LocalUser) bool {
			return m.Name == name
		}):
			missing = append(missing, name+" is in "+h.BreakGlass+", which is never gated")
		}
	}
	named := Finding{
		What: "people of gated_users and elevate_users", Warning: true,
		Mend: "mend the lists in /etc/curfew/agent.yaml",
	}
	if len(missing) > 0 {
		named.Err = errors.New(strings.Join(missing, "; ") + ": Curfew does not hold them")
	}
	home := Finding{
		What: "homes at " + h.HomeRoot, Err: h.rootsOwn(strings.TrimPrefix(h.HomeRoot, "/")),
		Mend: "chown root:root " + h.HomeRoot + " && chmod 755 " + h.HomeRoot,
	}
	if home.Err == nil {
		if err := unix.Access(h.at(h.HomeRoot), unix.W_OK); err != nil {
			home.Err, home.Warning = fmt.Errorf("root may not make homes there: %w", err), true
			home.Mend = "make each home where homes are kept, before its person comes: mode 0700, and theirs"
		}
	}
	return append(list, named, home)
}

// breakGlass wants one person at least who gets in whatever the agent does: a member of the group with
// a shell, an account that has not expired, and a password or a key.
func (h Host) breakGlass(local account.Local) Finding {
	f := Finding{
		What: "break-glass",
		Mend: "give one person an account for it: useradd -m rescue; usermod -aG " + h.BreakGlass +
			" rescue; and put a key that is kept safe into its ~/.ssh/authorized_keys",
	}
	if _, ok := local.Group(h.BreakGlass); !ok {
		f.Err = fmt.Errorf("the group %s is missing", h.BreakGlass)
		f.Mend = "systemd-sysusers; then " + f.Mend
		return f
	}
	members := local.MembersOf(h.BreakGlass)
	if len(members) == 0 {
		f.Err = fmt.Errorf("nobody is in the group %s: if all goes wrong, only root gets in", h.BreakGlass)
		return f
	}
	var why []string
	for _, u := range members {
		err := h.getsIn(u)
		if err == nil {
			return f
		}
		why = append(why, fmt.Sprintf("%s %v", u.Name, err))
	}
	f.Err = fmt.Errorf("nobody of %s could get in: %s", h.BreakGlass, strings.Join(why, "; "))
	return f
}

func (h Host) getsIn(u account.LocalUser) error {
	if strings.HasSuffix(u.Shell, "nologin") || strings.HasSuffix(u.Shell, "false") {
		return fmt.Errorf("has the shell %s", u.Shell)
	}
	if _, err := os.Stat(h.at(u.Shell)); err != nil {
		return fmt.Errorf("has a shell that is not there: %w", err)
	}
	hash, expires, err := h.shadow(u.Name)
	if err != nil {
		return err
	}
	if expires > 0 && time.Now().Unix()/86400 >= expires {
		return errors.New("has expired")
	}
	if len(hash) > 2 && hash[0] == '$' {
		return nil
	}
	keys, err := h.read(strings.TrimPrefix(u.Home, "/") + "/.ssh/authorized_keys")
	for line := range strings.Lines(keys) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return nil
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.New("has neither a password nor a key")
}

// shadow reads a line of shadow(5): the password's hash, and the day that the account expires.
func (h Host) shadow(name string) (hash string, expires int64, err error) {
	text, err := h.read("etc/shadow")
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(fields) < 8 || fields[0] != name {
			continue
		}
		expires, err = strconv.ParseInt(fields[7], 10, 64)
		if err != nil {
			expires = 0 // an empty field is no end
		}
		return fields[1], expires, nil
	}
	return "", 0, errors.New("is not in /etc/shadow")
}

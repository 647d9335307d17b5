package cli

import (
	"context"
	"errors"
	"io/fs"
	"os/exec"

	"github.com/spf13/cobra"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// checkView is one check of doctor.
type checkView struct {
	Check string   `json:"check"`
	OK    bool     `json:"ok"`
	Text  string   `json:"text"`
	Hints []string `json:"hints"`
}

func (a *app) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check that this command can do its work, and how to mend it",
		Long: "Check the configuration, the session, the control plane, your SSH key and ssh. It " +
			"changes nothing. Hosts have one of their own: curfew-agent doctor.\n\nPrints a JSON " +
			"array with --json. " + jsonHelp(checkView{}) + "\n\n" + exitHelp,
		Args: cobra.NoArgs,
		RunE: verb(func(ctx context.Context, _ []string) error { return a.doctor(ctx) }),
	}
}

// doctor runs every check that the ones before leave possible.
func (a *app) doctor(ctx context.Context) error {
	checks := []checkView{a.checkSSH()}
	c, err := a.connect()
	if err != nil {
		checks = append(checks, broken("configuration", err))
	} else {
		defer c.close()
		checks = append(checks, passed("configuration", c.cfg.User+" at "+c.cfg.Server),
			a.checkSession(ctx, c), a.checkKey(c.cfg))
	}
	bad := 0
	for _, check := range checks {
		if !check.OK {
			bad++
		}
	}
	if !a.json {
		a.tellChecks(checks)
	} else if err := jsonList(a.printer, checks); err != nil {
		return err
	}
	if bad > 0 {
		return fail(exitFailed, "%d of %s failed", bad, count(len(checks), "check"))
	}
	return nil
}

func passed(check, text string) checkView {
	return checkView{Check: check, OK: true, Text: text, Hints: []string{}}
}

func broken(check string, err error) checkView {
	view := checkView{Check: check, Text: err.Error(), Hints: []string{}}
	var f *failure
	if errors.As(err, &f) {
		view.Hints = list(f.hints)
	}
	return view
}

func (a *app) checkSSH() checkView {
	path, err := exec.LookPath("ssh")
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return broken("ssh", fail(exitFailed, "ssh is not installed").
			hint("install it (openssh-client); curfew ssh runs it"))
	}
	if err != nil {
		return broken("ssh", err)
	}
	return passed("ssh", path)
}

func (a *app) checkSession(ctx context.Context, c *client) checkView {
	me, err := call(ctx, c, c.signIn.WhoAmI, &apiv1.WhoAmIRequest{})
	if err != nil {
		return broken("session", err)
	}
	return passed("session", "until "+a.when(me.GetSessionExpiresMs()).text+", control plane "+
		me.GetVersion())
}

// checkKey looks for the SSH key that approvals are signed with; it signs nothing.
func (a *app) checkKey(cfg *config) checkView {
	ring := a.keyring()
	key, err := ring.one("", cfg)
	if err = errors.Join(err, ring.close()); err != nil {
		return broken("SSH key", err)
	}
	return passed("SSH key", key.name())
}

func (a *app) tellChecks(checks []checkView) {
	var fields []field
	for _, check := range checks {
		value := styled(green, "ok   "+check.Text)
		if !check.OK {
			value = styled(red, "BAD  "+check.Text)
		}
		fields = append(fields, field{check.Check, value})
		for _, hint := range check.Hints {
			fields = append(fields, field{"", text("     " + hint)})
		}
	}
	a.Fields(fields)
}

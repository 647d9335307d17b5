package agentcli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
)

func newDoctor(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Say what works on this host, what does not, and how to mend it",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			return diagnose(c.Context(), stdout, "/")
		},
	}
}

// finding is one thing that was looked at. A nil Err is good.
type finding struct {
	what string
	err  error
	mend string
}

// diagnose prints a line per finding and fails when one of them is bad.
func diagnose(ctx context.Context, out io.Writer, root string) error {
	bad := 0
	for _, f := range findings(ctx, root) {
		if f.err == nil {
			fmt.Fprintf(out, "ok       %s\n", f.what)
			continue
		}
		bad++
		fmt.Fprintf(out, "problem  %s: %v\n", f.what, f.err)
		if f.mend != "" {
			fmt.Fprintf(out, "         mend it: %s\n", f.mend)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d problems", bad)
	}
	return nil
}

func findings(ctx context.Context, root string) []finding {
	at := func(name string) string { return filepath.Join(root, name) }
	setup := "/usr/lib/curfew/setup agent"
	list := []finding{
		{
			"this host has joined", exists(at(enforce.StateDir + "/ledger.json")),
			"curfew-agent join --server HOST:PORT TOKEN",
		},
		{"/etc/curfew/agent.yaml", settings(at(agent.ConfigPath)), "edit the line that is named"},
		{"group " + enforce.UsersGroup, group(root, enforce.UsersGroup), "systemd-sysusers"},
		{"user " + agent.LinkUser, user(root, agent.LinkUser), "systemd-sysusers"},
		{"PAM module", found(at("usr/lib/*/security/pam_curfew.so"),
			at("lib/*/security/pam_curfew.so")), "reinstall libpam-curfew"},
		{"NSS module", found(at("usr/lib/*/libnss_curfew.so.2"),
			at("lib/*/libnss_curfew.so.2")), "reinstall libnss-curfew"},
		{"sudo includes Curfew's rules", holds(at("etc/sudoers.d/curfew"),
			`(?m)^[#@]includedir /run/curfew/sudoers\.d$`), setup},
		{"sshd has Curfew's settings", holds(at("etc/ssh/sshd_config.d/50-curfew.conf"),
			`(?m)^Match Group curfew-users$`), "reinstall curfew-agent"},
		{
			"sshd reads sshd_config.d",
			holds(at("etc/ssh/sshd_config"), `(?mi)^\s*Include\s+.*sshd_config\.d/`),
			"begin /etc/ssh/sshd_config with: Include /etc/ssh/sshd_config.d/*.conf",
		},
	}
	for _, db := range []string{"passwd", "group", "shadow"} {
		list = append(list, finding{"nsswitch.conf, " + db, holds(at("etc/nsswitch.conf"),
			`(?m)^`+db+`:.*\bcurfew\b`), setup})
	}
	for _, stack := range []string{"common-account", "common-session", "common-session-noninteractive"} {
		list = append(list, finding{
			"PAM, " + stack,
			holds(at("etc/pam.d/"+stack), `(?m)^[^#\n]*\bpam_curfew\.so\b`), setup,
		})
	}
	return append(list, running(ctx, at(enforce.RunDir+"/admin.sock"))...)
}

// running asks the root half itself.
func running(ctx context.Context, socket string) []finding {
	status, err := agent.AskStatus(ctx, socket)
	if err != nil {
		return []finding{{"the root half", err, "systemctl enable --now curfew-agent.target"}}
	}
	list := []finding{{what: "the root half runs, mode " + status.Mode}}
	link := finding{what: "the control plane is connected", mend: "systemctl status curfew-link"}
	if !status.Connected || status.Refused != "" {
		link.err = errors.New(connection(status))
	}
	list = append(list, link)
	for _, p := range status.Problems {
		list = append(list, finding{what: "enforcement", err: errors.New(p)})
	}
	return list
}

func exists(name string) error {
	_, err := os.Stat(name)
	return err
}

func settings(name string) error {
	_, err := agent.LoadSettings(name)
	return err
}

func found(patterns ...string) error {
	for _, p := range patterns {
		if names, err := filepath.Glob(p); err == nil && len(names) > 0 {
			return nil
		}
	}
	return fmt.Errorf("there is no %s", strings.Join(patterns, " or "))
}

const maxRead = 1 << 20

func holds(name, pattern string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxRead))
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if !regexp.MustCompile(pattern).Match(data) {
		return fmt.Errorf("%s does not say so", name)
	}
	return nil
}

func group(root, name string) error {
	l, err := account.ReadLocal(root)
	if err != nil {
		return err
	}
	if _, ok := l.Group(name); !ok {
		return errors.New("it is missing from /etc/group")
	}
	return nil
}

func user(root, name string) error {
	l, err := account.ReadLocal(root)
	if err != nil {
		return err
	}
	if _, ok := l.User(name); !ok {
		return errors.New("it is missing from /etc/passwd")
	}
	return nil
}

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "curfew",
		Short: "Access to Linux hosts, for a reason and for a limited time",
		Long: "curfew asks for access to a host, decides about what others ask, uses it and hands " +
			"it back.\n\nData goes to stdout, talk to stderr. Tables are for terminals: in a pipe, " +
			"rows are tab-separated without heading, and times are RFC 3339. --json is there for " +
			"every command that prints data.\n\n" + exitHelp + "\n\n" + environmentHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%w", err).hint("see: %s --help", cmd.CommandPath())
	})
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	root.AddGroup(
		&cobra.Group{ID: "access", Title: "Access:"},
		&cobra.Group{ID: "decide", Title: "Decide:"},
		&cobra.Group{ID: "see", Title: "See:"},
		&cobra.Group{ID: "session", Title: "Session:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add("access", a.requestCmd(), a.editCmd(), a.sshCmd(), a.extendCmd(), a.doneCmd(), a.withdrawCmd())
	add("decide", a.approveCmd(), a.denyCmd(), a.revokeCmd(), a.reviewCmd())
	add("see", a.lsCmd(), a.showCmd(), a.watchCmd(), a.hostsCmd(), a.rolesCmd(), a.logCmd(),
		a.reportCmd())
	add("session", a.loginCmd(), a.logoutCmd(), a.whoamiCmd(), a.sessionsCmd(), a.keysCmd(),
		a.doctorCmd())
	root.AddCommand(a.adminCmd(), a.versionCmd(), manCmd())
	finishTree(root)
	return root
}

const environmentHelp = `Environment:
  CURFEW_CONFIG_DIR  where the configuration lives
                     (default $XDG_CONFIG_HOME/curfew or ~/.config/curfew)
  SSH_AUTH_SOCK      ssh-agent, asked first for keys
  BROWSER            what opens addresses for curfew login --sso
  CURFEW_ID_TOKEN, CURFEW_ID_TOKEN_FILE
                     a pipeline's ID token for curfew login --workload
  NO_COLOR           no colours`

// finishTree gives every command what all have: a wrong number of arguments is a usage error that
// shows the usage line, and help fits a terminal of 80 columns.
func finishTree(cmd *cobra.Command) {
	cmd.Long = wrap(cmd.Long, helpWidth)
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage("%w", err).hint("usage: %s", c.UseLine())
			}
			return nil
		}
	}
	for _, child := range cmd.Commands() {
		finishTree(child)
	}
}

const helpWidth = 80

// wrap breaks the long lines of a help text at spaces; indented lines are tables and stay.
func wrap(s string, limit int) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		for columns(line) > limit && line[0] != ' ' {
			at := strings.LastIndexByte(line[:limit+1], ' ')
			if at <= 0 {
				break
			}
			out, line = append(out, line[:at]), line[at+1:]
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.JSON(map[string]string{"version": a.env.Version})
			}
			a.Line("curfew %s", a.env.Version)
			return nil
		},
	}
}

// manCmd writes a manual page per command, for packages.
func manCmd() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := filepath.Clean(args[0])
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fail(exitFailed, "making %s: %w", dir, err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Section: "1", Source: "Curfew", Manual: "Curfew Manual"}
			if err := doc.GenManTree(root, header, dir); err != nil {
				return fail(exitFailed, "writing manual pages: %w", err)
			}
			return nil
		},
	}
}

// confirmed asks for a yes. Without a terminal there is nobody to ask, and yes must come by flag.
func (a *app) confirmed(yes bool, question string) error {
	if yes {
		return nil
	}
	in := a.terminalInput()
	if in == nil {
		return usage("nobody to ask: stdin is not a terminal").
			hint("read the terms above and repeat with --yes")
	}
	a.Ask("%s [y/N] ", question)
	answer := make([]byte, 64)
	n, err := in.Read(answer)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	switch string(trimLine(answer[:n])) {
	case "y", "Y", "yes", "Yes":
		return nil
	}
	return fail(exitUsage, "not confirmed; nothing was sent")
}

func trimLine(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r' || b[len(b)-1] == ' ') {
		b = b[:len(b)-1]
	}
	return b
}

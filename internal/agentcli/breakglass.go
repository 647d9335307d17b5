package agentcli

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/breakglass/seal"
	"github.com/curfew-access/curfew/internal/grant"
)

const userSocket = "/run/curfew/" + agent.UserSocket

const breakGlassLong = `break-glass opens access for your own login while the control plane cannot be reached: for a
code that a custodian gave you, for a stated reason, and for a limited time. A code is good once and
on this host only. The use is recorded, and everybody who should know hears of it when the control
plane is back. The code is asked for, or read from standard input.`

// useFlags are what using a code takes.
type useFlags struct {
	reason, login string
	duration      time.Duration
}

func newBreakGlass(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	var f useFlags
	c := &cobra.Command{
		Use:   "break-glass --reason TEXT",
		Short: "Open access by a one-use code while the control plane is away",
		Long:  breakGlassLong, Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.run(c.Context(), userSocket, stdin, stdout, stderr)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.reason, "reason", "", "why, for the trail")
	flags.DurationVar(&f.duration, "for", 0, "how long (default and at most: what the host allows)")
	flags.StringVar(&f.login, "login", "", "root only: the login that it is for")
	c.AddCommand(newBreakGlassEnd(stdout), newBreakGlassRenew(stdout, stderr))
	return c
}

func (f *useFlags) run(
	ctx context.Context, socket string, stdin io.Reader, stdout, stderr io.Writer,
) error {
	if err := grant.CheckReason(f.reason); err != nil {
		return fmt.Errorf("%w: --reason: %w", errUsage, err)
	}
	if f.duration < 0 || f.duration%time.Second != 0 {
		return fmt.Errorf("%w: --for %v: whole seconds, such as 20m", errUsage, f.duration)
	}
	code, err := readCode(stdin, stderr)
	if err != nil {
		return err
	}
	opened, err := agent.UseCode(ctx, socket, agent.CodeUse{
		Code: code.String(), Reason: f.reason, Login: f.login, Seconds: int64(f.duration / time.Second),
	})
	if err != nil {
		return err
	}
	if opened.Failed != "" {
		return fmt.Errorf("code %d is spent, but the host cannot enforce what it opened: %s", opened.Code,
			opened.Failed)
	}
	return printOpened(stdout, opened, time.Now())
}

// readCode asks for a code. It is shown as it is typed: 35 characters are hard to get right unseen, and
// when it is accepted it is worth nothing any more. It is no argument, which others could read in /proc.
func readCode(stdin io.Reader, stderr io.Writer) (breakglass.Code, error) {
	if file, ok := stdin.(*os.File); ok && isTerminal(file) {
		fmt.Fprint(stderr, "break-glass code: ")
	}
	line, err := bufio.NewReader(io.LimitReader(stdin, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return breakglass.Code{}, fmt.Errorf("reading the code: %w", err)
	}
	code, err := breakglass.ParseCode(line)
	if err != nil {
		return code, fmt.Errorf("%w; it has %d groups of five, such as %s", err, breakglass.Groups,
			breakglass.Code{1, 2, 3, 4}.String()[:groupsShown]+"…")
	}
	return code, nil
}

// groupsShown is how much of a code stands for the form of all.
const groupsShown = 12

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func printOpened(out io.Writer, o *agent.CodeOpened, now time.Time) error {
	what := "access"
	if o.RootEquivalent {
		what = "ROOT-EQUIVALENT access"
	}
	_, err := fmt.Fprintf(out, "%s for %s (%s) until %s, %v from now\n", what, grant.VisibleText(o.Login),
		o.Class, o.End.Format(time.RFC3339), o.End.Sub(now).Round(time.Second))
	for _, rule := range o.Sudo {
		if err == nil {
			_, err = fmt.Fprintf(out, "  sudo %s\n", grant.VisibleText(rule))
		}
	}
	if err == nil {
		_, err = fmt.Fprintf(out, "request %s; code %d is spent, %d left. To end it early: curfew-agent "+
			"break-glass end\n", o.Request, o.Code, o.Left)
	}
	return err
}

func newBreakGlassEnd(stdout io.Writer) *cobra.Command {
	var login string
	c := &cobra.Command{
		Use: "end", Short: "End what a break-glass code opened for you (root: for anybody)", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ended, err := agent.EndLocal(c.Context(), userSocket, login)
			if err == nil {
				_, err = fmt.Fprintf(stdout, "ended %s\n", strings.Join(ended, " "))
			}
			return err
		},
	}
	c.Flags().StringVar(&login, "login", "", "root only: whose (default: everybody's)")
	return c
}

const renewLong = `renew makes a new set of break-glass codes, seals each to the SSH keys of the custodians
(break_glass.custodians in /etc/curfew/agent.yaml, among the approvers of the host's trust file) and
hands the sealed codes to the control plane. The codes before it are good for nothing from then on.

Keys of type ssh-ed25519 and ssh-rsa can decrypt; FIDO2 (sk-) and ECDSA keys sign only. Where no
custodian has one that can, --print shows the codes once, for an envelope in a safe.`

func newBreakGlassRenew(stdout, stderr io.Writer) *cobra.Command {
	var show bool
	c := &cobra.Command{
		Use: "renew", Short: "Make new break-glass codes; the old ones count no more", Long: renewLong,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			settings, err := agent.LoadSettings(agent.ConfigPath)
			if err != nil {
				return err
			}
			facts, err := agent.ReadHost("/")
			if err != nil {
				return err
			}
			made, err := makeCodes(facts, settings.BreakGlass, show, stderr)
			if err != nil {
				return err
			}
			if err := agent.InstallCodes(c.Context(), adminSocket, made.codes); err != nil {
				return err
			}
			return made.print(stdout, stderr, show)
		},
	}
	c.Flags().BoolVar(&show, "print", false, "print the codes, once, for an envelope in a safe")
	return c
}

// madeCodes is a new set, before it counts.
type madeCodes struct {
	set   *seal.Set
	codes agent.NewCodes
	host  string
}

// makeCodes draws codes and seals them to the custodians. With show nobody has to be able to open them.
func makeCodes(
	facts agent.HostFacts, settings agent.BreakGlass, show bool, stderr io.Writer,
) (*madeCodes, error) {
	to, err := seal.Custodians(facts.Trust, settings.Custodians)
	recipients := &to
	switch {
	case errors.Is(err, seal.ErrNobody) && show:
		recipients = nil
		fmt.Fprintf(stderr, "warning: %v: the codes are sealed to nobody\n", err)
	case errors.Is(err, seal.ErrNobody):
		return nil, fmt.Errorf("%w; have one added (curfew keys add), or print the codes for an envelope: "+
			"curfew-agent break-glass renew --print", err)
	case err != nil:
		return nil, err
	case len(to.Without) > 0:
		fmt.Fprintf(stderr, "warning: no key of %s can decrypt: they cannot open these codes\n",
			strings.Join(to.Without, ", "))
	}
	set, err := seal.Draw(facts.Host, settings.Codes, recipients, time.Now(), rand.Reader)
	if err != nil {
		return nil, err
	}
	m := &madeCodes{set: set, host: facts.Name, codes: agent.NewCodes{
		Set: set.ID, Hashes: set.Hashes, Printed: show, Custodians: strings.Join(to.Names, " "),
	}}
	if set.Sealed != nil {
		if m.codes.Sealed, err = proto.Marshal(set.Sealed); err != nil {
			return nil, fmt.Errorf("encoding the sealed codes: %w", err)
		}
	}
	return m, nil
}

// print says what counts from now on.
func (m *madeCodes) print(stdout, stderr io.Writer, show bool) error {
	if m.set.Sealed != nil {
		fmt.Fprintf(stderr, "%d break-glass codes are in force, sealed to: %s\n", len(m.set.Codes),
			m.codes.Custodians)
	}
	if !show {
		return nil
	}
	_, err := fmt.Fprintf(stdout, "Curfew break-glass codes of %s, set %s. Each is good once, on this host, "+
		"while its control plane is away.\n", m.host, m.set.ID)
	for i, c := range m.set.Codes {
		if err == nil {
			_, err = fmt.Fprintf(stdout, "%2d  %s\n", i+1, c)
		}
	}
	return err
}

// firstCodes makes the codes of a host that has just joined, where its file enables them.
func firstCodes(stdout, stderr io.Writer, show bool) error {
	settings, err := agent.LoadSettings(agent.ConfigPath)
	if err != nil {
		return err
	}
	if !settings.BreakGlass.Enabled {
		return nil
	}
	facts, err := agent.ReadHost("/")
	if err != nil {
		return err
	}
	made, err := makeCodes(facts, settings.BreakGlass, show, stderr)
	if err != nil {
		return err
	}
	if err := agent.FirstCodes("/", made.codes); err != nil {
		return err
	}
	return made.print(stdout, stderr, show)
}

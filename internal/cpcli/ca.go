package cpcli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/controlplane"
)

const caLong = `The CA certifies the control plane's own TLS and the links of hosts; everybody knows the control plane by
its pin. It opens nothing: grants are sealed by another key. It is replaced in three steps, and nobody is
lost on the way:

  curfew-controlplane ca rotate    draw the next CA; hosts and people learn to accept both
  curfew-controlplane ca switch    once all do: put it into force; hosts get certificates from it
  curfew-controlplane ca drop      once all have: the old one counts for nothing any more

Where the CA's key is lost and no backup holds it: ca rotate --lost. docs/operate/ca.md has it step by step.`

func (a *app) caCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "ca", Short: "See and replace the CA that hosts and people know this by", Long: caLong}
	cmd.AddCommand(a.caShowCmd(), a.caRotateCmd(), a.caSwitchCmd(), a.caDropCmd())
	return cmd
}

func (a *app) caShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print the CA's pin, and which hosts accept what", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				ca, err := o.CA(cmd.Context())
				if err == nil {
					a.showCA(ca)
				}
				return err
			})
		},
	}
}

func (a *app) showCA(ca controlplane.CA) {
	fmt.Fprintf(a.out, "CA pin:   %s\n", ca.Pin)
	if ca.Next != "" {
		fmt.Fprintf(a.out, "next:     %s, which %s\n", ca.Next, accepted(ca))
	}
	for _, old := range ca.Old {
		fmt.Fprintf(a.out, "old:      %s, which still counts\n", old)
	}
	if len(ca.Behind) == 0 {
		fmt.Fprintf(a.out, "hosts:    all %d show certificates from the CA in force\n", ca.Hosts)
		return
	}
	fmt.Fprintf(a.out, "hosts:    %d of %d show certificates from an older CA: %s\n", len(ca.Behind), ca.Hosts,
		strings.Join(ca.Behind, ", "))
}

func accepted(ca controlplane.CA) string {
	if len(ca.NotYet) == 0 {
		return fmt.Sprintf("all %d hosts accept", ca.Hosts)
	}
	return fmt.Sprintf("%d of %d hosts do not accept yet: %s", len(ca.NotYet), ca.Hosts,
		strings.Join(ca.NotYet, ", "))
}

func (a *app) caRotateCmd() *cobra.Command {
	var lost bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Draw the CA that shall take the present one's place", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lost {
				return a.replaceLostCA(cmd)
			}
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				ca, err := o.PrepareCA(cmd.Context())
				if err != nil {
					return err
				}
				a.say("The next CA is drawn. The server takes it up within seconds and tells hosts as they connect,")
				a.say("and people as they sign in. Nothing has changed for anybody yet. Its pin:")
				fmt.Fprintln(a.out, ca.Next)
				a.say("Once `curfew-controlplane ca show` says that all hosts accept it, and everybody has signed in:")
				a.say("  curfew-controlplane ca switch")
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&lost, "lost", false, "the key of the present CA is gone: put a new one into force at once")
	return cmd
}

func (a *app) replaceLostCA(cmd *cobra.Command) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	pin, err := controlplane.ReplaceLostCA(cmd.Context(), c.DataDir, time.Now)
	if err != nil {
		return err
	}
	a.say("A new CA is in force. Nobody accepts it by themselves: until they do, hosts open nothing new after")
	a.say("their lease, and what runs goes on. Its pin:")
	fmt.Fprintln(a.out, pin)
	a.say("On each host, as root:   curfew-agent trust-ca PIN")
	a.say("Everybody:               curfew login --ca-pin PIN")
	a.say("Join tokens made before and images that hold the old pin join nothing any more.")
	return nil
}

func (a *app) caSwitchCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "switch", Short: "Put the next CA into force; hosts get certificates from it", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				ca, err := o.SwitchCA(cmd.Context(), force)
				if err != nil {
					return a.hostsBehind(err, "curfew-agent trust-ca "+ca.Next)
				}
				a.say("The new CA is in force: the server takes it up within seconds. Its pin:")
				fmt.Fprintln(a.out, ca.Pin)
				a.say("Hosts get certificates from it as they connect. Once `curfew-controlplane ca show` says that all")
				a.say("have: curfew-controlplane ca drop")
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "without the hosts that do not accept it yet")
	return cmd
}

func (a *app) caDropCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "drop", Short: "Have the CAs before the present one count for nothing", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.offline(cmd, func(o *controlplane.Offline, _ controlplane.Config) error {
				ca, err := o.DropCA(cmd.Context(), force)
				if err != nil {
					return a.hostsBehind(err, "")
				}
				a.say("Dropped: %s. Only certificates from the CA in force count.", strings.Join(ca.Old, ", "))
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "without the hosts whose certificates are from them: they join anew")
	return cmd
}

// hostsBehind says what becomes of hosts that a step would lose.
func (a *app) hostsBehind(err error, cure string) error {
	if !errors.Is(err, controlplane.ErrHostsBehind) {
		return err
	}
	a.say("They do so by themselves once they connect. A host that is gone for good: curfew admin host rm.")
	if cure != "" {
		a.say("With --force it is done without them; then, on each of them as root: %s", cure)
	}
	return err
}

package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func (a *app) sshCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh HOST [ARG…]",
		Short: "Connect to a host whose keys are pinned",
		Long: "Run ssh to a host as your login name. The host's keys are those that it showed when " +
			"it was enrolled; no other key is accepted and nothing is learned or asked.\n\n" +
			"What follows HOST goes to ssh: options of ssh, or the command to run. The exit status " +
			"is ssh's own once it runs (255 when ssh failed).",
		Example:           "  curfew ssh web1\n  curfew ssh web1 sudo systemctl restart nginx.service",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(oneOf(manyHosts)),
		RunE:              a.verb(a.ssh),
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (a *app) ssh(ctx context.Context, c *client, args []string) error {
	host, err := c.host(ctx, args[0])
	if err != nil {
		return err
	}
	login, err := a.loginOn(ctx, c, host.GetName())
	if err != nil {
		return err
	}
	known, err := knownHosts(host)
	if err != nil {
		return err
	}
	defer func() {
		if err := os.RemoveAll(filepath.Dir(known)); err != nil {
			a.Warn("a temporary file stays behind: %v", err)
		}
	}()
	argv, err := sshArgs(host, login, known, c.cfg.KeyFile, args[1:])
	if err != nil {
		return err
	}
	return a.runSSH(ctx, argv)
}

// loginOn is the login name on the host: that of live terms, else the session's user. Without live
// access it says how to get it; whether to let somebody in is the host's to decide.
func (a *app) loginOn(ctx context.Context, c *client, host string) (string, error) {
	requests, err := c.list(ctx,
		&apiv1.RequestFilter{Mine: true, Open: true, Host: host, Limit: maxList})
	if err != nil {
		return "", err
	}
	waiting := ""
	for _, r := range requests {
		if r.GetState() == apiv1.RequestState_REQUEST_STATE_GRANTED && liveOn(r, host) {
			if terms, err := grant.ParseTerms(r.GetTerms()); err == nil {
				return terms.GetLogin(), nil
			}
		}
		waiting = r.GetId()
	}
	if waiting != "" {
		a.Hint("no live access to %s yet; see: curfew show %s", host, waiting)
	} else {
		a.Hint("no live access to %s; ask for it: curfew request %s --role ROLE --for 30m "+
			"--reason \"why\"", host, host)
	}
	return c.cfg.User, nil
}

// liveOn says whether the host has confirmed a grant of the request that has not ended.
func liveOn(r *apiv1.Request, host string) bool {
	for _, g := range r.GetGrants() {
		if g.GetHostName() == host && g.GetEndedMs() == 0 &&
			g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			return true
		}
	}
	return false
}

// alias is the name under which the host's keys are known; it cannot clash with a real host.
func alias(h *apiv1.Host) string { return "curfew-" + hex.EncodeToString(h.GetId()) }

// knownHosts writes the enrolled keys to a file of its own, in a folder of its own, 0600.
func knownHosts(h *apiv1.Host) (string, error) {
	if _, err := grant.HostIDFromBytes(h.GetId()); err != nil {
		return "", fail(exitFailed, "host %s: %w", h.GetName(), err)
	}
	if len(h.GetSshHostKeys()) == 0 {
		return "", fail(exitFailed, "host %s showed no SSH host key when it was enrolled",
			h.GetName()).hint("enrol it anew: curfew admin host add %s", h.GetName())
	}
	var b strings.Builder
	for _, line := range h.GetSshHostKeys() {
		key, err := grant.ParseSSHKey(line)
		if err != nil {
			return "", fail(exitFailed, "host %s: host key: %w", h.GetName(), err)
		}
		fmt.Fprintf(&b, "%s %s\n", alias(h), grant.SSHKeyText(key))
	}
	dir, err := os.MkdirTemp("", "curfew-ssh-")
	if err != nil {
		return "", fmt.Errorf("making a place for known_hosts: %w", err)
	}
	path := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return "", errors.Join(fmt.Errorf("writing known_hosts: %w", err), os.RemoveAll(dir))
	}
	return path, nil
}

// sshArgs is the whole command line. Options given here win over the person's ssh_config; a shared
// connection, which was made without the pin, is not used.
func sshArgs(h *apiv1.Host, login, known, keyFile string, rest []string) ([]string, error) {
	address, port, err := sshAddress(h)
	if err != nil {
		return nil, err
	}
	if err := grant.CheckUserName(login); err != nil {
		return nil, fail(exitFailed, "the login on %s: %w", h.GetName(), err)
	}
	argv := []string{"ssh"}
	for _, option := range []string{
		"StrictHostKeyChecking=yes",
		"UserKnownHostsFile=" + quoteOption(known),
		"GlobalKnownHostsFile=/dev/null",
		"HostKeyAlias=" + alias(h),
		"CheckHostIP=no",
		"VerifyHostKeyDNS=no",
		"UpdateHostKeys=no",
		"ControlMaster=no",
		"ControlPath=none",
	} {
		argv = append(argv, "-o", option)
	}
	if keyFile != "" {
		argv = append(argv, "-i", keyFile)
	}
	if port != "" {
		argv = append(argv, "-p", port)
	}
	argv = append(argv, "-l", login, address)
	return append(argv, rest...), nil
}

// quoteOption protects spaces in a path from ssh's own splitting of option values.
func quoteOption(path string) string { return `"` + path + `"` }

// sshAddress checks where ssh shall go: text from an agent must never become an option of ssh.
func sshAddress(h *apiv1.Host) (address, port string, err error) {
	address = h.GetAddress()
	if address == "" {
		address = h.GetName()
	}
	if host, p, err := net.SplitHostPort(address); err == nil {
		address, port = host, p
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:"
	if address == "" || address[0] == '-' || strings.Trim(address, letters) != "" ||
		len(address) > 255 || strings.Trim(port, "0123456789") != "" || len(port) > 5 {
		return "", "", fail(exitFailed, "host %s has the address %q, which ssh cannot use",
			h.GetName(), h.GetAddress())
	}
	return address, port, nil
}

// runSSH runs ssh on this terminal and ends with its status, so that known_hosts can go afterwards.
// What is typed goes to ssh, Ctrl-C included; what ends this command ends ssh.
func (a *app) runSSH(ctx context.Context, argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fail(exitFailed, "ssh is not installed: %w", err)
	}
	cmd := exec.Command(path, argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.env.Stdin, a.env.Stdout, a.env.Stderr
	if err := cmd.Start(); err != nil {
		return fail(exitFailed, "starting ssh: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		// It may be gone already; then there is nobody to tell.
		_ = cmd.Process.Signal(syscall.SIGTERM)
	})
	defer stop()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exitStatus(exit.ExitCode())
	}
	return fail(exitFailed, "ssh: %w", err)
}

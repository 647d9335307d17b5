package agentcli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	jointoken "github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/journal"
	"github.com/curfew-access/curfew/internal/version"
)

func newLink(stderr io.Writer) *cobra.Command {
	var logs logFlags
	var server string
	c := &cobra.Command{
		Use: "link", Short: "Run the link half (systemd does)", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, sink, err := logs.logger("link", stderr)
			if err != nil {
				return err
			}
			defer sink.Close(time.Second)
			settings, err := agent.LoadSettings(agent.ConfigPath)
			if err != nil { // it is the root half's to obey, and to complain about
				log.Error("no metrics are served", "error", err)
			}
			l, err := link.New(link.Config{
				Directory: linkDir, Server: server, Now: time.Now, Log: log, Metrics: settings.MetricsListen,
			})
			if err != nil {
				return err
			}
			return l.Run(c.Context())
		},
	}
	c.Flags().StringVar(&server, "server", "", "another address of the control plane, HOST:PORT")
	logs.add(c)
	return c
}

// joinFlags are what join is told.
type joinFlags struct {
	server, token, name, address string
	cloud, pin, metadata         string
	from, tokenFile              string
	labels                       map[string]string
	hostKeys                     string
	start, printCodes, wait      bool
}

const joinLong = `join makes this machine a host of a control plane: it draws the host's two keys, which never
leave it, proves them with a one-time token from an admin (curfew admin host add) or by what its
cloud says of it (--cloud, where the control plane lists the account), and keeps what comes back. It
runs once. With --from it reads /etc/curfew/join.yaml, as curfew-join.service does at the first boot of
an image. Nobody's access changes by it: a new host observes until somebody writes
mode: enforce into /etc/curfew/agent.yaml.`

func newJoin(stdout, stderr io.Writer) *cobra.Command {
	var f joinFlags
	c := &cobra.Command{
		Use:   "join {--server HOST:PORT {TOKEN | --cloud CLOUD --ca-pin PIN} | --from FILE}",
		Short: "Make this machine a Curfew host",
		Long:  joinLong,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && f.token != "" {
				return fmt.Errorf("%w: one token is enough", errUsage)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				f.token = args[0]
			}
			return f.run(c.Context(), stdout, stderr)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.server, "server", "", "the control plane, HOST:PORT")
	flags.StringVar(&f.token, "token", "", "the one-time token, instead of the argument")
	flags.StringVar(&f.cloud, "cloud", "", "the cloud that vouches for this instance instead: aws, gcp or azure")
	flags.StringVar(&f.pin, "ca-pin", "", "SHA-256 of the control plane's CA, base64url, for --cloud")
	flags.StringVar(&f.metadata, "metadata-url", "", "another address of the metadata service, for tests")
	_ = flags.MarkHidden("metadata-url") // it is there: the line above adds it
	flags.StringVar(&f.name, "name", "", "name of this host (default: the token's or the instance's)")
	flags.StringVar(&f.address, "address", "", "where ssh reaches this host (default: the name)")
	flags.StringToStringVar(&f.labels, "label", nil, "labels, KEY=VALUE, may be repeated")
	flags.StringVar(&f.hostKeys, "ssh-host-keys", "/etc/ssh/ssh_host_*_key.pub",
		"public keys of this host's sshd, as a pattern")
	flags.BoolVar(&f.printCodes, "print-break-glass", false,
		"print the break-glass codes, once, for an envelope in a safe")
	flags.StringVar(&f.from, "from", "", "a file that says the same, such as /etc/curfew/join.yaml")
	flags.BoolVar(&f.wait, "wait", false, "keep trying while the control plane cannot be reached")
	flags.BoolVar(&f.start, "start", false, "start the agent when the host has joined")
	return c
}

func (f *joinFlags) run(ctx context.Context, stdout, stderr io.Writer) error {
	if f.from != "" {
		if err := f.readFrom(f.from); err != nil {
			return err
		}
	}
	pin, err := f.check()
	if err != nil {
		return err
	}
	if err := needRoot(); err != nil {
		return err
	}
	keys, err := readHostKeys(f.hostKeys)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		fmt.Fprintf(stderr, "warning: no file fits %s: people will have to trust this host's ssh key "+
			"at first sight\n", f.hostKeys)
	}
	joined, err := f.persist(ctx, stderr, func() (*link.Joined, error) { return f.join(ctx, pin, keys) })
	if err != nil {
		return err
	}
	if err := f.forgetToken(); err != nil {
		fmt.Fprintf(stderr, "warning: %v\n", err)
	}
	fmt.Fprintf(stdout, "joined %s as %s (host id %s)\n", joined.Organisation, joined.Name,
		joined.HostID)
	journal.Note(filepath.Base(program), "host.joined", "host", joined.Name, "organisation", joined.Organisation)
	if err := writeExample(agent.ConfigPath); err != nil {
		fmt.Fprintf(stderr, "warning: the host has joined, with the defaults for settings: %v\n", err)
	}
	if err := firstCodes(stdout, stderr, f.printCodes); err != nil {
		fmt.Fprintf(stderr, "warning: the host has joined, without break-glass codes: %v\n", err)
	}
	if !f.start {
		fmt.Fprintln(stderr, "hint: start the agent with: systemctl enable --now curfew-agent.target")
		return nil
	}
	return startAgent(ctx)
}

// startAgent starts the agent now, and at each boot: there an image whose /etc takes no writes must have
// seen to it already.
func startAgent(ctx context.Context) error {
	units := []string{"curfew-agent.target", "curfew-enforce.service", "curfew-link.service"}
	systemctl := func(args ...string) ([]byte, error) {
		return exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	}
	out, err := systemctl(append([]string{"start"}, units...)...)
	if err != nil && awaitAgent(ctx) != nil {
		return fmt.Errorf("the host has joined, but the agent does not start: %w: %s", err, out)
	}
	// What is enabled already is not written again.
	if out, err := systemctl(append([]string{"enable"}, units...)...); err != nil {
		return fmt.Errorf("the host has joined and the agent runs, but it would not after a boot: %w: %s; "+
			"enable %s in the image that this host boots from", err, out, strings.Join(units, " "))
	}
	return nil
}

// check reads what the flags say, before anything is touched.
func (f *joinFlags) check() (pin [32]byte, err error) {
	switch {
	case f.server == "" || f.token == "" && f.cloud == "":
		return pin, fmt.Errorf("%w: join needs --server and a token; an admin gets both from "+
			"curfew admin host add; or --cloud and --ca-pin", errUsage)
	case f.token != "" && f.cloud != "":
		return pin, fmt.Errorf("%w: a token and --cloud: want one of them", errUsage)
	case f.cloud == "":
		_, err = jointoken.ParseToken(f.token)
		return pin, err
	}
	if !slices.Contains([]string{jointoken.AWS, jointoken.GCP, jointoken.Azure}, f.cloud) {
		return pin, fmt.Errorf("%w: --cloud %q: want aws, gcp or azure", errUsage, f.cloud)
	}
	if pin, err = jointoken.ParsePin(f.pin); err != nil {
		return pin, fmt.Errorf("%w: --ca-pin: %w", errUsage, err)
	}
	return pin, nil
}

// startLimit is how long a root half may take to start on a slow machine.
const startLimit = 20 * time.Second

// awaitAgent waits for the root half to serve: systemd gives up waiting after two seconds, so that no
// boot hangs on it, and lets it go on.
func awaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		_, err := agent.AskStatus(ctx, adminSocket)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// join draws the root half's key, enrols, and keeps the ledger that enrolment begins.
func (f *joinFlags) join(ctx context.Context, pin [32]byte, hostKeys []string) (*link.Joined, error) {
	state := "/" + enforce.StateDir
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("making the agent's store: %w", err)
	}
	s, err := store.Open(store.Config{Directory: state})
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }() // everything in it was fsynced
	if _, err := s.Ledger(); !errors.Is(err, store.ErrNotJoined) {
		if err == nil {
			err = link.ErrJoined
		}
		return nil, err
	}
	// A key from an attempt that failed may be enrolled already, and a key enrols once.
	if err := s.DropKey(); err != nil {
		return nil, err
	}
	key, err := s.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	uid, gid, err := linkOwner()
	if err != nil {
		return nil, err
	}
	joined, err := link.Join(ctx, link.JoinConfig{
		Server: strings.TrimPrefix(f.server, "https://"), Token: f.token, Cloud: f.cloud, CAPin: pin,
		Metadata: f.metadata, Name: f.name, Address: f.address, Labels: f.labels, SSHHostKeys: hostKeys, RootKey: key,
		AgentVersion: version.Version, Directory: linkDir, UID: uid, GID: gid, Now: time.Now,
	})
	if err != nil {
		return nil, err
	}
	id, err := grant.ParseHostID(joined.HostID)
	if err != nil {
		return nil, err
	}
	ledger, err := grant.NewLedger(id, joined.TrustEnvelope)
	if err != nil {
		return nil, fmt.Errorf("reading the trust file that enrolment gave: %w", err)
	}
	if err := s.SaveHost(store.Host{Name: joined.Name, Organisation: joined.Organisation}); err != nil {
		return nil, err
	}
	return joined, s.SaveLedger(ledger)
}

func linkOwner() (uid, gid int, err error) {
	local, err := account.ReadLocal("/")
	if err != nil {
		return 0, 0, err
	}
	u, ok := local.User(agent.LinkUser)
	if !ok {
		return 0, 0, fmt.Errorf("the user %s is missing; run systemd-sysusers", agent.LinkUser)
	}
	return int(u.UID), int(u.GID), nil
}

const maxHostKeys = 16

func readHostKeys(pattern string) ([]string, error) {
	if pattern == "" {
		return nil, nil
	}
	names, err := filepath.Glob(pattern)
	if err != nil {
		return nil, fmt.Errorf("%w: --ssh-host-keys: %w", errUsage, err)
	}
	slices.Sort(names)
	var keys []string
	for _, name := range names[:min(len(names), maxHostKeys)] {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading the ssh host keys: %w", err)
		}
		keys = append(keys, strings.TrimSpace(string(data)))
	}
	return keys, nil
}

// example is the configuration that a new host begins with: every line is a default.
const example = `# What Curfew may do on this host, whatever anybody signs. Changes count at once.

# observe records what would be denied and denies nobody; enforce denies.
#mode: observe

#ceiling:
#  max_duration: 24h
#  allowed_groups: []            # local groups that grants may put Curfew accounts into
#  allow_root_equivalent: false  # sudo rules that amount to all of root

#break_glass_group: curfew-breakglass  # whose members Curfew never stands in the way of
#break_glass:                    # one-use codes for when the control plane is away: docs/operate/break-glass.md
#  enabled: false
#  codes: 8
#  custodians: []                # groups of approvers whose SSH keys codes are sealed to; empty: all
#  max_duration: 30m
#  allow_root_equivalent: false
#  sudo: []                      # rules as in a role: {command: /usr/bin/systemctl, args: [restart, nginx.service], contained: true}
#gated_users: []                 # local users who cannot log in without a grant
#elevate_users: []               # local users who get only their sudo from grants
#uid_range: {min: 1900000000, max: 1999999999}
#home_root: /home
#shell: /bin/bash
#skel: /etc/skel
#metrics_listen: ""              # HOST:PORT where the link half serves metrics and health, from its next start on
#lease_action: freeze            # or terminate: end sessions when the control plane stays silent
`

// writeExample leaves a file that is there alone.
func writeExample(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("writing the settings: %w", err)
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing the settings: %w", err)
	}
	_, err = file.WriteString(example)
	return errors.Join(err, file.Close())
}

package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/signin"
	"github.com/curfew-access/curfew/internal/sshsig"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const (
	maxTriedKeys = 8
	maxDevice    = 64
)

type loginOptions struct {
	server, user, pin, key               string
	sso, device, workload, sshToo, quiet bool
}

// The methods that a configuration remembers; empty is the SSH key.
const (
	methodSSO    = "sso"
	methodDevice = "device"
)

func (a *app) loginCmd() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Sign in with an SSH key, at your organisation, or as a pipeline",
		Long: "Sign in by signing a challenge with an SSH key that stands under your name: " +
			"one from ssh-agent, else ~/.ssh/id_ed25519, id_ecdsa or id_rsa, or the one named by " +
			"--key (a private key, or a public one whose private half ssh-agent holds).\n\n" +
			"--sso signs in at your organisation's identity provider, in a browser on this device; " +
			"--device does where there is none: you type a code on another device. " +
			"--workload signs a pipeline in with the ID token of its CI: CURFEW_ID_TOKEN, the file " +
			"CURFEW_ID_TOKEN_FILE, or GitHub Actions' ACTIONS_ID_TOKEN_REQUEST_URL.\n\n" +
			"The first sign-in needs the control plane's address and the fingerprint of its CA " +
			"(--ca-pin); an admin finds both in `curfew admin trust show`. Both are remembered, " +
			"and so is the way that you signed in.",
		Example: "  curfew login --server curfew.example.org --user alice --ca-pin " +
			"mX3k…\n  curfew login --sso\n  curfew login",
		Args: cobra.NoArgs,
		RunE: verb(func(ctx context.Context, _ []string) error { return a.login(ctx, o) }),
	}
	cmd.Flags().StringVar(&o.server, "server", "", "control plane, host or host:port (7443)")
	cmd.Flags().StringVar(&o.user, "user", "", "user name (default: the last one, else yours here)")
	cmd.Flags().StringVar(&o.pin, "ca-pin", "", "SHA-256 of the control plane's CA, base64url")
	cmd.Flags().StringVar(&o.key, "key", "", "SSH key file")
	cmd.Flags().BoolVar(&o.sso, "sso", false, "sign in at the identity provider, in a browser")
	cmd.Flags().BoolVar(&o.device, "device", false, "the same, with a browser on another device")
	cmd.Flags().BoolVar(&o.workload, "workload", false, "sign in with a pipeline's ID token")
	cmd.Flags().BoolVar(&o.sshToo, "ssh", false, "sign in with an SSH key, whatever was used last")
	cmd.Flags().BoolVar(&o.quiet, "no-browser", false, "with --sso: print the address, open nothing")
	cmd.MarkFlagsMutuallyExclusive("sso", "device", "workload", "key")
	cmd.MarkFlagsMutuallyExclusive("sso", "device", "workload", "ssh")
	return cmd
}

func (a *app) login(ctx context.Context, o loginOptions) error {
	dir, err := configDir(a.env.Getenv)
	if err != nil {
		return err
	}
	cfg, pins, err := a.loginConfig(dir, o)
	if err != nil {
		return err
	}
	public, session, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fail(exitFailed, "making the session key: %w", err)
	}
	t, err := newTransport(pins, session, a.env.Now)
	if err != nil {
		return err
	}
	c, err := dial(cfg, t)
	if err != nil {
		return err
	}
	defer c.close()
	expires, err := a.prove(ctx, c, public, o)
	if err != nil {
		return err
	}
	before := cfg.ca
	cfg.CA, cfg.ca = pemCertificate(t.pinnedCA()), t.pinnedCA()
	if before != nil && o.pin == "" && !before.Equal(cfg.ca) {
		// The CA before has announced this one: what was verified goes on.
		if err := moveVerified(dir, pinOf(before), pinOf(cfg.ca)); err != nil {
			return err
		}
	}
	if err := errors.Join(saveSessionKey(dir, session), cfg.save(dir)); err != nil {
		return err
	}
	return a.signedIn(ctx, c, dir, expires)
}

// prove shows the control plane who the person is, in the way that was asked for or used last, and
// puts into the configuration what is to be remembered.
func (a *app) prove(ctx context.Context, c *client, session ed25519.PublicKey, o loginOptions) (
	expires int64, err error,
) {
	last := c.cfg.Method
	switch {
	case o.workload:
		return a.loginWorkload(ctx, c, session)
	case o.sso, last == methodSSO && !o.device && o.key == "" && !o.sshToo:
		return a.loginSSO(ctx, c, session, !o.quiet)
	case o.device, last == methodDevice && o.key == "" && !o.sshToo:
		return a.loginDevice(ctx, c, session)
	}
	return a.loginSSH(ctx, c, session, o.key)
}

func (a *app) loginSSH(ctx context.Context, c *client, session ed25519.PublicKey, file string) (
	expires int64, err error,
) {
	ring := a.keyring()
	defer ring.close()
	keys, err := ring.keys(file)
	if err != nil {
		return 0, err
	}
	if c.cfg.SSHKey != "" && file == "" {
		keys = preferred(keys, c.cfg.SSHKey)
	}
	key, answer, err := a.tryKeys(ctx, c, keys, session)
	if err != nil {
		return 0, err
	}
	c.cfg.Method = ""
	return answer.GetExpiresMs(), c.cfg.remember(key)
}

// remember notes which SSH key is the person's.
func (c *config) remember(key sshKey) (err error) {
	c.SSHKey, c.KeyFile = grant.SSHKeyText(key.public), ""
	if key.file != "" {
		if c.KeyFile, err = filepath.Abs(key.file); err != nil {
			return fail(exitFailed, "finding %s: %w", key.file, err)
		}
	}
	return nil
}

// preferred puts the key that signed in last first, so that others are not asked for a touch.
func preferred(keys []sshKey, line string) []sshKey {
	last, err := grant.ParseSSHKey(line)
	if err != nil {
		return keys
	}
	i := slices.IndexFunc(keys, func(k sshKey) bool { return k.is(last) })
	if i < 0 {
		return keys
	}
	first := keys[i]
	return append([]sshKey{first}, slices.Delete(slices.Clone(keys), i, i+1)...)
}

// loginConfig combines what is remembered with the flags.
func (a *app) loginConfig(dir string, o loginOptions) (*config, [][32]byte, error) {
	cfg, err := loadConfig(dir)
	if errors.Is(err, fs.ErrNotExist) {
		cfg, err = &config{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if o.server != "" {
		server, err := serverAddress(o.server)
		if err != nil {
			return nil, nil, usage("%w", err)
		}
		if server != cfg.Server {
			cfg = &config{Server: server, User: cfg.User} // another server: its pin must come along
		}
	}
	if o.user != "" && o.user != cfg.User {
		cfg.User, cfg.SSHKey, cfg.KeyFile = o.user, "", ""
	}
	if o.workload {
		cfg.User = o.user // one that signed in before says nothing
	} else if cfg.User == "" {
		cfg.User = a.env.Getenv("USER")
	}
	switch {
	case cfg.Server == "":
		return nil, nil, usage("the first sign-in needs to know where: --server").
			hint("%s", cfg.loginCommandWithPin())
	case o.pin == "" && cfg.ca == nil:
		return nil, nil, usage("the first sign-in at %s needs its CA's fingerprint: --ca-pin",
			cfg.Server).hint("an admin finds it in: curfew admin trust show")
	}
	if !o.sso && !o.device && !o.workload { // there the provider says who somebody is
		if err := grant.CheckUserName(cfg.User); err != nil {
			return nil, nil, usage("%w", err).hint("name yourself: --user NAME")
		}
	}
	if o.pin != "" {
		pin, err := parsePin(o.pin)
		if err != nil {
			return nil, nil, usage("%w", err)
		}
		return cfg, [][32]byte{pin}, nil
	}
	return cfg, cfg.pins(), nil
}

// tryKeys signs in with the first key that the control plane takes.
func (a *app) tryKeys(
	ctx context.Context, c *client, keys []sshKey, session ed25519.PublicKey,
) (sshKey, *apiv1.LoginResponse, error) {
	var last error
	for _, key := range keys[:min(len(keys), maxTriedKeys)] {
		signer, err := key.unlock()
		if err != nil {
			last = err
			continue
		}
		key.public = signer.PublicKey()
		answer, err := a.tryKey(ctx, c, key, signer, session)
		if err == nil {
			return key, answer, nil
		}
		last = err
		var f *failure
		if !errors.As(err, &f) || f.code != exitDenied && f.code != exitSignIn {
			break // not about this key
		}
	}
	var f *failure
	if errors.As(last, &f) && (f.code == exitDenied || f.code == exitSignIn) {
		f.hints = append(f.hints, "tried "+triedNames(keys)+"; name another: --key FILE")
	}
	return sshKey{}, nil, last
}

func triedNames(keys []sshKey) string {
	names := ""
	for i, k := range keys[:min(len(keys), maxTriedKeys)] {
		if i > 0 {
			names += ", "
		}
		names += k.name()
	}
	return names
}

func (a *app) tryKey(
	ctx context.Context, c *client, key sshKey, signer ssh.Signer, session ed25519.PublicKey,
) (*apiv1.LoginResponse, error) {
	b, err := c.challenge(ctx, session)
	if err != nil {
		return nil, err
	}
	sig, err := sshsig.Sign(signer, sshsig.NamespaceLogin, b.Login())
	if err != nil {
		return nil, fail(exitFailed, "signing with %s: %w", key.name(), err)
	}
	return call(ctx, c, c.signIn.Login, &apiv1.LoginRequest{
		User: c.cfg.User, Challenge: b.Challenge, SessionPublicKey: session, Sshsig: sig,
		Device: deviceName(),
	})
}

// challenge gets a challenge and binds it to a session key and to the pinned CA.
func (c *client) challenge(ctx context.Context, session ed25519.PublicKey) (signin.Binding, error) {
	answer, err := call(ctx, c, c.signIn.Challenge, &apiv1.ChallengeRequest{})
	if err != nil {
		return signin.Binding{}, err
	}
	if n := len(answer.GetChallenge()); n != signin.ChallengeSize {
		return signin.Binding{}, fail(exitFailed, "the control plane sent a challenge of %d bytes, not %d",
			n, signin.ChallengeSize)
	}
	ca := c.transport.pinnedCA()
	if ca == nil {
		return signin.Binding{}, fail(exitFailed, "the connection has no pinned CA")
	}
	return signin.Binding{
		Challenge: answer.GetChallenge(), Session: session, CA: sha256.Sum256(ca.Raw),
	}, nil
}

// deviceName is how this device's sessions are told from others.
func deviceName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name[:min(len(name), maxDevice)]
}

func (a *app) signedIn(ctx context.Context, c *client, dir string, expiresMS int64) error {
	me, err := call(ctx, c, c.signIn.WhoAmI, &apiv1.WhoAmIRequest{})
	if err != nil {
		return err
	}
	was := c.cfg.NextCA
	if c.cfg.announced(me.GetAuthorities()); c.cfg.NextCA != was {
		if err := c.cfg.save(dir); err != nil {
			return err
		}
	}
	if a.json {
		return a.JSON(viewWhoAmI(c.cfg, me))
	}
	a.Talk("Signed in at %s as %s until %s.", me.GetOrganisation(), me.GetUser(),
		a.when(expiresMS).text)
	return nil
}

func (a *app) logoutCmd() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the session and delete its key", Args: cobra.NoArgs,
		RunE: verb(func(ctx context.Context, _ []string) error { return a.logout(ctx) }),
	}
}

func (a *app) logout(ctx context.Context) error {
	dir, err := configDir(a.env.Getenv)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, keyName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		a.Talk("Not signed in.")
		return nil
	}
	var told error
	c, err := a.connect()
	if err == nil {
		_, told = call(ctx, c, c.signIn.Logout, &apiv1.LogoutRequest{})
		err = c.close()
	}
	// Whatever the control plane says, the key goes: without it the session opens nothing.
	if removed := removeIfThere(path); removed != nil {
		return fail(exitFailed, "deleting the session key: %w", removed)
	}
	var f *failure
	if errors.As(told, &f) && f.code != exitSignIn || err != nil {
		a.Warn("the key is deleted, but the control plane could not be told: %v",
			errors.Join(told, err))
	}
	a.Talk("Signed out.")
	return nil
}

func (a *app) whoamiCmd() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who is signed in, and until when", Args: cobra.NoArgs,
		Long: "Show who is signed in, and until when.\n\n" + jsonHelp(whoAmIView{}),
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			me, err := call(ctx, c, c.signIn.WhoAmI, &apiv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(viewWhoAmI(c.cfg, me))
			}
			a.Fields([]field{
				{"User", text(me.GetUser())},
				{"Organisation", text(me.GetOrganisation())},
				{"May", text(joined(me.GetApiRoles()))},
				{"Groups", text(joined(me.GetGroups()))},
				{"Session ends", a.when(me.GetSessionExpiresMs())},
				{"Server", text(c.cfg.Server + ", version " + me.GetVersion())},
			})
			return nil
		}),
	}
}

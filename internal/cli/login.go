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
	"github.com/curfew-access/curfew/internal/sshsig"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const (
	loginContext  = "curfew login v1\x00"
	challengeSize = 32
	maxTriedKeys  = 8
)

type loginOptions struct {
	server, user, pin, key string
}

func (a *app) loginCmd() *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Sign in with an SSH key",
		Long: "Sign in by signing a challenge with an SSH key that an admin has put down for you: " +
			"one from ssh-agent, else ~/.ssh/id_ed25519, id_ecdsa or id_rsa, or the one named by " +
			"--key (a private key, or a public one whose private half ssh-agent holds).\n\n" +
			"The first sign-in needs the control plane's address and the fingerprint of its CA " +
			"(--ca-pin); an admin finds both in `curfew admin trust show`. Both are remembered.",
		Example: "  curfew login --server curfew.example.org --user alice --ca-pin " +
			"mX3k…\n  curfew login",
		Args: cobra.NoArgs,
		RunE: verb(func(ctx context.Context, _ []string) error { return a.login(ctx, o) }),
	}
	cmd.Flags().StringVar(&o.server, "server", "", "control plane, host or host:port (7443)")
	cmd.Flags().StringVar(&o.user, "user", "", "user name (default: the last one, else yours here)")
	cmd.Flags().StringVar(&o.pin, "ca-pin", "", "SHA-256 of the control plane's CA, base64url")
	cmd.Flags().StringVar(&o.key, "key", "", "SSH key file")
	return cmd
}

func (a *app) login(ctx context.Context, o loginOptions) error {
	dir, err := configDir(a.env.Getenv)
	if err != nil {
		return err
	}
	cfg, pin, err := a.loginConfig(dir, o)
	if err != nil {
		return err
	}
	public, session, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fail(exitFailed, "making the session key: %w", err)
	}
	t, err := newTransport(pin, session, a.env.Now)
	if err != nil {
		return err
	}
	c, err := dial(cfg, t)
	if err != nil {
		return err
	}
	defer c.close()
	ring := a.keyring()
	defer ring.close()
	keys, err := ring.keys(o.key)
	if err != nil {
		return err
	}
	if cfg.SSHKey != "" && o.key == "" {
		keys = preferred(keys, cfg.SSHKey)
	}
	key, answer, err := a.tryKeys(ctx, c, keys, public)
	if err != nil {
		return err
	}
	cfg.CA, cfg.ca = pemCertificate(t.pinnedCA()), t.pinnedCA()
	cfg.SSHKey, cfg.KeyFile = grant.SSHKeyText(key.public), ""
	if key.file != "" {
		if cfg.KeyFile, err = filepath.Abs(key.file); err != nil {
			return fail(exitFailed, "finding %s: %w", key.file, err)
		}
	}
	if err := errors.Join(saveSessionKey(dir, session), cfg.save(dir)); err != nil {
		return err
	}
	return a.signedIn(ctx, c, answer.GetExpiresMs())
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
func (a *app) loginConfig(dir string, o loginOptions) (*config, [32]byte, error) {
	var pin [32]byte
	cfg, err := loadConfig(dir)
	if errors.Is(err, fs.ErrNotExist) {
		cfg, err = &config{}, nil
	}
	if err != nil {
		return nil, pin, err
	}
	if o.server != "" {
		server, err := serverAddress(o.server)
		if err != nil {
			return nil, pin, usage("%w", err)
		}
		if server != cfg.Server {
			cfg = &config{Server: server, User: cfg.User} // another server: its pin must come along
		}
	}
	if o.user != "" && o.user != cfg.User {
		cfg.User, cfg.SSHKey, cfg.KeyFile = o.user, "", ""
	}
	if cfg.User == "" {
		cfg.User = a.env.Getenv("USER")
	}
	switch {
	case cfg.Server == "":
		return nil, pin, usage("the first sign-in needs to know where: --server").
			hint("%s", cfg.loginCommandWithPin())
	case o.pin == "" && cfg.ca == nil:
		return nil, pin, usage("the first sign-in at %s needs its CA's fingerprint: --ca-pin",
			cfg.Server).hint("an admin finds it in: curfew admin trust show")
	}
	if err := grant.CheckUserName(cfg.User); err != nil {
		return nil, pin, usage("%w", err).hint("name yourself: --user NAME")
	}
	if o.pin != "" {
		if pin, err = parsePin(o.pin); err != nil {
			return nil, pin, usage("%w", err)
		}
		return cfg, pin, nil
	}
	return cfg, sha256.Sum256(cfg.ca.Raw), nil
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
	challenge, err := call(ctx, c, c.signIn.Challenge, &apiv1.ChallengeRequest{})
	if err != nil {
		return nil, err
	}
	if n := len(challenge.GetChallenge()); n != challengeSize {
		return nil, fail(exitFailed, "the control plane sent a challenge of %d bytes, not %d", n,
			challengeSize)
	}
	ca := c.transport.pinnedCA()
	if ca == nil {
		return nil, fail(exitFailed, "the connection has no pinned CA")
	}
	sig, err := sshsig.Sign(signer, sshsig.NamespaceLogin,
		loginMessage(challenge.GetChallenge(), session, ca.Raw))
	if err != nil {
		return nil, fail(exitFailed, "signing with %s: %w", key.name(), err)
	}
	return call(ctx, c, c.signIn.Login, &apiv1.LoginRequest{
		User: c.cfg.User, Challenge: challenge.GetChallenge(),
		SessionPublicKey: session, Sshsig: sig,
	})
}

// loginMessage is what the SSH key signs (PROTOCOL.md section 7).
func loginMessage(challenge []byte, session ed25519.PublicKey, caDER []byte) []byte {
	sessionHash, caHash := sha256.Sum256(session), sha256.Sum256(caDER)
	message := append([]byte(loginContext), challenge...)
	message = append(message, sessionHash[:]...)
	return append(message, caHash[:]...)
}

func (a *app) signedIn(ctx context.Context, c *client, expiresMS int64) error {
	me, err := call(ctx, c, c.signIn.WhoAmI, &apiv1.WhoAmIRequest{})
	if err != nil {
		return err
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

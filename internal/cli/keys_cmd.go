package cli

import (
	"context"
	"crypto/ed25519"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type keyView struct {
	Fingerprint string `json:"fingerprint"`
	SSHKey      string `json:"ssh_key"`
}

func viewKey(line string) keyView {
	v := keyView{SSHKey: line}
	if key, err := grant.ParseSSHKey(line); err == nil {
		v.Fingerprint = ssh.FingerprintSHA256(key)
	}
	return v
}

func (a *app) keysCmd() *cobra.Command {
	add := &cobra.Command{
		Use: "add [FILE]", Short: "Make an SSH key yours", Args: cobra.MaximumNArgs(1),
		Long: "Make an SSH key yours: it logs in to hosts and signs approvals from now on. The key " +
			"signs for you, so it must be usable here: FILE is a private key, or a public one whose " +
			"private half ssh-agent holds; without FILE the usual key is taken. This needs a sign-in " +
			"at the identity provider in the last ten minutes.\n\n" + jsonHelp(keyView{}),
		Example: "  curfew login --sso && curfew keys add ~/.ssh/id_ed25519",
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.addKey(ctx, c, strings.Join(args, ""))
		}),
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List your SSH keys", Args: cobra.NoArgs,
		Long: "List your SSH keys.\n\nColumns in a pipe: fingerprint, key.\nPrints a JSON array with " +
			"--json. " + jsonHelp(keyView{}),
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			answer, err := call(ctx, c, c.identity.ListKeys, &apiv1.ListKeysRequest{})
			if err != nil {
				return err
			}
			if a.json {
				return jsonList(a.printer, each(answer.GetSshKeys(), viewKey))
			}
			rows := make([][]cell, len(answer.GetSshKeys()))
			for i, line := range answer.GetSshKeys() {
				v := viewKey(line)
				rows[i] = []cell{text(v.Fingerprint), text(v.SSHKey)}
			}
			a.Table([]string{"FINGERPRINT", "KEY"}, rows)
			return nil
		}),
	}
	rm := &cobra.Command{
		Use: "rm FINGERPRINT|FILE", Short: "Take a key of yours; access that rests on it ends",
		Long: "Take a key of yours, named by its fingerprint (SHA256:…) or its .pub file. Sessions that " +
			"it signed in and access that carries it end at once.\n\n" + jsonHelp(keyView{}),
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			print := args[0]
			if !strings.HasPrefix(print, "SHA256:") {
				keys, err := publicKeys(print)
				if err != nil {
					return err
				}
				print = viewKey(keys[0]).Fingerprint
			}
			answer, err := call(ctx, c, c.identity.RemoveKey,
				&apiv1.RemoveKeyRequest{Fingerprint: print})
			if err != nil {
				return err
			}
			return a.did(viewKey(answer.GetSshKey()), "key %s is no longer yours", print)
		}),
	}
	return parent("keys", "See, add and remove your SSH keys", add, ls, rm)
}

func (a *app) addKey(ctx context.Context, c *client, file string) error {
	ring := a.keyring()
	defer ring.close()
	keys, err := ring.keys(file)
	if err != nil {
		return err
	}
	key := keys[0]
	signer, err := key.unlock()
	if err != nil {
		return err
	}
	key.public = signer.PublicKey()
	// The challenge call also makes the connection, whose CA the signature is bound to.
	session, ok := c.transport.cert.PrivateKey.(ed25519.PrivateKey)
	if !ok {
		return fail(exitFailed, "the session has no key")
	}
	b, err := c.challenge(ctx, session.Public().(ed25519.PublicKey))
	if err != nil {
		return err
	}
	sig, err := sshsig.Sign(signer, sshsig.NamespaceKey, b.Key(c.cfg.User))
	if err != nil {
		return fail(exitFailed, "signing with %s: %w", key.name(), err)
	}
	answer, err := call(ctx, c, c.identity.AddKey,
		&apiv1.AddKeyRequest{Challenge: b.Challenge, Sshsig: sig})
	if err != nil {
		return err
	}
	if err := c.cfg.remember(key); err != nil {
		return err
	}
	dir, err := configDir(a.env.Getenv)
	if err != nil {
		return err
	}
	if err := c.cfg.save(dir); err != nil {
		return err
	}
	return a.did(viewKey(answer.GetSshKey()), "key %s is yours now", key.name())
}

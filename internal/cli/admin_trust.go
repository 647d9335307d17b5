package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/keyfile"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type trustView struct {
	Server   string          `json:"server"`
	CAPin    string          `json:"ca_pin"`
	Trust    json.RawMessage `json:"trust"`
	Unsigned bool            `json:"unsigned"`
	Waiting  string          `json:"waiting"`
}

func (a *app) adminTrustCmd() *cobra.Command {
	show := &cobra.Command{
		Use:   "show",
		Short: "Show the trust file that hosts obey, and the CA's pin",
		Long: "Show the trust file that hosts obey, and the CA's pin that people sign in with.\n\n" +
			jsonHelp(trustView{}),
		Args: cobra.NoArgs,
		RunE: a.verb(a.showTrust),
	}
	return parent("trust", "See, propose and sign what hosts obey", show, a.trustExportCmd(),
		a.trustProposeCmd(), a.trustSignCmd(), a.trustKeygenCmd())
}

func (a *app) showTrust(ctx context.Context, c *client, _ []string) error {
	answer, err := call(ctx, c, c.directory.GetTrust, &apiv1.GetTrustRequest{})
	if err != nil {
		return err
	}
	trust, err := grant.OpenTrust(answer.GetEnvelope(), nil)
	if err != nil {
		return fail(exitFailed, "the trust file of the control plane is not in order: %w", err)
	}
	if a.json {
		data, err := json.Marshal(trust)
		if err != nil {
			return fmt.Errorf("encoding the trust file: %w", err)
		}
		return a.JSON(trustView{
			Server: c.cfg.Server, CAPin: pinOf(c.cfg.ca), Trust: data,
			Unsigned: len(answer.GetUnsigned()) > 0, Waiting: answer.GetWaiting(),
		})
	}
	a.Fields(trustFields(c.cfg, trust))
	if len(answer.GetUnsigned()) > 0 {
		a.Warn("a newer trust file waits (%s); until then hosts obey this one", answer.GetWaiting())
		a.Hint("whoever has a root key: curfew admin trust sign --root-key FILE")
	}
	return nil
}

// trustKeygenCmd makes a root key where it is to be kept.
func (a *app) trustKeygenCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a root key in a new file, and print its public key",
		Args:  cobra.ExactArgs(1),
		RunE: verb(func(_ context.Context, args []string) error {
			key, err := keyfile.Create(args[0], "root key", rand.Reader)
			if err != nil {
				return err
			}
			a.Line("%s", base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)))
			a.Talk("Keep %s offline, and a copy of it in another place.", args[0])
			return nil
		}),
	}
}

func (a *app) trustExportCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Print the trust file that waits for signatures, to be signed where a root key is kept",
		Args:  cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			answer, err := call(ctx, c, c.directory.GetTrust, &apiv1.GetTrustRequest{})
			if err != nil {
				return err
			}
			if len(answer.GetUnsigned()) == 0 {
				return fail(exitFailed, "no trust file waits for a signature")
			}
			a.Line("%s", string(answer.GetUnsigned()))
			return nil
		}),
	}
}

func (a *app) trustProposeCmd() *cobra.Command {
	var roots []string
	var threshold uint32
	var bump, yes bool
	cmd := &cobra.Command{
		Use:   "propose",
		Short: "Propose other root keys, another threshold or a new epoch",
		Long: "Propose other root keys, another threshold or a new epoch. It is in force once the\n" +
			"thresholds of the root keys in force and of the new ones have signed it.\n\n" +
			"A new epoch makes hosts refuse whatever a stolen issuer key or an older control plane signs.",
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			req := &apiv1.ProposeTrustRequest{RootThreshold: threshold, BumpEpoch: bump}
			for _, text := range roots {
				key, err := base64.StdEncoding.Strict().DecodeString(text)
				if err != nil || len(key) != ed25519.PublicKeySize {
					return usage("%q is no root public key: curfew admin trust keygen prints one",
						grant.VisibleText(text))
				}
				req.RootKeys = append(req.RootKeys, key)
			}
			if len(req.GetRootKeys()) == 0 && threshold == 0 && !bump {
				return usage("nothing is proposed: give --root-key, --threshold or --bump-epoch")
			}
			if err := a.confirmed(yes, "Propose this for every host?"); err != nil {
				return err
			}
			answer, err := call(ctx, c, c.directory.ProposeTrust, req)
			if err != nil {
				return err
			}
			return a.trustOutcome(answer.GetWaiting())
		}),
	}
	cmd.Flags().StringArrayVar(&roots, "root-key", nil,
		"public key that is to be a root key; all of them, once each")
	cmd.Flags().Uint32Var(&threshold, "threshold", 0, "how many root keys sign a change")
	cmd.Flags().BoolVar(&bump, "bump-epoch", false, "begin a new epoch")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func (a *app) trustOutcome(waiting string) error {
	if waiting == "" {
		a.Talk("The trust file is signed and in force.")
		return nil
	}
	a.Talk("The trust file waits: %s.", waiting)
	a.Hint("whoever has a root key: curfew admin trust sign --root-key FILE")
	return nil
}

// signatureFile is what `trust sign --in FILE` writes where the root key is kept, and what `trust sign
// --signature FILE` hands in.
type signatureFile struct {
	Content   []byte              `json:"content"`
	Signature grant.RootSignature `json:"signature"`
}

func (a *app) trustSignCmd() *cobra.Command {
	var rootKey, in, signature string
	var yes bool
	cmd := &cobra.Command{
		Use:   "sign --root-key FILE [--in FILE] | sign --signature FILE",
		Short: "Sign the trust file that waits, with a root key",
		Long: "Sign the trust file that waits, with a root key. It shows first what changes.\n\n" +
			"With the key on a machine without network: `curfew admin trust export >waiting`, carry it\n" +
			"there, `curfew admin trust sign --root-key FILE --in waiting >signed`, carry that back, and\n" +
			"`curfew admin trust sign --signature signed`.",
		Args: cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case (rootKey == "") == (signature == "") || in != "" && rootKey == "":
			return usage("give --root-key FILE, with --in FILE offline, or --signature FILE")
		case in != "":
			return a.signOffline(rootKey, in, yes)
		}
		return a.verb(func(ctx context.Context, c *client, _ []string) error {
			return a.signTrust(ctx, c, rootKey, signature, yes)
		})(cmd, args)
	}
	cmd.Flags().StringVar(&rootKey, "root-key", "", "file of the root key")
	cmd.Flags().StringVar(&in, "in", "", "what `curfew admin trust export` printed; needs no network")
	cmd.Flags().StringVar(&signature, "signature", "", "what a sign --in printed")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func (a *app) signOffline(rootKey, in string, yes bool) error {
	content, err := os.ReadFile(in)
	if err != nil {
		return fail(exitFailed, "%w", err)
	}
	content = []byte(strings.TrimSuffix(string(content), "\n"))
	signed, err := a.signContent(nil, content, rootKey, yes)
	if err != nil {
		return err
	}
	text, err := json.Marshal(signatureFile{Content: content, Signature: signed})
	if err != nil {
		return err
	}
	a.Line("%s", string(text))
	return nil
}

func (a *app) signTrust(ctx context.Context, c *client, rootKey, file string, yes bool) error {
	answer, err := call(ctx, c, c.directory.GetTrust, &apiv1.GetTrustRequest{})
	if err != nil {
		return err
	}
	content := answer.GetUnsigned()
	if len(content) == 0 {
		return fail(exitFailed, "no trust file waits for a signature")
	}
	var signed grant.RootSignature
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return fail(exitFailed, "%w", err)
		}
		var read signatureFile
		if err := json.Unmarshal(data, &read); err != nil {
			return fail(exitFailed, "%s is not what sign --in prints: %w", file, err)
		}
		content, signed = read.Content, read.Signature
	} else {
		current, err := grant.OpenTrust(answer.GetEnvelope(), nil)
		if err != nil {
			return fail(exitFailed, "the trust file of the control plane is not in order: %w", err)
		}
		if signed, err = a.signContent(current, content, rootKey, yes); err != nil {
			return err
		}
	}
	done, err := call(ctx, c, c.directory.SignTrust, &apiv1.SignTrustRequest{
		Content: content, PublicKey: signed.Key, Signature: signed.Sig,
	})
	if err != nil {
		return err
	}
	return a.trustOutcome(done.GetWaiting())
}

// signContent shows what a trust file says, against the one in force where that is known, and signs
// it.
func (a *app) signContent(
	current *grant.Trust, content []byte, rootKey string, yes bool,
) (grant.RootSignature, error) {
	next, err := grant.ParseTrust(content)
	if err != nil {
		return grant.RootSignature{}, fail(exitFailed, "what waits is no trust file: %w", err)
	}
	for _, line := range trustChanges(current, next) {
		a.Talk("%s", line)
	}
	if err := a.confirmed(yes, "Sign this?"); err != nil {
		return grant.RootSignature{}, err
	}
	key, err := keyfile.Load(rootKey, "root key")
	if err != nil {
		return grant.RootSignature{}, fail(exitFailed, "%w", err)
	}
	return grant.SignTrust(content, key), nil
}

// trustChanges says line by line what a trust file says that another does not; without another, all of
// it.
func trustChanges(before, after *grant.Trust) []string {
	if before == nil {
		before = &grant.Trust{}
	}
	list := []string{fmt.Sprintf("Trust file version %d, epoch %d (in force: version %d, epoch %d)",
		after.Version, after.Epoch, before.Version, before.Epoch)}
	old, fresh := trustLines(before), trustLines(after)
	for _, l := range fresh {
		if !slices.Contains(old, l) {
			list = append(list, "+ "+l.String())
		}
	}
	for _, l := range old {
		if !slices.Contains(fresh, l) {
			list = append(list, "- "+l.String())
		}
	}
	return list
}

// said is one thing that a trust file says.
type said struct{ what, text string }

func (s said) String() string { return s.what + ": " + s.text }

func trustLines(t *grant.Trust) []said {
	var list []said
	say := func(what, format string, args ...any) {
		list = append(list, said{what, fmt.Sprintf(format, args...)})
	}
	say("Root threshold", "%d of the root keys sign a change", t.RootThreshold)
	for _, k := range t.RootKeys {
		say("Root key", "%s", base64.StdEncoding.EncodeToString(k))
	}
	for _, k := range t.IssuerKeys {
		say("Issuer", "%s", base64.StdEncoding.EncodeToString(k))
	}
	for _, p := range t.Approvers {
		for _, k := range p.SSHKeys {
			say("Approver", "%s of %s: %s%s", p.Name, joined(p.Groups), keyText(k), byKeyOnly(p))
		}
		for _, who := range p.Manages {
			say("Manager", "%s is %s's", p.Name, who)
		}
	}
	for _, q := range t.Quorums {
		say("Quorum", "role %s needs %s%s", q.Role, grant.NeedsText(q.Needs()), onHosts(q.Hosts))
	}
	for _, r := range t.Standing {
		kind := "Standing rule"
		if r.Emergency {
			kind = "Emergency rule"
		}
		say(kind, "%s opens role %s for %s, up to %s%s, without approvals", r.Name, r.Role,
			joined(r.Groups), time.Duration(r.MaxDurationMS)*time.Millisecond, onHosts(r.Hosts))
	}
	for _, r := range t.Requesters {
		for _, k := range r.SSHKeys {
			say("Requester", "%s of %s: %s", r.Name, joined(r.Groups), keyText(k))
		}
	}
	return list
}

func byKeyOnly(p grant.Approver) string {
	if p.VerifyRequired {
		return ", verified by PIN or fingerprint"
	}
	return ""
}

func onHosts(hosts []grant.HostID) string {
	if len(hosts) == 0 {
		return ""
	}
	return fmt.Sprintf(", on %d hosts", len(hosts))
}

func trustFields(cfg *config, trust *grant.Trust) []field {
	fields := []field{
		{"Organisation", text(trust.Organisation)},
		{"Server", text(cfg.Server)},
		{"CA pin", text(pinOf(cfg.ca))},
		{"Version", text(fmt.Sprintf("%d, epoch %d", trust.Version, trust.Epoch))},
	}
	for _, l := range trustLines(trust) {
		fields = append(fields, field{l.what, text(l.text)})
	}
	return fields
}

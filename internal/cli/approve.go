package cli

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func (a *app) approveCmd() *cobra.Command {
	var yes bool
	var key string
	cmd := &cobra.Command{
		Use:   "approve ID",
		Short: "Read the terms of a request and sign them",
		Long: "Show what the terms say, decoded from the very bytes that will be signed, and sign " +
			"them with the SSH key that signed you in (or --key). Hosts check this signature " +
			"themselves. Terms that disagree with the request are never signed.\n\n" +
			jsonHelp(requestView{}) + "\n\n" + exitHelp,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(decidableIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.approve(ctx, c, args[0], key, yes)
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "sign without asking")
	cmd.Flags().StringVar(&key, "key", "", "SSH key file (default: the key that signed in)")
	return cmd
}

func (a *app) approve(ctx context.Context, c *client, prefix, keyFile string, yes bool) error {
	id, err := c.resolve(ctx, prefix)
	if err != nil {
		return err
	}
	r, err := c.request(ctx, id)
	if err != nil {
		return err
	}
	terms, err := checkedTerms(r)
	if err != nil {
		return fail(exitFailed, "not signing: %w", err).
			hint("the control plane showed one thing and asked to sign another; tell an admin")
	}
	if err := decidable(r, terms, c.cfg.User); err != nil {
		return err
	}
	a.TalkFields(a.describeTerms(r, terms))
	if err := a.confirmed(yes, "Sign these terms?"); err != nil {
		return err
	}
	sig, err := a.sign(c.cfg, keyFile, r.GetTerms())
	if err != nil {
		return err
	}
	answer, err := call(ctx, c, c.access.Approve, &apiv1.ApproveRequest{
		Id: id, Revision: r.GetRevision(), Sshsig: sig,
	})
	if err != nil {
		return err
	}
	if a.json {
		return a.JSON(viewRequest(answer.GetRequest()))
	}
	a.Line("%s approved; %s", id, progress(answer.GetRequest()))
	return nil
}

// checkedTerms decodes the terms and makes sure that they are what the request claims: the bytes
// count, and whatever else the control plane showed must agree with them.
func checkedTerms(r *apiv1.Request) (*curfewv1.Terms, error) {
	terms, err := grant.ParseTerms(r.GetTerms())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, h := range terms.GetHosts() {
		names = append(names, h.GetName())
	}
	shown := slices.Sorted(slices.Values(r.GetHosts()))
	slices.Sort(names)
	for _, check := range []struct {
		what  string
		agree bool
	}{
		{"request id", terms.GetRequestId() == r.GetId()},
		{"revision", terms.GetRevision() == r.GetRevision()},
		{"requester", terms.GetRequester() == r.GetRequester()},
		{"role", terms.GetRole() == r.GetRole()},
		{"hosts", slices.Equal(names, shown)},
		{"reason", bytes.Equal(terms.GetReasonHash(), grant.ReasonHash(r.GetReason()))},
		{"root-equivalent label", terms.GetRootEquivalent() == r.GetRootEquivalent()},
	} {
		if !check.agree {
			return nil, errors.New("the terms disagree with the request about its " + check.what)
		}
	}
	return terms, nil
}

// decidable saves the signature where it could not count.
func decidable(r *apiv1.Request, terms *curfewv1.Terms, me string) error {
	if terms.GetRequester() == me {
		return fail(exitDenied, "nobody approves their own request").
			hint("ask somebody else: it needs %s", grant.NeedsText(grant.NeedsOf(terms)))
	}
	if r.GetState() == apiv1.RequestState_REQUEST_STATE_PENDING || r.GetExtensionPending() {
		return nil
	}
	return fail(exitFailed, "%s is %s; there is nothing to approve", r.GetId(),
		stateWord(r.GetState())).hint("see: curfew show %s", r.GetId())
}

func (a *app) sign(cfg *config, keyFile string, terms []byte) ([]byte, error) {
	ring := a.keyring()
	defer ring.close()
	key, err := ring.one(keyFile, cfg)
	if err != nil {
		return nil, err
	}
	signer, err := key.unlock()
	if err != nil {
		return nil, err
	}
	sig, err := sshsig.Sign(signer, sshsig.NamespaceApprove, terms)
	if err != nil {
		return nil, fail(exitFailed, "signing with %s: %w", key.name(), err)
	}
	return sig, nil
}

// progress says where a request stands after a decision.
func progress(r *apiv1.Request) string {
	if r.GetState() == apiv1.RequestState_REQUEST_STATE_PENDING || r.GetExtensionPending() {
		return needs(r)
	}
	return "the request is " + stateWord(r.GetState())
}

func (a *app) denyCmd() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "deny ID --reason TEXT",
		Short:             "Refuse a request, with a reason",
		Long:              "Refuse a request; whoever asked reads why.\n\n" + jsonHelp(requestView{}),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(decidableIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			if err := grant.CheckReason(reason); err != nil {
				return usage("--reason: %w", err)
			}
			id, err := c.resolve(ctx, args[0])
			if err != nil {
				return err
			}
			r, err := c.request(ctx, id)
			if err != nil {
				return err
			}
			answer, err := call(ctx, c, c.access.Deny, &apiv1.DenyRequest{
				Id: id, Revision: r.GetRevision(), Reason: reason,
			})
			if err != nil {
				return err
			}
			return a.outcome(answer.GetRequest(), "denied")
		}),
	}
	cmd.Flags().StringVarP(&reason, "reason", "m", "", "why")
	return cmd
}

func (a *app) revokeCmd() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke ID --reason TEXT",
		Short: "End running access now",
		Long: "End running access now: connected hosts close it within seconds, sessions " +
			"included.\n\n" + jsonHelp(requestView{}),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(grantedIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			if err := grant.CheckReason(reason); err != nil {
				return usage("--reason: %w", err)
			}
			id, err := c.resolve(ctx, args[0])
			if err != nil {
				return err
			}
			answer, err := call(ctx, c, c.access.Revoke, &apiv1.RevokeRequest{
				Id: id, Reason: reason,
			})
			if err != nil {
				return err
			}
			return a.outcome(answer.GetRequest(), "revoked")
		}),
	}
	cmd.Flags().StringVarP(&reason, "reason", "m", "", "why")
	return cmd
}

package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/controlplane/policy"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type policyView struct {
	Number    uint64   `json:"number"`
	Hash      string   `json:"hash"`
	AppliedBy string   `json:"applied_by"`
	AppliedAt *string  `json:"applied_at"`
	Roles     uint32   `json:"roles"`
	Rules     uint32   `json:"rules"`
	Warnings  []string `json:"warnings"`
}

type explainView struct {
	Steps      []string `json:"steps"`
	Verdict    string   `json:"verdict"`
	StepsNow   []string `json:"steps_now"`
	VerdictNow string   `json:"verdict_now"`
}

type differenceView struct {
	RequestID string `json:"request_id"`
	Requester string `json:"requester"`
	Role      string `json:"role"`
	Was       string `json:"was"`
	WouldBe   string `json:"would_be"`
}

func (a *app) adminPolicyCmd() *cobra.Command {
	var replaces string
	var dry bool
	apply := &cobra.Command{
		Use:   "apply FILE",
		Short: "Check a policy file and put it into force",
		Long: "Check a policy file and put it into force. A bad one is refused whole, with file, line " +
			"and field, and the old one stays. Every version is kept as it was written, and grants name " +
			"it by its hash. - is standard input.\n\n" + jsonHelp(policyView{}),
		Example: "  curfew admin policy test policy.yaml && curfew admin policy apply policy.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.applyPolicy(ctx, c, args[0], replaces, dry)
		}),
	}
	apply.Flags().BoolVar(&dry, "dry-run", false, "only check it")
	apply.Flags().StringVar(&replaces, "replaces", "",
		"hash of the policy that it follows; refused when another one is in force")
	clear := &cobra.Command{
		Use:   "clear",
		Short: "Put no policy file into force: the directory's roles count again",
		Long: "Put no policy file into force: the directory's roles (curfew admin role) count again, as " +
			"before the first. Every version stays listed. What is granted stays granted; hosts ask for the " +
			"roles' approvals once the trust file that says so is signed.\n\n" + jsonHelp(policyView{}),
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			return a.clearPolicy(ctx, c, replaces)
		}),
	}
	clear.Flags().StringVar(&replaces, "replaces", "",
		"hash of the policy in force; refused when another one is")
	show := &cobra.Command{
		Use:   "show [HASH]",
		Short: "Print the policy in force, or an earlier one, as it was written",
		Args:  cobra.MaximumNArgs(1),
		RunE:  a.verb(a.showPolicy),
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List every policy that was applied, newest first", Args: cobra.NoArgs,
		Long: "List every policy that was applied.\n\nColumns in a pipe: number, applied at, by, roles, " +
			"rules, hash.\nPrints a JSON array with --json. " + jsonHelp(policyView{}),
		RunE: a.verb(a.listPolicies),
	}
	explain := &cobra.Command{
		Use:   "explain REQUEST",
		Short: "Say rule by rule how a request was decided",
		Long: "Say rule by rule how a request was decided, on the facts of that moment, and what the " +
			"policy in force now would make of them.\n\n" + jsonHelp(explainView{}),
		Args: cobra.ExactArgs(1),
		RunE: a.verb(a.explainRequest),
	}
	return parent("policy", "Write down who gets what, and what follows", apply, clear, show, ls,
		explain, a.policyTestCmd(), a.policyReplayCmd())
}

func (a *app) readPolicy(path string) ([]byte, *policy.Policy, error) {
	text, err := readFileOrStdin(a, path)
	if err != nil {
		return nil, nil, usage("reading the policy: %w", err)
	}
	p, err := policy.Parse(filepath.Base(path), text)
	if err != nil {
		return nil, nil, a.faults(err)
	}
	return text, p, nil
}

// faults prints each fault of a file on a line of its own, as compilers do.
func (a *app) faults(err error) error {
	lines := strings.Split(err.Error(), "\n")
	for _, line := range lines[:len(lines)-1] {
		a.Error("%s", line)
	}
	return usage("%s", lines[len(lines)-1])
}

func (a *app) applyPolicy(
	ctx context.Context, c *client, path, replaces string, dry bool,
) error {
	text, _, err := a.readPolicy(path)
	if err != nil {
		return err
	}
	in := &apiv1.ApplyPolicyRequest{Text: text, File: filepath.Base(path), DryRun: dry}
	if in.Replaces, err = policyHash(replaces); err != nil {
		return err
	}
	answer, err := call(ctx, c, c.policy.ApplyPolicy, in)
	if err != nil {
		return err
	}
	for _, w := range answer.GetWarnings() {
		a.Warn("%s", w)
	}
	v := answer.GetVersion()
	view := viewPolicy(v)
	view.Warnings = append(view.Warnings, answer.GetWarnings()...)
	if dry {
		return a.did(view, "%s is good: %s, %s; nothing was applied", path,
			count(int(v.GetRoles()), "role"), count(int(v.GetRules()), "rule"))
	}
	if err := a.did(view, "policy %d is in force: %s, %s, hash %.12s", v.GetNumber(),
		count(int(v.GetRoles()), "role"), count(int(v.GetRules()), "rule"), view.Hash); err != nil {
		return err
	}
	a.trustWaits(answer.GetTrustWaits())
	return nil
}

func (a *app) trustWaits(waits bool) {
	if waits {
		a.Warn("hosts follow it once the trust file is signed")
		a.Hint("curfew admin trust sign")
	}
}

func policyHash(replaces string) ([]byte, error) {
	if replaces == "" {
		return nil, nil
	}
	hash, err := hex.DecodeString(replaces)
	if err != nil || len(hash) != 32 {
		return nil, usage("--replaces: want the 64 digits of a hash").hint("curfew admin policy ls")
	}
	return hash, nil
}

func (a *app) clearPolicy(ctx context.Context, c *client, replaces string) error {
	hash, err := policyHash(replaces)
	if err != nil {
		return err
	}
	answer, err := call(ctx, c, c.policy.ClearPolicy, &apiv1.ClearPolicyRequest{Replaces: hash})
	if err != nil {
		return err
	}
	for _, w := range answer.GetWarnings() {
		a.Warn("%s", w)
	}
	view := viewPolicy(answer.GetVersion())
	view.Warnings = append(view.Warnings, answer.GetWarnings()...)
	if err := a.did(view, "no policy file is in force: the directory's roles are"); err != nil {
		return err
	}
	a.trustWaits(answer.GetTrustWaits())
	return nil
}

func viewPolicy(v *apiv1.PolicyVersion) policyView {
	return policyView{
		Number: v.GetNumber(), Hash: hex.EncodeToString(v.GetHash()), AppliedBy: v.GetAppliedBy(),
		AppliedAt: moment(v.GetAppliedMs()), Roles: v.GetRoles(), Rules: v.GetRules(), Warnings: []string{},
	}
}

func (a *app) showPolicy(ctx context.Context, c *client, args []string) error {
	in := &apiv1.GetPolicyRequest{}
	if len(args) == 1 {
		var err error
		if in.Hash, err = hex.DecodeString(args[0]); err != nil || len(in.GetHash()) != 32 {
			return usage("%q is not the 64 digits of a hash", args[0]).hint("curfew admin policy ls")
		}
	}
	answer, err := call(ctx, c, c.policy.GetPolicy, in)
	if err != nil {
		return err
	}
	if answer.GetVersion().GetNumber() == 0 {
		a.Talk("No policy file is in force: the directory's roles are.")
		a.Hint("curfew admin role ls")
		return nil
	}
	if a.json {
		return a.JSON(viewPolicy(answer.GetVersion()))
	}
	if !a.outTTY {
		_, err = a.env.Stdout.Write(answer.GetText()) // as it was written, byte by byte
		return err
	}
	for line := range strings.Lines(string(answer.GetText())) {
		a.Line("%s", strings.TrimSuffix(line, "\n"))
	}
	return nil
}

func (a *app) listPolicies(ctx context.Context, c *client, _ []string) error {
	answer, err := call(ctx, c, c.policy.ListPolicies, &apiv1.ListPoliciesRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return jsonList(a.printer, each(answer.GetVersions(), viewPolicy))
	}
	rows := make([][]cell, len(answer.GetVersions()))
	for i, v := range answer.GetVersions() {
		rows[i] = []cell{
			text(fmt.Sprint(v.GetNumber())), a.when(v.GetAppliedMs()), text(v.GetAppliedBy()),
			text(fmt.Sprint(v.GetRoles())), text(fmt.Sprint(v.GetRules())),
			text(hex.EncodeToString(v.GetHash())),
		}
	}
	a.Table([]string{"POLICY", "APPLIED", "BY", "ROLES", "RULES", "HASH"}, rows)
	return nil
}

func (a *app) explainRequest(ctx context.Context, c *client, args []string) error {
	answer, err := call(ctx, c, c.policy.ExplainRequest, &apiv1.ExplainRequestRequest{Id: args[0]})
	if err != nil {
		return err
	}
	if a.json {
		return a.JSON(explainView{
			Steps: append([]string{}, answer.GetSteps()...), Verdict: answer.GetVerdict(),
			StepsNow: append([]string{}, answer.GetStepsNow()...), VerdictNow: answer.GetVerdictNow(),
		})
	}
	for _, step := range answer.GetSteps() {
		a.Line("%s", step)
	}
	a.Line("%s", answer.GetVerdict())
	if answer.GetVerdictNow() != "" {
		a.Line("Under the policy in force now:")
		for _, step := range answer.GetStepsNow() {
			a.Line("%s", step)
		}
		a.Line("%s", answer.GetVerdictNow())
	}
	return nil
}

func (a *app) policyTestCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "test POLICY [CASES]",
		Short: "Run a policy's cases, without a control plane",
		Long: "Run the cases that stand beside a policy file (NAME_test.yaml beside NAME.yaml), as CI " +
			"does before it is applied. Nothing is sent anywhere. Exit code 1 when a case fails; rules " +
			"that no case reaches are named.",
		Example: "  curfew admin policy test policy.yaml",
		Args:    cobra.RangeArgs(1, 2),
		RunE: verb(func(_ context.Context, args []string) error {
			return a.testPolicy(args, quiet)
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing of cases that hold")
	return cmd
}

func (a *app) testPolicy(args []string, quiet bool) error {
	_, p, err := a.readPolicy(args[0])
	if err != nil {
		return err
	}
	file := strings.TrimSuffix(args[0], filepath.Ext(args[0])) + "_test" + filepath.Ext(args[0])
	if len(args) == 2 {
		file = args[1]
	}
	text, err := readFileOrStdin(a, file)
	if os.IsNotExist(err) {
		return usage("there are no cases: %s does not exist", file).
			hint("docs/operate/policy.md says how cases are written")
	}
	if err != nil {
		return usage("reading the cases: %w", err)
	}
	cases, err := policy.ParseCases(filepath.Base(file), text)
	if err != nil {
		return a.faults(err)
	}
	results, untried := p.Test(cases)
	failed := 0
	for _, r := range results {
		if r.Failed == "" {
			if !quiet {
				a.Line("ok    %s", r.Case.Name)
			}
			continue
		}
		failed++
		a.Line("FAIL  %s", r.Case.Name)
		a.Line("      %s:%d: %s", filepath.Base(file), r.Case.Line, r.Failed)
		for _, step := range r.Steps {
			a.Line("      %s", step)
		}
	}
	for _, w := range p.Warnings() {
		a.Warn("%s", w)
	}
	for _, rule := range untried {
		a.Warn("no case reaches rule %s", rule)
	}
	if failed > 0 {
		return fail(exitFailed, "%d of %s failed", failed, count(len(results), "case"))
	}
	a.Talk("%s passed", count(len(results), "case"))
	return nil
}

func (a *app) policyReplayCmd() *cobra.Command {
	since := "30d"
	cmd := &cobra.Command{
		Use:   "replay [FILE]",
		Short: "Say which past requests a policy would decide otherwise",
		Long: "Decide the requests of the last days anew, each on the facts that it was decided on, " +
			"with a policy file or, without one, with the policy in force, and list what would differ." +
			"\n\nColumns in a pipe: request, requester, role, what it was, what it would be.\nPrints a " +
			"JSON array with --json. " + jsonHelp(differenceView{}),
		Args: cobra.MaximumNArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.replayPolicy(ctx, c, args, since)
		}),
	}
	cmd.Flags().StringVar(&since, "since", since, "how far back: 12h, 30d")
	return cmd
}

func (a *app) replayPolicy(ctx context.Context, c *client, args []string, since string) error {
	d, err := parseDuration(since)
	if err != nil {
		return usage("--since: %w", err)
	}
	in := &apiv1.ReplayPolicyRequest{SinceMs: a.env.Now().Add(-d).UnixMilli()}
	if len(args) == 1 {
		if in.Text, _, err = a.readPolicy(args[0]); err != nil {
			return err
		}
	}
	answer, err := call(ctx, c, c.policy.ReplayPolicy, in)
	if err != nil {
		return err
	}
	if a.json {
		return jsonList(a.printer, each(answer.GetDifferences(), viewDifference))
	}
	rows := make([][]cell, len(answer.GetDifferences()))
	for i, d := range answer.GetDifferences() {
		rows[i] = []cell{
			text(d.GetRequestId()), text(d.GetRequester()), text(d.GetRole()), text(d.GetWas()),
			text(d.GetWouldBe()),
		}
	}
	a.Table([]string{"REQUEST", "REQUESTER", "ROLE", "WAS", "WOULD BE"}, rows)
	a.Talk("%s decided anew, %d otherwise", count(int(answer.GetReplayed()), "request"), len(rows))
	return nil
}

func viewDifference(d *apiv1.ReplayDifference) differenceView {
	return differenceView{
		RequestID: d.GetRequestId(), Requester: d.GetRequester(), Role: d.GetRole(), Was: d.GetWas(),
		WouldBe: d.GetWouldBe(),
	}
}

package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/breakglass/seal"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type codeSetView struct {
	Host        string          `json:"host"`
	HostID      string          `json:"host_id"`
	Set         string          `json:"set"`
	MadeAt      *string         `json:"made_at"`
	Custodians  []string        `json:"custodians"`
	Codes       []codeStateView `json:"codes"`
	Connected   bool            `json:"connected"`
	Enabled     bool            `json:"enabled"`
	MaxDuration int64           `json:"max_duration_ms"`
	Open        uint32          `json:"open"`
	RotatingBy  string          `json:"rotating_by"`
}

type codeStateView struct {
	Number    uint32  `json:"number"`
	FetchedBy string  `json:"fetched_by"`
	FetchedAt *string `json:"fetched_at"`
	UsedBy    string  `json:"used_by"`
	UsedAt    *string `json:"used_at"`
}

type codeView struct {
	Host        string `json:"host"`
	Set         string `json:"set"`
	Number      uint32 `json:"number"`
	Code        string `json:"code"`
	MaxDuration int64  `json:"max_duration_ms"`
}

const breakGlassAbout = "Break-glass codes open a host for a limited time while its control plane is away. Each host " +
	"makes its own and seals them to its custodians' SSH keys; the control plane only keeps them. " +
	"A code is good once, on that host."

func (a *app) adminBreakGlassCmd() *cobra.Command {
	var key string
	var number uint32
	get := &cobra.Command{
		Use:   "get HOST",
		Short: "Fetch a code of a host and open it with your SSH key",
		Long: breakGlassAbout + "\n\nget fetches the first code that nobody has fetched and opens it here, with the " +
			"private key (ssh-ed25519 or ssh-rsa). That you have it is on the trail, and admins and " +
			"approvers are told. Keep it where you reach it when the control plane is away.\n\n" +
			"Prints the code alone. " + jsonHelp(codeView{}) + "\n\n" + exitHelp,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(oneOf(manyHosts)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.getCode(ctx, c, args[0], number, key)
		}),
	}
	get.Flags().StringVarP(&key, "key", "k", "", "private key file (default: the one that signed in, or "+
		"~/.ssh/id_ed25519 and id_rsa)")
	get.Flags().Uint32Var(&number, "number", 0, "again a code that you fetched before")
	ls := &cobra.Command{
		Use:   "ls [HOST]",
		Short: "List hosts' codes: who fetched which, and which are used",
		Long: breakGlassAbout + "\n\nColumns in a pipe: host, codes, fetched, used, open now, longest, custodians, " +
			"made, who asked for new ones. With HOST one line per code: number, fetched by, at, used by, at.\nPrints a JSON array " +
			"with --json. " + jsonHelp(codeSetView{}),
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.complete(oneOf(manyHosts)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.listCodes(ctx, c, strings.Join(args, ""))
		}),
	}
	rotate := &cobra.Command{
		Use:   "rotate HOST…",
		Short: "Have hosts make new codes; the old ones are void then",
		Long: breakGlassAbout + "\n\nrotate has each host make a new set, sealed to the custodians of now: after a " +
			"use, and when a custodian leaves. A host that is away does it when it is back; ls shows which " +
			"have not.\n\n" + jsonHelp(codeSetView{}),
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.complete(manyHosts),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			for _, host := range args {
				answer, err := call(ctx, c, c.breakGlass.RotateCodes, &apiv1.RotateCodesRequest{Host: host})
				if err != nil {
					return err
				}
				when := "when it is back"
				if answer.GetSet().GetConnected() {
					when = "now"
				}
				if err := a.did(viewCodeSet(answer.GetSet()), "%s makes new codes %s", host, when); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	return parent("break-glass", "Fetch and watch the codes that open hosts while this is away", get, ls,
		rotate)
}

// getCode makes sure that there is a key to open a code with before it fetches one.
func (a *app) getCode(ctx context.Context, c *client, host string, number uint32, file string) error {
	identities, err := a.identities(c.cfg, file)
	if err != nil {
		return err
	}
	answer, err := call(ctx, c, c.breakGlass.FetchCode, &apiv1.FetchCodeRequest{Host: host, Number: number})
	if err != nil {
		return err
	}
	set := answer.GetSet()
	if set.GetHost() != host || number != 0 && answer.GetNumber() != number ||
		len(set.GetSetId()) != breakglass.SetIDSize {
		return fail(exitFailed, "the control plane answered with another code")
	}
	id, err := grant.HostIDFromBytes(set.GetHostId())
	if err != nil {
		return fail(exitFailed, "the control plane answered with a bad host: %w", err)
	}
	code, err := seal.Open(answer.GetSealed(), seal.Label{
		Host: id, Set: breakglass.SetID(set.GetSetId()), Number: int(answer.GetNumber()),
	}, identities...)
	if errors.Is(err, seal.ErrOtherKey) {
		return fail(exitFailed, "code %d of %s is fetched, but none of your keys here opens it",
			answer.GetNumber(), host).hint("where the key is: curfew admin break-glass get %s --number %d "+
			"--key FILE", host, answer.GetNumber())
	}
	if err != nil {
		return fail(exitFailed, "code %d of %s: %w", answer.GetNumber(), host, err)
	}
	if a.json {
		return a.JSON(codeView{
			Host: host, Set: hex.EncodeToString(set.GetSetId()), Number: answer.GetNumber(), Code: code.String(),
			MaxDuration: set.GetMaxDurationMs(),
		})
	}
	a.Talk("Break-glass code %d of %d of %s, good once, there, while the control plane is away:",
		answer.GetNumber(), len(set.GetCodes()), host)
	a.Line("%s", code)
	a.Hint("on %s: curfew-agent break-glass --reason \"…\"", host)
	return nil
}

// identities are what opens codes: the named file's key, or the usual ones'. A passphrase is asked for
// only when the key fits.
func (a *app) identities(cfg *config, file string) ([]age.Identity, error) {
	files := []string{file}
	if file == "" {
		files = nil
		if cfg.KeyFile != "" {
			files = append(files, cfg.KeyFile)
		}
		if home := a.env.Getenv("HOME"); home != "" {
			for _, name := range []string{"id_ed25519", "id_rsa"} {
				files = append(files, filepath.Join(home, ".ssh", name))
			}
		}
		slices.Sort(files)
		files = slices.Compact(files)
	}
	var out []age.Identity
	for _, path := range files {
		data, err := readCapped(path, maxKeyFile)
		if errors.Is(err, os.ErrNotExist) && file == "" {
			continue
		}
		if err != nil {
			return nil, fail(exitUsage, "reading the SSH key: %w", err)
		}
		id, err := seal.Identity(data, func() ([]byte, error) { return a.askPassphrase(path) })
		switch {
		case err == nil:
			out = append(out, id)
		case file != "":
			return nil, fail(exitUsage, "%s: %w", path, err)
		default:
			a.Warn("%s: %v", path, err)
		}
	}
	if len(out) == 0 {
		return nil, fail(exitFailed, "no private SSH key here can open a code").
			hint("name one of type ssh-ed25519 or ssh-rsa: --key FILE; ssh-agent and security keys only sign")
	}
	return out, nil
}

func (a *app) askPassphrase(path string) ([]byte, error) {
	in := a.terminalInput()
	if in == nil {
		return nil, usage("%s needs a passphrase, and there is no terminal to ask on", path)
	}
	return a.readPassphrase(in, path)
}

func (a *app) listCodes(ctx context.Context, c *client, host string) error {
	answer, err := call(ctx, c, c.breakGlass.ListCodes, &apiv1.ListCodesRequest{Host: host})
	if err != nil {
		return err
	}
	if a.json {
		return jsonList(a.printer, each(answer.GetSets(), viewCodeSet))
	}
	if len(answer.GetSets()) == 0 {
		a.Talk("No host has break-glass codes here.")
		a.Hint("on a host: break_glass.enabled in /etc/curfew/agent.yaml, then curfew-agent break-glass renew")
		return nil
	}
	if host != "" {
		a.printCodes(answer.GetSets()[0])
		return nil
	}
	rows := make([][]cell, len(answer.GetSets()))
	for i, s := range answer.GetSets() {
		fetched, used := tally(s)
		open, longest := "?", "?"
		if s.GetConnected() {
			open, longest = fmt.Sprint(s.GetOpen()), exactDuration(dur(s.GetMaxDurationMs()))
		}
		rows[i] = []cell{
			text(s.GetHost()), text(fmt.Sprint(len(s.GetCodes()))), text(fmt.Sprint(fetched)),
			alarmed(used > 0, fmt.Sprint(used)), alarmed(s.GetOpen() > 0, open), text(longest),
			text(strings.Join(s.GetCustodians(), ",")), a.when(s.GetMadeMs()),
			text(s.GetRotatingBy()),
		}
	}
	a.Table([]string{"HOST", "CODES", "FETCHED", "USED", "OPEN", "AT MOST", "CUSTODIANS", "MADE", "ROTATING"}, rows)
	return nil
}

func tally(s *apiv1.CodeSet) (fetched, used int) {
	for _, c := range s.GetCodes() {
		if c.GetFetchedMs() != 0 {
			fetched++
		}
		if c.GetUsedMs() != 0 {
			used++
		}
	}
	return fetched, used
}

func alarmed(yes bool, s string) cell {
	if yes {
		return styled(alarm, s)
	}
	return text(s)
}

func (a *app) printCodes(s *apiv1.CodeSet) {
	rows := make([][]cell, len(s.GetCodes()))
	for i, c := range s.GetCodes() {
		rows[i] = []cell{
			text(fmt.Sprint(c.GetNumber())), text(c.GetFetchedBy()), a.when(c.GetFetchedMs()),
			alarmed(c.GetUsedMs() != 0, c.GetUsedBy()), a.when(c.GetUsedMs()),
		}
	}
	a.Table([]string{"CODE", "FETCHED BY", "AT", "USED BY", "AT"}, rows)
}

func viewCodeSet(s *apiv1.CodeSet) codeSetView {
	return codeSetView{
		Host: s.GetHost(), HostID: hex.EncodeToString(s.GetHostId()), Set: hex.EncodeToString(s.GetSetId()),
		MadeAt: moment(s.GetMadeMs()), Custodians: list(s.GetCustodians()),
		Codes: each(s.GetCodes(), func(c *apiv1.CodeState) codeStateView {
			return codeStateView{
				Number: c.GetNumber(), FetchedBy: c.GetFetchedBy(), FetchedAt: moment(c.GetFetchedMs()),
				UsedBy: c.GetUsedBy(), UsedAt: moment(c.GetUsedMs()),
			}
		}),
		Connected: s.GetConnected(), Enabled: s.GetEnabled(), MaxDuration: s.GetMaxDurationMs(),
		Open: s.GetOpen(), RotatingBy: s.GetRotatingBy(),
	}
}

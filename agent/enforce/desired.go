package enforce

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/keys"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Where things are, relative to the file system's root.
const (
	RunDir     = "run/curfew"
	SudoersDir = RunDir + "/sudoers.d"
	KeysDir    = RunDir + "/keys"
	StateDir   = "var/lib/curfew"
	Snapshot   = "nss.db"
	GateTable  = "gate.conf"
	// UsersGroup is the system group that sshd_config's Match block knows Curfew accounts by.
	UsersGroup = "curfew-users"

	nologin = "/usr/sbin/nologin"

	// reserveStep keeps the room for a purge from changing with every account.
	reserveStep = 16 << 10
)

// Input is everything that decides what the disk should hold.
type Input struct {
	// Live are the grants whose windows are open, sorted by id.
	Live []grant.Live
	// Ending are Curfew accounts whose processes are still being ended: they keep their name, so that
	// what is left of them can be told, and nothing else.
	Ending []Ending
	// Refused says why the host's own checks do not let a grant be applied.
	Refused map[grant.ID]string
	// Pending are the grants that the host's checks have not let through yet.
	Pending map[grant.ID]bool
	Mode    account.Mode
	// Trial bounds ModeEnforce where nobody has confirmed it yet.
	Trial *account.Trial
	Rules account.Rules
	Local account.Local
	// UIDs is the table of every login that ever had an account here.
	UIDs map[string]uint32
	Keys keys.Style
}

// Ending is a Curfew account without live grant.
type Ending struct {
	Login string
	UID   uint32
}

// Result is what became of one live grant.
type Result struct {
	Live    grant.Live
	Status  curfewv1.GrantStatus // applied or failed; unspecified while the checks run
	Detail  string               // why it failed
	Subject account.Subject      // whom it is for; zero when it failed before that was known
}

// Applied tells whether the grant is enforced.
func (r Result) Applied() bool {
	return r.Status == curfewv1.GrantStatus_GRANT_STATUS_APPLIED
}

// Desired turns the live grants into the complete desired content of the disk. It is pure. A grant
// that cannot be rendered fails alone: nothing of it is in the tree, and the others are untouched.
func Desired(in Input) (Tree, []Result, error) {
	d := desired{
		in: in, texts: map[grant.ID][]byte{}, dropins: map[string]folder.File{},
		keys: map[string]folder.File{},
	}
	results := make([]Result, len(in.Live))
	for i, live := range in.Live {
		results[i] = d.grant(live)
	}
	accounts := d.accounts(results)
	snapshot, err := account.Render(accounts, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("rendering the account snapshot: %w", err)
	}
	principals, _ := in.Rules.Principals(in.Local, in.UIDs)
	if in.Trial != nil {
		principals = append(principals, account.SelfTest)
	}
	gate, err := account.RenderGateTable(in.Mode, in.Trial, principals)
	if err != nil {
		return nil, nil, fmt.Errorf("rendering the gate table: %w", err)
	}
	for i := range results {
		if results[i].Applied() {
			d.dropin(results[i])
		}
	}
	d.keyFiles(results)
	return Tree{
		{Path: RunDir, Mode: 0o755, Files: map[string]folder.File{
			Snapshot: {Data: snapshot, Mode: 0o644},
		}, Reserve: (int64(len(snapshot))/reserveStep + 1) * reserveStep},
		{Path: SudoersDir, Mode: 0o755, Exclusive: true, Files: d.dropins},
		{Path: KeysDir, Mode: 0o755, Exclusive: true, Files: d.keys},
		{Path: StateDir, Mode: 0o700, Files: map[string]folder.File{
			GateTable: {Data: gate, Mode: 0o600},
		}},
	}, results, nil
}

type desired struct {
	in      Input
	texts   map[grant.ID][]byte // of drop-ins, rendered on trial
	dropins map[string]folder.File
	keys    map[string]folder.File
}

// grant decides whether a grant can be enforced here, without writing anything yet.
func (d *desired) grant(live grant.Live) Result {
	r := Result{Live: live, Status: curfewv1.GrantStatus_GRANT_STATUS_APPLIED}
	subject, err := d.in.Rules.Classify(d.in.Local, live.Terms.GetLogin(), live.Terms.GetUid())
	if err != nil {
		return r.failed(err)
	}
	r.Subject = subject
	if why, refused := d.in.Refused[live.ID]; refused {
		return r.failed(errors.New(why))
	}
	if d.in.Pending[live.ID] {
		r.Status = curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED
		return r
	}
	if err := d.fits(r); err != nil {
		return r.failed(err)
	}
	return r
}

func (r Result) failed(err error) Result {
	r.Status, r.Detail = curfewv1.GrantStatus_GRANT_STATUS_FAILED, err.Error()
	return r
}

// fits renders the grant's parts on trial, so that none of them can fail later.
func (d *desired) fits(r Result) error {
	terms := r.Live.Terms
	if len(terms.GetSudoRules()) > 0 {
		text, err := sudoers.Render(DropinOf(r.Live))
		if err != nil {
			return err
		}
		d.texts[r.Live.ID] = bytes.Clone(text) // which is kept, and so is no room to grow
	}
	if r.Subject.Class != account.ClassAccount {
		if len(terms.GetGroups()) > 0 {
			return fmt.Errorf("login %s is a local user; unix groups are given to Curfew accounts only",
				r.Subject.Login)
		}
		return nil
	}
	if uid, ok := d.in.UIDs[r.Subject.Login]; !ok || uid != r.Subject.UID {
		return fmt.Errorf("uid %d is not login %s's on this host", r.Subject.UID, r.Subject.Login)
	}
	if _, err := keys.Render(d.in.Keys, keysOf(r)); err != nil {
		return err
	}
	a, err := d.account([]Result{r})
	if err != nil {
		return err
	}
	return account.Check(a)
}

// DropinOf is a grant's sudo rules, as they go into its drop-in.
func DropinOf(live grant.Live) sudoers.Dropin {
	return sudoers.Dropin{
		Grant: live.ID, RequestID: live.Terms.GetRequestId(), Login: live.Terms.GetLogin(),
		End: live.End, Rules: live.Terms.GetSudoRules(),
	}
}

func keysOf(r Result) (list []keys.Key) {
	if !r.Live.Terms.GetAllowLogin() {
		return nil
	}
	for _, line := range r.Live.Terms.GetAuthorizedKeys() {
		list = append(list, keys.Key{Line: line, End: r.Live.End})
	}
	return list
}

func (d *desired) dropin(r Result) {
	if text, ok := d.texts[r.Live.ID]; ok {
		// The name comes from the grant's id alone: no two grants share it, and no dot makes sudo skip it.
		d.dropins[r.Live.ID.String()] = folder.File{Data: text, Mode: 0o440}
	}
}

func (d *desired) keyFiles(results []Result) {
	for login, group := range byAccount(results) {
		var list []keys.Key
		for _, r := range group {
			list = append(list, keysOf(r)...)
		}
		if len(list) == 0 {
			continue
		}
		// Each grant's keys were rendered on trial.
		if text, err := keys.Render(d.in.Keys, list); err == nil {
			d.keys[login] = folder.File{Data: bytes.Clone(text), Mode: 0o644}
		}
	}
}

func byAccount(results []Result) map[string][]Result {
	m := make(map[string][]Result)
	for _, r := range results {
		if r.Applied() && r.Subject.Class == account.ClassAccount {
			m[r.Subject.Login] = append(m[r.Subject.Login], r)
		}
	}
	return m
}

// accounts returns the passwd records, and fails the grants of an account that cannot be one.
func (d *desired) accounts(results []Result) []account.Account {
	var list []account.Account
	have := make(map[string]bool)
	taken := make(map[uint32]bool)
	groups := byAccount(results)
	for _, login := range slices.Sorted(maps.Keys(groups)) {
		a, err := d.account(groups[login])
		if err == nil {
			err = account.Check(a)
		}
		if err != nil {
			for i := range results {
				if results[i].Subject.Login == login {
					results[i] = results[i].failed(err)
				}
			}
			continue
		}
		have[login], taken[a.UID] = true, true
		list = append(list, a)
	}
	for _, e := range d.in.Ending {
		_, localName := d.in.Local.User(e.Login)
		_, localUID := d.in.Local.UserByUID(e.UID)
		if have[e.Login] || taken[e.UID] || localName || localUID {
			continue
		}
		a := d.ended(e)
		if account.Check(a) == nil {
			have[e.Login], taken[e.UID] = true, true
			list = append(list, a)
		}
	}
	return list
}

const gecos = "Curfew account"

// ended is an account that is only a name any more.
func (d *desired) ended(e Ending) account.Account {
	return account.Account{
		Login: e.Login, UID: e.UID, GID: e.UID, Gecos: gecos, Shell: nologin,
		Home:         d.in.Rules.HomeRoot + "/" + e.Login,
		WallDeadline: time.Unix(1, 0), BootDeadline: time.Millisecond,
	}
}

// account joins the grants of one login into its passwd record. Groups count until the first grant
// that gives any of them ends, and so does the record then: it has one deadline, and the agent, if it
// lives, writes the next record in time.
func (d *desired) account(results []Result) (account.Account, error) {
	s := results[0].Subject
	a := account.Account{
		Login: s.Login, UID: s.UID, GID: s.GID, Gecos: gecos, Home: s.Home, Shell: nologin,
	}
	var groupWall time.Time
	var groupBoot time.Duration
	for _, r := range results {
		if r.Live.End.After(a.WallDeadline) {
			a.WallDeadline = r.Live.End
		}
		a.BootDeadline = max(a.BootDeadline, r.Live.BootDeadline)
		if r.Live.Terms.GetAllowLogin() {
			a.Shell = d.in.Rules.Shell
		}
		gids, err := d.gids(r.Live.Terms)
		if err != nil {
			return a, err
		}
		if len(gids) == 0 {
			continue
		}
		a.Groups = append(a.Groups, gids...)
		if groupWall.IsZero() || r.Live.End.Before(groupWall) {
			groupWall = r.Live.End
		}
		if groupBoot == 0 || r.Live.BootDeadline < groupBoot {
			groupBoot = r.Live.BootDeadline
		}
	}
	if !groupWall.IsZero() {
		a.WallDeadline, a.BootDeadline = groupWall, groupBoot
	}
	users, ok := d.in.Local.Group(UsersGroup)
	if !ok || users.GID == 0 {
		return a, fmt.Errorf("the group %s is missing from /etc/group; run systemd-sysusers", UsersGroup)
	}
	a.Groups = append(a.Groups, users.GID)
	slices.Sort(a.Groups)
	a.Groups = slices.Compact(a.Groups)
	return a, nil
}

func (d *desired) gids(terms *curfewv1.Terms) (gids []uint32, err error) {
	for _, name := range terms.GetGroups() {
		g, ok := d.in.Local.Group(name)
		if !ok {
			return nil, fmt.Errorf("group %s does not exist in /etc/group", name)
		}
		if g.GID == 0 {
			return nil, fmt.Errorf("group %s has gid 0, which is never given", name)
		}
		// The number is what counts: approvers were not told that this name is docker's.
		for _, other := range d.in.Local.Groups {
			if other.GID == g.GID && grant.GroupRootEquivalent(other.Name) && !terms.GetRootEquivalent() {
				return nil, fmt.Errorf("group %s has the gid of %s, which is root-equivalent", name, other.Name)
			}
		}
		gids = append(gids, g.GID)
	}
	return gids, nil
}

package grant_test

import (
	"slices"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// The model is what PROTOCOL.md section 1 and DESIGN "What a grant is" say, in the plainest way: it
// keeps everything that the host ever took in, as a list, and tells from the whole list, each time
// anew, what must be live. It knows no bytes and no signatures; whether an object is genuine is
// written on it by whoever made it. Times are milliseconds.

const (
	modelSkew   = 5 * 60 * 1000
	modelNonces = 8
)

// reading is one look at both clocks of the host.
type reading struct {
	wall, boot int64
	bootID     string
}

// kind says what a fact is.
type kind int

const (
	factLook kind = iota // a look at the clocks and nothing else
	factTick
	factGrant
	factState
	factTrust
	factNonce
	factRestart // the process was restarted: unanswered nonces are forgotten
	factUse     // somebody got in under a grant
	factUsed    // and left
)

// fact is one thing that happened to the host.
type fact struct {
	kind  kind
	at    reading
	paper *paper
	list  *list
	trust *trustPaper
	nonce string
	used  *paper
}

// paper is a sealed grant, as the model sees it.
type paper struct {
	id, digest, follows              string
	request, login, requester        string
	uid, revision                    uint32
	earliest, latest, hard, duration int64
	issuer                           string // name of the key that sealed it
	host, organisation, role         string
	needed                           int
	approvers                        []string // whose genuine signatures over these terms it has
	badApproval                      bool     // it also has one that is forged or of another's
	overCeiling                      bool
	env                              []byte
	realID                           grant.ID
	foreign                          bool // its real id is of another host
	firstUse, single                 bool
	group                            string
	authorizedApprover               string // an approver whose key the terms log in with
	name                             string
}

// list is a sealed host state, as the model sees it.
type list struct {
	issuer, host    string
	epoch, sequence uint64
	live            []*paper // sorted by real id
	ended           map[string]curfewv1.EndCause
	buried          []*paper // those of ended whose hard end it says
	issued, lease   int64
	nonce           string
	trail           int
	tree            int // which of two trails that fork at forkAt
	proofFrom       int
	proofWhole      bool
	msg             *curfewv1.State
}

// trustPaper is a sealed trust file.
type trustPaper struct {
	version, epoch uint64
	organisation   string
	genuine        bool // signed by the thresholds of the one before and of itself
	issuers        []string
	approvers      map[string][]string // person → groups
	quorums        map[string]int      // role → approvals of leads
	env            []byte
}

// window is a grant that the host holds.
type window struct {
	paper    *paper
	open     bool
	waiting  bool // for its first use
	used     bool
	start    int64
	end      int64
	deadline int64 // on the boot clock
}

type grave struct {
	paper *paper
	cause curfewv1.EndCause
}

// ending is a window that closed, for comparison with a Change.
type ending struct {
	id    string
	cause curfewv1.EndCause
}

// view is what follows from the facts.
type view struct {
	host string
	// what is known of time
	bootID                 string
	anchorBoot, anchorWall int64
	signedAnchor           bool
	high, floor, seen      int64
	now                    int64 // the time that decides
	jumped                 bool

	trust           *trustPaper
	epoch, sequence uint64
	trail, tree     int
	listed          []*paper
	held            []window
	graves          []grave
	nonces          []nonceSent
	leaseBootID     string
	leaseBoot       int64
	leaseWall       int64

	// what the last fact did
	accepted bool
	started  []string
	ended    []ending
	missing  []string
	renewed  bool
}

type nonceSent struct {
	nonce string
	boot  int64
}

// recompute folds all facts, from the first.
func recompute(host string, first *trustPaper, facts []fact) *view {
	v := &view{host: host, trust: first, epoch: first.epoch}
	for _, f := range facts {
		v.accepted, v.started, v.ended, v.missing, v.renewed = false, nil, nil, nil, false
		switch f.kind {
		case factLook:
			v.look(f.at)
		case factTick:
			v.look(f.at)
			v.expire(f.at)
			v.forget()
		case factGrant:
			v.look(f.at)
			v.accepted = v.takeGrant(f.paper, f.at)
		case factState:
			v.look(f.at)
			v.accepted = v.takeState(f.list, f.at)
		case factTrust:
			v.accepted = v.takeTrust(f.trust)
		case factNonce:
			v.nonces = append(v.nonces, nonceSent{f.nonce, f.at.boot})
			v.nonces = v.nonces[max(0, len(v.nonces)-modelNonces):]
		case factRestart:
			v.nonces = nil
		case factUse:
			v.look(f.at)
			v.accepted = v.use(f.used, f.at)
		case factUsed:
			if w := v.find(f.used.id); w != nil && w.used {
				v.bury(f.used, curfewv1.EndCause_END_CAUSE_USED)
			}
		}
	}
	return v
}

// look takes the clocks in. What the boot clock ran since the boot has certainly passed since the
// highest time that was certain before it. The wall clock is believed near the anchor only.
func (v *view) look(r reading) {
	if r.bootID != v.bootID {
		for i := range v.held {
			w := &v.held[i]
			byTime := w.end - max(v.high, w.start)
			byBoot := w.deadline - v.seen
			w.deadline = min(byTime, byBoot)
		}
		v.bootID, v.floor, v.signedAnchor = r.bootID, v.high, false
		v.anchorBoot, v.anchorWall = r.boot, max(r.wall, v.high+r.boot)
	}
	v.seen = r.boot
	should := v.anchorWall + r.boot - v.anchorBoot
	v.jumped = r.wall > should+modelSkew || r.wall < should-modelSkew
	if certain := v.floor + r.boot; certain > v.high {
		v.high = certain
	}
	v.now = r.wall
	if v.jumped {
		v.now = should
	}
	v.now = max(v.now, v.high)
	if v.signedAnchor {
		v.high = v.now
	}
}

func (v *view) find(id string) *window {
	for i := range v.held {
		if v.held[i].paper.id == id {
			return &v.held[i]
		}
	}
	return nil
}

func (v *view) grave(id string) *grave {
	for i := range v.graves {
		if v.graves[i].paper.id == id {
			return &v.graves[i]
		}
	}
	return nil
}

func (v *view) closed(w window, at reading) bool {
	return at.boot >= w.deadline || v.now >= w.end
}

// sure tells whether a closed window is closed beyond doubt.
func (v *view) sure(w window, at reading) bool {
	return at.boot >= w.deadline || v.now >= w.end && (v.signedAnchor || v.high >= w.end)
}

func (v *view) mayStart(p *paper) bool {
	return v.now < p.hard && v.now <= p.latest && v.now >= p.earliest-modelSkew
}

// followed returns what an extension continues, which must be open here and of the same person.
func (v *view) followed(p *paper, at reading) *window {
	for i := range v.held {
		w := &v.held[i]
		if w.paper.digest == p.follows && w.open && !w.waiting && !v.closed(*w, at) &&
			w.paper.single == p.single &&
			w.paper.request == p.request && w.paper.login == p.login && w.paper.uid == p.uid &&
			w.paper.requester == p.requester && w.paper.revision < p.revision {
			return w
		}
	}
	return nil
}

func (v *view) quorum(p *paper) bool {
	need, known := v.trust.quorums[p.role]
	if !known || p.group != "leads" || p.needed < need || p.badApproval {
		return false
	}
	var people []string
	for _, a := range p.approvers {
		if a == p.requester || a == p.login || a == p.authorizedApprover ||
			!slices.Contains(v.trust.approvers[a], "leads") {
			return false
		}
		if !slices.Contains(people, a) {
			people = append(people, a)
		}
	}
	return len(people) >= p.needed
}

func (v *view) takeGrant(p *paper, at reading) bool {
	if !slices.Contains(v.trust.issuers, p.issuer) {
		return false
	}
	if v.find(p.id) != nil {
		return true
	}
	ok := p.host == v.host && p.organisation == v.trust.organisation && v.grave(p.id) == nil &&
		v.mayStart(p) && !p.overCeiling && v.quorum(p) &&
		(p.follows == "" || v.followed(p, at) != nil)
	if ok {
		v.held = append(v.held, window{paper: p})
	}
	return ok
}

func (v *view) takeTrust(t *trustPaper) bool {
	ok := t.genuine && t.version > v.trust.version && t.organisation == v.trust.organisation &&
		t.epoch >= v.trust.epoch
	if ok {
		v.trust = t
	}
	return ok
}

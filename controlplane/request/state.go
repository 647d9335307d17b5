// Package request is what a person asks for and the states that it passes through.
//
// It is pure: no I/O, no clock of its own, no rule about who may do what (packages policy and
// approval hold those). Data comes from package access, which stores what comes out.
package request

import (
	"errors"
	"fmt"
)

// State is where a request stands.
type State uint8

// The states, in the order in which a request passes them. Values are stored: never renumber.
const (
	Pending   State = 1
	Approved  State = 2
	Denied    State = 3
	Withdrawn State = 4
	Lapsed    State = 5
	Granted   State = 6
	Ended     State = 7
)

var stateNames = map[State]string{
	Pending: "pending", Approved: "approved", Denied: "denied", Withdrawn: "withdrawn",
	Lapsed: "lapsed", Granted: "granted", Ended: "ended",
}

// String is the state's word, the same in CLI, logs and trail.
func (s State) String() string {
	if name, ok := stateNames[s]; ok {
		return name
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Event is what moves a request on.
type Event uint8

// The events. Extend and its outcomes leave a granted request granted.
const (
	EventApprove Event = iota + 1
	EventDeny
	EventWithdraw
	EventLapse
	EventGrant
	EventEnd
	EventExtend
)

var eventNames = map[Event]string{
	EventApprove: "approve", EventDeny: "deny", EventWithdraw: "withdraw", EventLapse: "lapse",
	EventGrant: "grant", EventEnd: "end", EventExtend: "extend",
}

// String is the event's verb.
func (e Event) String() string {
	if name, ok := eventNames[e]; ok {
		return name
	}
	return fmt.Sprintf("event(%d)", uint8(e))
}

// moves is the whole state machine of a request that has no extension open. What is not in it is
// refused.
var moves = map[State]map[Event]State{
	Pending: {
		EventApprove: Approved, EventDeny: Denied, EventWithdraw: Withdrawn, EventLapse: Lapsed,
	},
	// What is approved lapses only when its grants could not be sealed in time.
	Approved: {EventGrant: Granted, EventLapse: Lapsed},
	Granted:  {EventEnd: Ended, EventExtend: Granted},
}

// extensionMoves is the state machine of a granted request whose extension waits: the grants in
// force are untouched by what becomes of the extension.
var extensionMoves = map[Event]State{
	EventApprove: Granted, EventDeny: Granted, EventWithdraw: Granted, EventLapse: Granted,
	EventEnd: Ended,
}

// Errors that say why an event was refused; the text around them says it in words.
var (
	// ErrState means that the request is no longer (or not yet) in a state that permits the event.
	ErrState = errors.New("the request has moved on")
	// ErrStale means that the decision was made over another revision.
	ErrStale = errors.New("the request changed; look at it again")
	// ErrTwice means that the person has decided already.
	ErrTwice = errors.New("already decided")
)

// Next is the state after an event; extending says whether an extension waits for decisions.
func Next(s State, extending bool, e Event) (State, error) {
	next, ok := moves[s][e]
	if s == Granted && extending {
		next, ok = extensionMoves[e]
	}
	if ok {
		return next, nil
	}
	what := s.String()
	if s == Granted && extending {
		what = "granted with an extension waiting"
	}
	return s, fmt.Errorf("%w: it is %s, so it cannot %s", ErrState, what, passive(e))
}

func passive(e Event) string {
	switch e {
	case EventApprove:
		return "be approved"
	case EventDeny:
		return "be denied"
	case EventWithdraw:
		return "be withdrawn"
	case EventGrant:
		return "be granted"
	case EventExtend:
		return "be extended"
	case EventLapse, EventEnd:
	}
	return e.String()
}

// Final says whether nothing more can become of the request.
func (s State) Final() bool { return len(moves[s]) == 0 }

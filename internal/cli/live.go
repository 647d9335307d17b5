package cli

import (
	"fmt"
	"io"

	"github.com/curfew-access/curfew/internal/grant"
)

// live is the one line that says how a wait stands. On a terminal it is rewritten in place; else
// each new state is a line of its own.
type live struct {
	w     io.Writer
	tty   bool
	state string
	open  bool
}

func (p *printer) live() *live { return &live{w: p.err, tty: p.errTTY} }

// set shows the state. Elapsed is added on terminals only: a log wants changes, not seconds.
func (l *live) set(state, elapsed string) {
	state = grant.VisibleText(state)
	if !l.tty {
		if state != l.state {
			fmt.Fprintln(l.w, state)
		}
		l.state = state
		return
	}
	l.state = state
	tail := " · " + elapsed
	limit := max(terminalWidth(l.w)-1-columns(tail), 8)
	fmt.Fprint(l.w, "\r"+cut(state, limit)+tail+"\x1b[K")
	l.open = true
}

// clear takes the line away, so that the next output stands where it stood.
func (l *live) clear() {
	if l.open {
		fmt.Fprint(l.w, "\r\x1b[K")
		l.open = false
	}
}

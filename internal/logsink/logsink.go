// Package logsink hands log lines to a reader that may be slow or stopped, and never waits for it.
//
// Everything that ends access also logs, some of it under a lock. A journal that takes no more lines
// (its daemon stopped, its disk full) must hold up neither a login nor a purge: lines that find no
// room are counted and left out, and the count is the next line.
package logsink

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// room is how many lines wait for the reader: all grants of a host may end at once.
const room = 4096

// Sink is an io.Writer of whole lines; any goroutine may use it.
type Sink struct {
	out   io.Writer
	tell  func(lost uint64)
	lines chan func()
	done  chan struct{}

	mu     sync.Mutex // guards what follows; nothing waits under it
	lost   uint64
	closed bool
}

// New makes a sink in front of w, which one goroutine writes to from now on. Close ends it.
func New(w io.Writer) *Sink {
	return start(w, func(lost uint64) {
		_, _ = fmt.Fprintf(w, "[WARN]  %d log lines are lost: nobody took them\n", lost)
	})
}

// NewQueue makes a sink whose lines are handed over by Put. One goroutine calls what Put gets, and lost,
// which tells how many lines found no room.
func NewQueue(lost func(uint64)) *Sink { return start(io.Discard, lost) }

func start(w io.Writer, tell func(uint64)) *Sink {
	s := &Sink{out: w, tell: tell, lines: make(chan func(), room), done: make(chan struct{})}
	go s.run()
	return s
}

func (s *Sink) run() {
	defer close(s.done)
	for write := range s.lines {
		s.tellLost()
		write()
	}
	s.tellLost()
}

func (s *Sink) tellLost() {
	if n := s.takeLost(); n > 0 {
		s.tell(n)
	}
}

func (s *Sink) takeLost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.lost
	s.lost = 0
	return n
}

// Write takes a line, or leaves it out. It never fails and never waits.
func (s *Sink) Write(p []byte) (int, error) {
	line := bytes.Clone(p)
	s.Put(func() { _, _ = s.out.Write(line) }) // there is nobody to tell
	return len(p), nil
}

// Put takes what writes a line, or leaves it out. It never waits.
func (s *Sink) Put(write func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	select {
	case s.lines <- write:
	default:
		s.lost++
	}
}

// Close ends the sink and gives the reader as long as that for what still waits.
func (s *Sink) Close(wait time.Duration) {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.lines)
	}
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-time.After(wait):
	}
}

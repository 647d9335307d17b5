package inject

import (
	"fmt"
	"sync"
)

// Point is one step of a program: a call, and which one of its kind since the window was opened.
type Point struct {
	Key string
	N   int
}

func (p Point) String() string { return fmt.Sprintf("%s #%d", p.Key, p.N) }

// Script numbers the calls within a window and acts at one of them. Its Decide is for Listen.
type Script struct {
	// Only tells which calls count; nil counts all.
	Only func(Call) bool
	// Act is what happens at the point; nil kills.
	Act func(Call) Verdict

	mu     sync.Mutex // guards what follows
	open   bool
	seen   map[string]int
	points []Point
	target *Point
	hit    bool
}

// Begin opens the window. With a target, the script acts there and closes the window.
func (s *Script) Begin(target *Point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.seen, s.points, s.target, s.hit = true, make(map[string]int), nil, target, false
}

// End closes the window and returns what passed through it.
func (s *Script) End() []Point {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false
	return s.points
}

// Hit tells whether the target was reached since Begin.
func (s *Script) Hit() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hit
}

// Decide records a call within the window and acts when it is the target.
func (s *Script) Decide(c Call) Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open || s.Only != nil && !s.Only(c) {
		return Verdict{}
	}
	key := c.Key()
	s.seen[key]++
	p := Point{Key: key, N: s.seen[key]}
	s.points = append(s.points, p)
	if s.target == nil || *s.target != p {
		return Verdict{}
	}
	s.open, s.hit = false, true
	if s.Act != nil {
		return s.Act(c)
	}
	return Kill()
}

// Count is how many calls have passed through the window so far.
func (s *Script) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.points)
}

package logsink_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/logsink"
)

// A reader that stopped holds nobody up, and when it goes on it hears how much it missed.
func TestAStoppedReaderHoldsNobodyUp(t *testing.T) {
	r, w := io.Pipe() // takes nothing until somebody reads
	s := logsink.New(w)
	const lines = 5000
	done := make(chan struct{})
	go func() {
		defer close(done)
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				for i := range lines / 10 {
					fmt.Fprintf(s, "line %d\n", i)
				}
			})
		}
		group.Wait()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("writing waits for the reader")
	}
	closed := make(chan struct{})
	go func() { defer close(closed); s.Close(time.Millisecond) }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("the end waits for the reader")
	}
	heard := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(r)
		heard <- string(b)
	}()
	s.Close(20 * time.Second) // a second end is no harm, and waits for the reader
	_ = w.Close()
	text := <-heard
	got, lost := strings.Count(text, "line "), 0
	for line := range strings.Lines(text) {
		n := 0
		if _, err := fmt.Sscanf(line, "[WARN] %d log lines are lost", &n); err == nil {
			lost += n
		}
	}
	if got+lost != lines || lost == 0 {
		t.Errorf("%d lines arrived and %d are told lost, of %d", got, lost, lines)
	}
	if n, err := s.Write([]byte("late\n")); n != 5 || err != nil {
		t.Errorf("a line after the end: %d, %v", n, err)
	}
}

// What a willing reader gets is everything, whole and in order.
func TestNothingIsLostOnAReader(t *testing.T) {
	var out strings.Builder
	s := logsink.New(&out)
	var want strings.Builder
	for i := range 500 {
		fmt.Fprintf(io.MultiWriter(s, &want), "line %d\n", i)
	}
	s.Close(20 * time.Second)
	if out.String() != want.String() {
		t.Errorf("%d bytes arrived of %d", out.Len(), want.Len())
	}
}

package watch_test

import (
	"errors"
	"testing"

	"github.com/curfew-access/curfew/controlplane/watch"
)

func TestSlowWatcherIsDroppedAndTold(t *testing.T) {
	var b watch.Bell
	slow, quick := b.Subscribe(2), b.Subscribe(10)
	for range 3 {
		b.Ring(watch.Change{Records: true})
	}
	n := 0
	for range slow.C {
		n++
	}
	if n != 2 || !errors.Is(slow.Err(), watch.ErrSlow) {
		t.Errorf("the slow one got %d changes and %v", n, slow.Err())
	}
	if len(quick.C) != 3 || quick.Err() != nil {
		t.Errorf("the quick one has %d changes and %v", len(quick.C), quick.Err())
	}
	quick.Close()
	quick.Close()
	b.Ring(watch.Change{Records: true})
	b.Close()
	if late := b.Subscribe(1); !errors.Is(late.Err(), watch.ErrClosed) {
		t.Errorf("a subscription after the end: %v", late.Err())
	}
}

func TestChangeNamesOnce(t *testing.T) {
	var c watch.Change
	if !c.Empty() {
		t.Error("the zero change is not empty")
	}
	c.AddRequest("a")
	c.AddRequest("a")
	c.AddHost([32]byte{1})
	c.AddHost([32]byte{1})
	if len(c.Requests) != 1 || len(c.Hosts) != 1 || c.Empty() {
		t.Errorf("it is %+v", c)
	}
}

package pace

import (
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// Rest counts nearly whole; time in which more wants to run than there are cores counts less.
func TestPaceStandsStillWhileTheMachineIsShort(t *testing.T) {
	ctx := t.Context()
	for range 4 * runtime.NumCPU() {
		busy := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = busy.Process.Kill(); _ = busy.Wait() }()
	}
	time.Sleep(200 * time.Millisecond)
	watch := Start()
	const slept = 3 * time.Second
	time.Sleep(slept)
	got, wall := watch.Elapsed(), time.Since(watch.began)
	if got > wall*6/10 || got < slept/10 {
		t.Errorf("of %s on a machine with four times too much to do, %s count", wall, got)
	}
}

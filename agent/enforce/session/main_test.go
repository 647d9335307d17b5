package session

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain also makes the test binary the small program that host tests run on real hosts.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "onhost" {
		if err := onHost(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests kill processes of other users and boot hosts: run as root")
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

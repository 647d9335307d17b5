package packages

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

var (
	every = flag.Bool("every", false, "play every point on Debian 12, and Debian 11 and 13 too")
	seed  = flag.Uint64("seed", 0, "seed of samples; 0 draws one")
	at    = flag.String("at", "", "play one point, as OPERATION:HOW:COMMAND, of which a part will do: install:script:setup-agent: mv")
)

// The versions between which hosts go.
const (
	older = stage.Older
	newer = stage.Newer
)

// The packages of a host, and of a control plane's machine from which people work too. Each is sorted.
var (
	agentPackages = []string{"curfew-agent", "libnss-curfew", "libpam-curfew"}
	planePackages = []string{"curfew", "curfew-controlplane"}
)

// built is a folder with one folder of packages for each version.
var built string

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests boot hosts: run them as root")
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	err := build(ctx)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// build makes bin/ for the control plane and for laptops, and the packages of both versions.
func build(ctx context.Context) (err error) {
	if err := stage.Build(ctx); err != nil {
		return err
	}
	built, err = stage.Packages(ctx)
	return err
}

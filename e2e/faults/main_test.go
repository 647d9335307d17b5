package faults

import (
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/inject"
	"github.com/curfew-access/curfew/e2e/stage"
)

var (
	every = flag.Bool("every", false, "play every point, not a sample")
	seed  = flag.Uint64("seed", 0, "seed of the sample; 0 draws one")
)

// storyLimit bounds one test; with -every some are long.
const storyLimit = 40 * time.Minute

// launcher puts a program under the injector.
var launcher string

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests boot hosts: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "curfew-faults-")
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		err = stage.Build(ctx)
		cancel()
	}
	if err == nil {
		launcher, err = inject.Build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir) // a temporary folder
	os.Exit(code)
}

// sample draws n of the points, or all with -every, in their order.
func sample[T any](t *testing.T, points []T, n int) []T {
	t.Helper()
	if *every || n >= len(points) {
		t.Logf("all %d points", len(points))
		return points
	}
	drawn := *seed
	if drawn == 0 {
		drawn = rand.Uint64()
	}
	t.Logf("%d of %d points, drawn by -seed %d", n, len(points), drawn)
	order := rand.New(rand.NewPCG(drawn, 0)).Perm(len(points))[:n]
	slices.Sort(order)
	var list []T
	for _, i := range order {
		list = append(list, points[i])
	}
	return list
}

func base64of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// Bench measures what Curfew costs, on real hosts, each thing beside a peer that does the least that
// could be done: the same exchange with nothing in it, the same login without Curfew.
//
//	bench            every row
//	bench WORD…      the rows whose name holds a WORD
//	bench -list      only their names
//
// A row prints `bench NAME value unit ratio=R against=PEER bar=B ok|over n=N`. Ours and the peer's
// are taken in turns, so that whatever else the machine does meets both; values are medians, or the
// quantile that the name tells. A bar that is missed fails nothing: figures are to be read. The exit
// status is 0 unless the bench itself could not be carried out.
//
// A new measurement is one more row in rows (table.go): a function that calls Pairs or takes its own
// samples, and Print.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// limit bounds a whole run.
const limit = 20 * time.Minute

func main() {
	if len(os.Args) > 2 && os.Args[1] == "inside" {
		exit(inside(os.Args[2], os.Args[3:]))
	}
	list := flag.Bool("list", false, "only list the rows")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	exit(run(ctx, *list, flag.Args()))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, list bool, only []string) (err error) {
	b := &Bench{out: os.Stdout}
	defer func() {
		if closing := b.close(); err == nil {
			err = closing
		}
	}()
	var broken []string
	for _, r := range rows {
		if !wanted(r.name, only) {
			continue
		}
		if list {
			fmt.Println(r.name)
			continue
		}
		began := time.Now()
		if err := r.run(ctx, b); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", r.name, err)
			broken = append(broken, r.name)
		}
		fmt.Fprintf(os.Stderr, "# %s took %s\n", r.name, time.Since(began).Round(time.Second))
	}
	if len(broken) > 0 {
		return fmt.Errorf("these rows could not be measured: %s", strings.Join(broken, ", "))
	}
	return nil
}

func wanted(name string, only []string) bool {
	for _, word := range only {
		if strings.Contains(name, word) {
			return true
		}
	}
	return len(only) == 0
}

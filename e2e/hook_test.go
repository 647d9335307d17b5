package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
)

// receiveHooks is this test binary run on a laptop as a receiver of webhooks: it refuses the first
// delivery with 503 and prints signature and body of each later one.
func receiveHooks(address string) int {
	var deliveries atomic.Int32
	err := http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || deliveries.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Printf("%s %s\n", r.Header.Get("Curfew-Signature"), body)
	}))
	fmt.Fprintln(os.Stderr, err)
	return 1
}

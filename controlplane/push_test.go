package controlplane_test

import (
	"testing"
	"time"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// A revocation that overtakes the host's answer to the state before it arrives in time all the same.
func TestRevocationOvertakesAnAnswer(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	web1.slow.Store(int64(120 * time.Millisecond)) // a host with a slow disk
	for range 4 {
		r := alice.ask("web1")
		_, err := bob.approve(r)
		must(t, err)
		time.Sleep(70 * time.Millisecond) // the grant's state is on its way, its answer is not
		_, err = bob.Revoke(t.Context(), &apiv1.RevokeRequest{Id: r.GetId()})
		must(t, err)
		began := time.Now()
		for len(web1.grants()) > 0 || !web1.ended(r) {
			if time.Since(began) > 2*time.Second {
				t.Fatalf("a revocation has not reached the host after %s", time.Since(began))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

package controlplane_test

import (
	"testing"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/policy"
)

// What a host may carry can be asked for, in a request, a role and a stage of a rollout: one letter that only
// hosts know would be a host that no selector reaches.
func TestLabelsOfHostsCanBeAskedFor(t *testing.T) {
	for c := range 256 {
		labels := map[string]string{"a" + string([]byte{byte(c)}): "b" + string([]byte{byte(c)})}
		host, ask := enrol.CheckLabels(labels), policy.CheckLabels(labels)
		if (host == nil) != (ask == nil) {
			t.Errorf("byte %#x: hosts %v, selectors %v", c, host, ask)
		}
	}
}

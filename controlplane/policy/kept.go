package policy

import (
	"encoding/json"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/request"
)

// Record is an ask with the facts of its decision, as they are kept with every request.
type Record struct {
	Ask   request.Ask `json:"ask"`
	Facts Facts       `json:"facts"`
}

// Keep encodes an ask and the facts that it was decided on.
func Keep(a request.Ask, f Facts) ([]byte, error) {
	hosts := make(map[string]Host, len(a.Hosts))
	for _, name := range a.Hosts {
		hosts[name] = f.Hosts[name]
	}
	f.Hosts = hosts
	b, err := json.Marshal(Record{Ask: a, Facts: f})
	if err != nil {
		return nil, fmt.Errorf("encoding the facts of a decision: %w", err)
	}
	return b, nil
}

// Kept reads what Keep wrote; false when nothing, or nothing readable, was kept.
func Kept(raw []byte) (Record, bool) {
	var r Record
	return r, len(raw) > 0 && json.Unmarshal(raw, &r) == nil
}

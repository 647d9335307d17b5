package main

import "testing"

// Each break still has its place in the source: to run them all takes hours, and one that no longer applies
// shows nothing meanwhile.
func TestBreaksHaveTheirPlace(t *testing.T) {
	const root = "../.."
	all, err := readAll(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 500 {
		t.Errorf("only %d breaks are found", len(all))
	}
	for _, m := range all {
		if _, err := readOnce(root, m.file, m.old); err != nil {
			t.Errorf("%s: %s: %v", m.source, m.name, err)
		}
		if m.file2 == "" {
			continue
		}
		if _, err := readOnce(root, m.file2, m.old2); err != nil {
			t.Errorf("%s: %s: %v", m.source, m.name, err)
		}
	}
}

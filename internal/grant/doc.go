// Package grant holds what Curfew seals and checks: terms, grants, host states, the trust file, and
// the rules by which a host accepts them.
//
// It is pure: no I/O and no clock of its own; time, randomness and keys are passed in. The control
// plane builds and seals with it, the host's root half verifies with it, and both therefore agree
// on every byte. What it accepts goes to the enforcers; what it refuses comes back as an error that
// says which check failed. The formats are those of proto/PROTOCOL.md, section 1.
package grant

// Package soak uses Curfew for a long time the way a bad day does, and then looks for what is left.
//
// People ask, approve, log in, use sudo, leave processes behind, extend, hand back and are revoked,
// while the halves of the agent are killed and stopped, hosts reboot and lose power, the control
// plane restarts, and cables are pulled. A plan made from one seed decides who does what in which
// order; the seed is printed, and the same seed makes the same plans. What happens between two plans
// at the same moment is the machine's to decide, as it is in life.
//
// Three things are demanded while it goes on: no rule, key or process of a person's without a grant
// that is live (truth.go knows until when each may be), a granted login that works where nothing is
// broken, and a local admin and the break-glass user who get in whatever happens to the agent. At the
// end everything must be as it was after the warm-up: Compare.
package soak

// Package version says what build this is.
package version

// Version is the git tag or commit; the Makefile's linker flags set it.
var Version = "dev"

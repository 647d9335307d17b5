// Command curfew asks for access to hosts, decides about it, uses it and hands it back. All of it
// is in internal/cli.
package main

import (
	"os"

	"github.com/curfew-access/curfew/internal/cli"
	"github.com/curfew-access/curfew/internal/version"
)

func main() { os.Exit(cli.Main(cli.OSEnv(version.Version))) }

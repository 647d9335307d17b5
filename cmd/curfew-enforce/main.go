// Command curfew-enforce is the root half of a host's agent. systemd runs it; `curfew-agent enforce`
// becomes it. It is a program of its own so that nothing of the network is in it.
package main

import (
	"os"

	"github.com/curfew-access/curfew/internal/rootcli"
)

func main() { os.Exit(rootcli.Main(os.Args[1:], os.Stdout, os.Stderr)) }

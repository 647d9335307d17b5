// Command curfew-agent is a host's side of Curfew: the root half (enforce), the link half (link), and
// what an admin of the host types. All of it is in internal/agentcli.
package main

import (
	"os"

	"github.com/curfew-access/curfew/internal/agentcli"
)

func main() { os.Exit(agentcli.Main(os.Args[1:], os.Stdout, os.Stderr)) }

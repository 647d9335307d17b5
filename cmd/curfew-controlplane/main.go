// Command curfew-controlplane decides requests, seals grants, streams them to hosts and keeps the
// trail. All of it is in controlplane; its commands are in internal/cpcli.
package main

import (
	"os"

	"github.com/curfew-access/curfew/internal/cpcli"
)

func main() { os.Exit(cpcli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

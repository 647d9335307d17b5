// Command launch becomes a program whose changing system calls an injector decides about:
//
//	launch SOCKET PROGRAM [ARGUMENT...]
package main

import (
	"fmt"
	"os"

	"github.com/curfew-access/curfew/e2e/inject"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: launch SOCKET PROGRAM [ARGUMENT...]")
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "launch:", inject.Launch(os.Args[1], os.Args[2:]))
	os.Exit(1)
}

package stage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// install puts a part of the product into a root folder.
func install(ctx context.Context, what string) func(string) error {
	return func(at string) error {
		root, err := Root()
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, filepath.Join(root, "packaging/install.sh"), "--root", at, what)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("install.sh %s: %w\n%s", what, err, out)
		}
		return nil
	}
}

// bring builds programs of the stories' own for a host.
func bring(ctx context.Context, to string, programs []string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	for _, name := range programs {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(to, "usr/local/bin", name), "./e2e/"+name)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

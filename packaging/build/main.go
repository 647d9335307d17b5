// Command build makes Curfew's packages: deb and rpm, for amd64 and arm64, with checksums and a bill
// of materials. Two builds of one commit are equal byte for byte.
//
// What a package consists of stands in packaging/files and in packages.go; nfpm writes the archives.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := build(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "build: error: %v\n", err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func build(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	top := flags.String("top", ".", "the top of the source tree")
	out := flags.String("o", "dist/packages", "where packages go; what is there is removed")
	arch := flags.String("arch", "amd64,arm64", "architectures")
	only := flags.String("only", "", "these packages only, by name")
	kinds := flags.String("kind", "deb,rpm", "kinds of package")
	described := flags.String("version", "", "instead of git describe's word, such as v1.2.3")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	b := Build{
		Out: *out, Arches: strings.Split(*arch, ","), Kinds: strings.Split(*kinds, ","),
		Say: func(s string) { fmt.Println("  " + s) },
	}
	for name := range strings.SplitSeq(*only, ",") {
		if name != "" {
			b.Only = append(b.Only, name)
		}
	}
	var err error
	if b.Top, err = filepath.Abs(*top); err != nil {
		return err
	}
	if b.Version, err = versionOf(ctx, b.Top, *described); err != nil {
		return err
	}
	return b.Run(ctx)
}

// versionOf asks git for what was not said: the version, and the time of the commit, which is the time of
// everything in the packages unless SOURCE_DATE_EPOCH says another.
func versionOf(ctx context.Context, top, described string) (Version, error) {
	seconds := os.Getenv("SOURCE_DATE_EPOCH")
	var err error
	if seconds == "" {
		if seconds, err = output(ctx, top, "git", "log", "-1", "--format=%ct"); err != nil {
			return Version{}, err
		}
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return Version{}, fmt.Errorf("%w: SOURCE_DATE_EPOCH: %w", errUsage, err)
	}
	if described == "" {
		described, err = output(ctx, top, "git", "describe", "--tags", "--always", "--dirty")
		if err != nil {
			return Version{}, err
		}
	}
	return ParseVersion(described, time.Unix(n, 0))
}

// A Build is what to make of the source tree at Top.
type Build struct {
	Top, Out string
	Version  Version
	Arches   []string // Go's names
	Kinds    []string // deb, rpm
	Only     []string // packages; empty means all
	Say      func(string)

	work string
}

// Run makes the packages anew.
func (b Build) Run(ctx context.Context) error {
	b.work = filepath.Join(b.Out, "work")
	if err := os.RemoveAll(b.Out); err != nil {
		return err
	}
	if err := os.MkdirAll(b.work, 0o755); err != nil {
		return err
	}
	var err error
	if b.work, err = filepath.Abs(b.work); err != nil {
		return err
	}
	packages, err := b.packages()
	if err != nil {
		return err
	}
	var bill bill
	for _, arch := range b.Arches {
		if _, ok := machines[arch]; !ok {
			return fmt.Errorf("%w: unknown architecture %q: want amd64 or arm64", errUsage, arch)
		}
		if err := b.compile(ctx, arch, packages); err != nil {
			return fmt.Errorf("building for %s: %w", arch, err)
		}
		if err := b.document(ctx, arch, packages); err != nil {
			return fmt.Errorf("writing the documents: %w", err)
		}
		for _, p := range packages {
			for _, kind := range b.Kinds {
				file, err := b.pack(ctx, p, kind, arch)
				if err == nil {
					err = bill.add(b, p, arch, file)
				}
				if err != nil {
					return fmt.Errorf("packing %s for %s as %s: %w", p.Name, arch, kind, err)
				}
			}
		}
	}
	if err := bill.write(b); err != nil {
		return fmt.Errorf("writing the bill of materials: %w", err)
	}
	if err := os.RemoveAll(b.work); err != nil {
		return err
	}
	return b.sums()
}

// A machine is an architecture in everybody's words.
type machine struct{ triplet, rpm string }

var machines = map[string]machine{
	"amd64": {"x86_64-linux-gnu", "x86_64"},
	"arm64": {"aarch64-linux-gnu", "aarch64"},
}

func (b Build) bin(arch string) string { return filepath.Join(b.work, arch) }

// compile makes the programs and the C modules that the packages hold.
func (b Build) compile(ctx context.Context, arch string, packages []Package) error {
	m := machines[arch]
	need := func(file string) bool {
		return slices.ContainsFunc(packages, func(p Package) bool {
			return slices.ContainsFunc(p.Files, func(f File) bool { return f.Source == "bin/"+file })
		})
	}
	var mains []string
	for _, program := range programs {
		if need(program) {
			b.Say(arch + " " + program)
			mains = append(mains, "./cmd/"+program)
		}
	}
	if len(mains) > 0 {
		// -buildid= since the build id differs between machines that build the same.
		ldflags := "-s -w -buildid= -X github.com/curfew-access/curfew/internal/version.Version=" + b.Version.Program
		// All at once: a linker uses one processor.
		if err := b.command(ctx, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1"},
			append([]string{
				"go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags,
				"-o", b.bin(arch) + "/",
			}, mains...)...); err != nil {
			return err
		}
	}
	for module, file := range map[string]string{"pam": "pam_curfew.so", "nss": "libnss_curfew.so.2"} {
		if !need(file) {
			continue
		}
		b.Say(arch + " " + file)
		argv := []string{
			"make", "-s", "-C", module, "all", "BIN=" + b.bin(arch),
			"CC=" + m.triplet + "-gcc", "STRIP=" + m.triplet + "-strip",
			// Paths get into the build id by way of the debugging symbols.
			"CFLAGS=-ffile-prefix-map=" + filepath.Join(b.Top, module) + "=.",
		}
		if module == "pam" && arch != runtime.GOARCH {
			root := filepath.Join(b.Top, "dist/sysroot", arch)
			if _, err := os.Stat(filepath.Join(root, "libpam.so")); err != nil {
				return fmt.Errorf("libpam for %s is missing: run packaging/build/deps.sh arm64 (%w)", arch, err)
			}
			// libpam itself needs libaudit, which is the host's to have.
			argv[len(argv)-1] += " -isystem " + filepath.Join(root, "usr/include")
			argv = append(argv, "LDFLAGS=-L"+root+" -Wl,--allow-shlib-undefined")
		}
		if err := b.command(ctx, nil, argv...); err != nil {
			return err
		}
	}
	return nil
}

var programs = []string{"curfew", "curfew-agent", "curfew-enforce", "curfew-controlplane"}

// command runs argv at the top of the source tree.
func (b Build) command(ctx context.Context, env []string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = b.Top
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(b.Version.Epoch.Unix(), 10), "LC_ALL=C")
	cmd.Env = append(cmd.Env, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

func output(ctx context.Context, dir string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s in %s: %w", strings.Join(argv, " "), dir, err)
	}
	return strings.TrimSpace(string(out)), nil
}

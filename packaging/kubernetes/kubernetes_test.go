// Package kubernetes holds the manifests of the control plane and this test of what they run. That they
// are what the API takes is shown in check/, a module of its own for what that needs.
package kubernetes

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/internal/join"
)

// pod is the part of the StatefulSet that says what runs, where and as whom.
type pod struct {
	SecurityContext struct {
		RunAsUser  uint32 `yaml:"runAsUser"`
		RunAsGroup uint32 `yaml:"runAsGroup"`
		FSGroup    uint32 `yaml:"fsGroup"`
	} `yaml:"securityContext"`
	InitContainers []container `yaml:"initContainers"`
	Containers     []container `yaml:"containers"`
	Volumes        []struct {
		Name      string `yaml:"name"`
		ConfigMap *struct {
			Items []struct {
				Key  string `yaml:"key"`
				Path string `yaml:"path"`
			} `yaml:"items"`
		} `yaml:"configMap"`
		Secret *struct {
			DefaultMode os.FileMode `yaml:"defaultMode"`
		} `yaml:"secret"`
	} `yaml:"volumes"`
}

type container struct {
	Name string   `yaml:"name"`
	Args []string `yaml:"args"`
	Env  []struct {
		Name      string `yaml:"name"`
		ValueFrom struct {
			ConfigMapKeyRef struct {
				Key string `yaml:"key"`
			} `yaml:"configMapKeyRef"`
		} `yaml:"valueFrom"`
	} `yaml:"env"`
	VolumeMounts []struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

// cluster does what a kubelet would do with the manifests: it lays the volumes into a root that holds what
// the Containerfile copies, and runs the containers' arguments there.
type cluster struct {
	t      *testing.T
	root   string
	pod    pod
	config map[string]string
}

func read(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err == nil {
		err = yaml.Load(data, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build makes the image's root. Where the program is copied from and to, the Containerfile says.
func (c *cluster) build() {
	c.t.Helper()
	must(c.t, os.Chmod(c.root, 0o755))
	file, err := os.ReadFile("Containerfile")
	must(c.t, err)
	copied := regexp.MustCompile(`(?m)^COPY bin/(\S+) (\S+)$`).FindAllStringSubmatch(string(file), -1)
	if len(copied) != 1 || !strings.Contains(string(file), "\nFROM scratch\n") ||
		!strings.Contains(string(file), fmt.Sprintf("\nUSER %d:%d\n", c.pod.SecurityContext.RunAsUser,
			c.pod.SecurityContext.RunAsGroup)) ||
		!strings.Contains(string(file), fmt.Sprintf("\nENTRYPOINT [%q]\n", copied[0][2])) {
		c.t.Fatalf("the Containerfile copies %q, or its user or program is not the manifest's", copied)
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(c.root, copied[0][2]), "../../cmd/"+copied[0][1])
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
}

// mount lays the volumes out as the kubelet does.
func (c *cluster) mount(change func(config string) string, secrets map[string]string) {
	c.t.Helper()
	group := int(c.pod.SecurityContext.FSGroup)
	for _, m := range c.pod.Containers[0].VolumeMounts {
		at := filepath.Join(c.root, m.MountPath)
		must(c.t, os.MkdirAll(at, 0o755))
		for _, v := range c.pod.Volumes {
			switch {
			case v.Name != m.Name:
			case v.ConfigMap != nil:
				for _, item := range v.ConfigMap.Items {
					must(c.t, os.WriteFile(filepath.Join(at, item.Path), []byte(change(c.config[item.Key])), 0o644))
				}
			case v.Secret != nil:
				for name, text := range secrets {
					path := filepath.Join(at, name)
					must(c.t, os.WriteFile(path, []byte(text), 0o600))
					must(c.t, errors.Join(os.Chown(path, 0, group), os.Chmod(path, v.Secret.DefaultMode)))
				}
			default: // emptyDir
				must(c.t, os.Chmod(at, 0o777))
			}
		}
		if m.Name == "data" { // from the claim's template: a fresh volume, given to fsGroup
			must(c.t, os.Mkdir(filepath.Join(at, "lost+found"), 0o700))
			must(c.t, errors.Join(os.Chown(at, 0, group), os.Chmod(at, 0o775|os.ModeSetgid)))
		}
	}
}

// command is a container's process: its arguments, or others in its place.
func (c *cluster) command(ctx context.Context, k container, args ...string) *exec.Cmd {
	if args == nil {
		args = k.Args
	}
	var env, replace []string
	for _, e := range k.Env {
		value := c.config[e.ValueFrom.ConfigMapKeyRef.Key]
		env, replace = append(env, e.Name+"="+value), append(replace, "$("+e.Name+")", value)
	}
	final := make([]string, 0, len(args))
	for _, a := range args {
		final = append(final, strings.NewReplacer(replace...).Replace(a))
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/curfew-controlplane", final...)
	cmd.Err, cmd.Env, cmd.Dir = nil, env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root, Credential: &syscall.Credential{
		Uid: c.pod.SecurityContext.RunAsUser, Gid: c.pod.SecurityContext.RunAsGroup,
	}}
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// The manifests' containers run from nothing but what the Containerfile copies, as the user, with the
// volumes and secrets and in the order that the StatefulSet says; restarts and backups work there.
func TestThePodRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test changes its root: run it as root")
	}
	var set struct {
		Spec struct {
			Template struct {
				Spec pod `yaml:"spec"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	var configMap struct {
		Data map[string]string `yaml:"data"`
	}
	read(t, "40-statefulset.yaml", &set)
	read(t, "20-config.yaml", &configMap)
	c := &cluster{t: t, root: t.TempDir(), pod: set.Spec.Template.Spec, config: configMap.Data}
	if len(c.pod.InitContainers) != 1 || len(c.pod.Containers) != 1 {
		t.Fatalf("%d and %d containers", len(c.pod.InitContainers), len(c.pod.Containers))
	}
	c.build()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := free.Addr().String()
	must(t, free.Close())
	c.mount(func(config string) string {
		// The port is this machine's; the webhook shows that a mounted secret is accepted.
		return strings.ReplaceAll(config, `listen: ":7443"`, "listen: "+address+`
webhooks: [{url: "https://hooks.example.org/", secret_file: /run/curfew-secrets/hook}]`)
	}, map[string]string{"hook": "0123456789abcdef"})

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	pin := ""
	for range 2 { // the second time is a restart of the pod
		out, err := c.command(ctx, c.pod.InitContainers[0]).CombinedOutput()
		if err != nil {
			t.Fatalf("init: %v\n%s", err, out)
		}
		if m := regexp.MustCompile(`curfew login --server curfew\.example\.org:7443 --ca-pin (\S{43}) --user dana`).
			FindSubmatch(out); m != nil {
			pin += string(m[1])
		}
	}
	if len(pin) != 43 {
		t.Fatalf("the logs of init name the pins %q; want one, the first time", pin)
	}

	cmd := c.command(ctx, c.pod.Containers[0])
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	want, err := join.ParsePin(pin)
	must(t, err)
	for {
		conn, err := tls.Dial("tcp", address, join.PinnedTLS(want, time.Now, nil))
		if err == nil {
			must(t, conn.Close())
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("it ended with %v\n%s", err, &log)
		case <-ctx.Done():
			t.Fatalf("nobody answers: %v\n%s", err, &log)
		case <-time.After(100 * time.Millisecond):
		}
	}

	// As by kubectl exec, whose only way out of a container without a shell is stdout.
	var archive, said bytes.Buffer
	backup := c.command(ctx, c.pod.Containers[0], "backup", "-")
	backup.Stdout, backup.Stderr = &archive, &said
	if err := backup.Run(); err != nil {
		t.Fatalf("backup: %v\n%s", err, &said)
	}
	names := 0
	for r := tar.NewReader(bytes.NewReader(archive.Bytes())); ; names++ {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the backup is no archive: %v", err)
		}
	}
	if names < 5 {
		t.Errorf("the backup holds %d files", names)
	}
	restore := c.command(ctx, c.pod.Containers[0], "restore", "--data-dir", "/var/lib/curfew/again", "-")
	restore.Stdin = &archive
	if out, err := restore.CombinedOutput(); err != nil {
		t.Errorf("restore: %v\n%s", err, out)
	}
	left, err := os.ReadDir(filepath.Join(c.root, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("copies of every key stay behind in /tmp: %v, %v", left, err)
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := <-ended; err != nil {
		t.Errorf("told to stop, it ended with %v\n%s", err, &log)
	}
}

package world_test

import (
	"strings"
	"testing"

	"github.com/curfew-access/curfew/e2e/world"
)

func TestTerminal(t *testing.T) {
	ctx, w := newWorld(t)
	h := addHost(ctx, t, w, world.HostOptions{Name: "web1"})
	ada := addLaptop(ctx, t, w, "ada")
	addUser(ctx, t, h, ada)
	term, err := ada.StartPTY(ctx, "ssh", "web1")
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	for _, step := range []struct{ want, send string }{
		{`ada@web1:~\$ `, "tty; stty size\n"},
		{`/dev/pts/0\n24 100\n(.*\n)*.*ada@web1:~\$ `, "sudo -i\n"},
		{`root@web1:~# `, "echo $((6*7)) $SUDO_USER\n"},
		{`42 ada\n.*root@web1:~# `, "\x04"},
		{`ada@web1:~\$ `, "exit 3\n"},
	} {
		if _, err := term.Expect(ctx, step.want); err != nil {
			t.Fatal(err)
		}
		if err := term.Send(step.send); err != nil {
			t.Fatal(err)
		}
	}
	if exit, err := term.Wait(ctx); err != nil || exit != 3 {
		t.Errorf("ssh ended with %d, %v", exit, err)
	}
	if shown := term.Transcript(); strings.ContainsAny(shown, "\x1b\a") {
		t.Errorf("control sequences in %q", shown)
	}
	if _, err := term.Expect(ctx, "never"); err == nil {
		t.Error("a match came after the end")
	}
}

func TestLaptop(t *testing.T) {
	ctx, w := newWorld(t)
	ada := addLaptop(ctx, t, w, "ada")
	if err := ada.Put("bin/hello", "/bin/echo"); err != nil {
		t.Fatal(err)
	}
	if err := ada.Write("notes/today", []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, complaint, exit, err := ada.Run(ctx, "sh", "-c",
		`hello $(whoami) $HOME $PWD; cat notes/today; ls /home /tmp; stat -c %U . notes; exit 5`)
	want := "ada /home/ada /home/ada\ntext/home:\nada\n\n/tmp:\nada\nada\n"
	if err != nil || exit != 5 || complaint != "" || out != want {
		t.Errorf("got %q, %q, %d, %v; want %q", out, complaint, exit, err, want)
	}
	if _, _, _, err := ada.Run(ctx); err == nil {
		t.Error("running nothing succeeded")
	}
}

package gate

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain also makes the test binary a client of the socket: a process with uids of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 4 && os.Args[1] == "client" {
		if err := client(os.Args[2], os.Args[3], os.Args[4], os.Args[5:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests ask as other users: run as root")
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// client connects with the given real and effective uid, sends a packet and prints the answer in
// hex. Then it waits for its standard input to end, with the connection open.
//
// With "leave" it hands the connection to a child and exits first, so that its pid is nobody's.
func client(socket, uids, packet string, how []string) error {
	var real, effective int
	if _, err := fmt.Sscanf(uids, "%d/%d", &real, &effective); err != nil {
		return err
	}
	if len(how) > 0 && strings.HasPrefix(how[0], "loginuid=") {
		// What pam_loginuid does.
		err := os.WriteFile("/proc/self/loginuid", []byte(how[0][len("loginuid="):]), 0)
		if err != nil {
			return err
		}
	}
	if len(how) > 0 && strings.HasPrefix(how[0], "comm=") {
		if err := os.WriteFile("/proc/self/comm", []byte(how[0][len("comm="):]), 0); err != nil {
			return err
		}
	}
	if err := unix.Setresuid(real, effective, effective); err != nil {
		return err
	}
	var conn *net.UnixConn
	if len(how) > 0 && how[0] == "inherited" {
		c, err := net.FileConn(os.NewFile(3, "conn"))
		if err != nil {
			return err
		}
		conn = c.(*net.UnixConn)
		for os.Getppid() == mustAtoi(how[1]) {
			time.Sleep(time.Millisecond)
		}
	} else {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
		if err != nil {
			return err
		}
		conn = c
	}
	if len(how) > 0 && how[0] == "leave" {
		file, err := conn.File()
		if err != nil {
			return err
		}
		_, err = os.StartProcess("/proc/self/exe", []string{
			os.Args[0], "client", socket, uids, packet, "inherited", strconv.Itoa(os.Getpid()),
		}, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, file}})
		return err
	}
	bytes, err := hex.DecodeString(packet)
	if err != nil {
		return err
	}
	if len(how) > 0 && how[0] == "hangup" {
		_, err = conn.Write(bytes)
		_ = conn.Close()
		fmt.Println("hung up")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return err
	}
	if _, err := conn.Write(bytes); err != nil {
		return err
	}
	reply := make([]byte, 2048)
	n, err := conn.Read(reply)
	if err != nil {
		return err
	}
	fmt.Println(hex.EncodeToString(reply[:n]))
	if len(how) > 0 && how[0] == "copy" {
		// Like sshd's unprivileged half: a child that keeps the connection.
		file, err := conn.File()
		if err != nil {
			return err
		}
		_, err = os.StartProcess("/bin/cat", []string{"cat"}, &os.ProcAttr{
			Files: []*os.File{os.Stdin, nil, nil, file},
		})
		if err != nil {
			return err
		}
		fmt.Println("copied")
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func mustAtoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

package pam_test

import (
	"debug/elf"
	"fmt"
	"slices"
	"testing"
)

// TestTheObjectItself: what sshd maps holds nothing that is writable and executable, binds
// before it runs, pulls in nothing but libc and libpam, and shows nothing but PAM's functions.
func TestTheObjectItself(t *testing.T) {
	f, err := elf.Open(bin + "/pam_curfew.so")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	needed, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(needed)
	if want := []string{"libc.so.6", "libpam.so.0"}; !slices.Equal(needed, want) {
		t.Errorf("DT_NEEDED is %v, want %v", needed, want)
	}

	imported, err := f.ImportedSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range imported {
		var minor int
		if n, _ := fmt.Sscanf(s.Version, "GLIBC_2.%d", &minor); n == 1 && minor > 31 {
			t.Errorf("%s needs %s; Debian 11 has 2.31, and PAM would skip the module", s.Name, s.Version)
		}
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var exported []string
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF && elf.ST_BIND(s.Info) != elf.STB_LOCAL {
			exported = append(exported, s.Name)
		}
		switch s.Name {
		case "fork", "getenv", "secure_getenv", "signal", "sigaction", "pthread_create",
			"getpwnam", "getpwuid", "getpwnam_r", "getpwuid_r",
			"system", "popen", "strcpy", "sprintf":
			t.Errorf("it uses %s", s.Name)
		}
	}
	slices.Sort(exported)
	want := []string{
		"pam_sm_acct_mgmt", "pam_sm_authenticate", "pam_sm_close_session",
		"pam_sm_open_session", "pam_sm_setcred",
	}
	if !slices.Equal(exported, want) {
		t.Errorf("exported: %v, want %v", exported, want)
	}

	relro, stack := false, false
	for _, p := range f.Progs {
		if p.Flags&elf.PF_W != 0 && p.Flags&elf.PF_X != 0 {
			t.Errorf("segment %v is writable and executable", p.Type)
		}
		relro = relro || p.Type == elf.PT_GNU_RELRO
		stack = stack || p.Type == elf.PT_GNU_STACK
	}
	if !relro || !stack {
		t.Errorf("PT_GNU_RELRO %v, PT_GNU_STACK %v; want both", relro, stack)
	}
	flags, err := f.DynValue(elf.DT_FLAGS)
	if err != nil || len(flags) != 1 || elf.DynFlag(flags[0])&elf.DF_BIND_NOW == 0 {
		t.Errorf("DT_FLAGS %v (%v): no BIND_NOW, so RELRO is not full", flags, err)
	}
	if rel, err := f.DynValue(elf.DT_TEXTREL); err != nil || len(rel) != 0 {
		t.Errorf("text relocations: %v, %v", rel, err)
	}
	// No mutable globals: what is writable and not RELRO is at most the compiler's own few bytes.
	for _, s := range f.Sections {
		if (s.Name == ".data" || s.Name == ".bss") && s.Size > 8 {
			t.Errorf("%s has %d bytes: the module has mutable globals", s.Name, s.Size)
		}
	}
}

package nss_test

import (
	"debug/elf"
	"fmt"
	"slices"
	"testing"
)

// TestTheObjectItself: what every process of the host maps holds nothing that is writable and
// executable, binds before it runs, pulls in nothing but libc, and shows nothing but NSS.
func TestTheObjectItself(t *testing.T) {
	f, err := elf.Open(bin + "/libnss_curfew.so.2")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	needed, err := f.ImportedLibraries()
	if err != nil || !slices.Equal(needed, []string{"libc.so.6"}) {
		t.Errorf("DT_NEEDED is %v (%v), want libc.so.6 alone", needed, err)
	}
	soname, err := f.DynString(elf.DT_SONAME)
	if err != nil || !slices.Equal(soname, []string{"libnss_curfew.so.2"}) {
		t.Errorf("DT_SONAME is %v (%v)", soname, err)
	}

	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var exported, used []string
	for _, s := range symbols {
		switch {
		case s.Section != elf.SHN_UNDEF:
			exported = append(exported, s.Name)
		case elf.ST_BIND(s.Info) == elf.STB_GLOBAL:
			used = append(used, s.Name)
		}
	}
	slices.Sort(exported)
	slices.Sort(used)
	want := []string{
		"_nss_curfew_endgrent", "_nss_curfew_endpwent", "_nss_curfew_getgrent_r",
		"_nss_curfew_getgrgid_r", "_nss_curfew_getgrnam_r", "_nss_curfew_getpwent_r",
		"_nss_curfew_getpwnam_r", "_nss_curfew_getpwuid_r", "_nss_curfew_getspnam_r",
		"_nss_curfew_initgroups_dyn", "_nss_curfew_setgrent", "_nss_curfew_setpwent",
	}
	if !slices.Equal(exported, want) {
		t.Errorf("exported: %v, want %v", exported, want)
	}
	// No socket, no mapping, no environment, no thread, no other look-up: a list, so that whoever
	// adds a call adds it here and thinks of `ls -l`.
	allowed := []string{
		"__errno_location", "__memcpy_chk", "__pread64_chk", "__stack_chk_fail", "clock_gettime",
		"close", "memcmp", "memcpy", "open64", "pread64", "realloc", "strlen", "strnlen",
		"syscall", // fstat: see fdstat.h
	}
	for _, name := range used {
		if !slices.Contains(allowed, name) {
			t.Errorf("it uses %s", name)
		}
	}

	runsOnDebian11(t, f)

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
	// The two cursors of the enumerations are all the state there is.
	for _, s := range f.Sections {
		if s.Name == ".bss" && s.Size > 32 || s.Name == ".data" && s.Size > 8 {
			t.Errorf("%s has %d bytes: state beyond the enumerations' cursors", s.Name, s.Size)
		}
	}
}

// runsOnDebian11 demands that no symbol is newer than glibc 2.31: with one that is, the module does
// not load, and every account of Curfew's would be unknown there.
func runsOnDebian11(t *testing.T, f *elf.File) {
	t.Helper()
	imported, err := f.ImportedSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range imported {
		var minor int
		if n, _ := fmt.Sscanf(s.Version, "GLIBC_2.%d", &minor); n == 1 && minor > 31 {
			t.Errorf("%s needs %s; Debian 11 has 2.31", s.Name, s.Version)
		}
	}
}

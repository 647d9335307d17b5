// Package packages holds Curfew's Debian packages to what an administrator expects of them, on real booted
// hosts: they are built from the tree in two versions, installed, upgraded, removed and purged by apt, with
// a live grant and its session on the host, and each of that is killed before each command of each
// maintainer script. Whatever happens, root, a local user and the break-glass user log in and use sudo.
//
// The tests play the story and a sample of the points on Debian 12; with -every all of them, and samples
// on Debian 11 and 13 (make test-packages).
package packages

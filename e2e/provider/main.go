// Provider is an OpenID provider, and a person at its pages, as programs of their own for the
// stories: see package oidctest.
//
//	provider serve ISSUER CERT KEY ADDRESS USER…
//	provider browse CA USER URL
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/curfew-access/curfew/internal/oidctest"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "provider:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 5 && args[0] == "serve":
		return serve(args[1], args[2], args[3], args[4], args[5:])
	case len(args) == 4 && args[0] == "browse":
		return browse(args[1], args[2], args[3])
	}
	return errors.New("usage: provider serve ISSUER CERT KEY ADDRESS USER… | provider browse CA USER URL")
}

func serve(issuer, cert, key, address string, names []string) error {
	users := make([]oidctest.User, 0, len(names))
	for _, name := range names {
		users = append(users, oidctest.User{Name: name, Email: name + "@acme.test", Manager: "bob"})
	}
	server := &http.Server{
		Addr: address, Handler: oidctest.New(issuer, users...), ReadHeaderTimeout: 5 * time.Second,
	}
	return server.ListenAndServeTLS(cert, key)
}

func browse(ca, name, address string) error {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", ca)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b := &oidctest.Browser{Name: name, Client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}}}
	page, err := b.SignIn(ctx, address)
	fmt.Println(page)
	return err
}

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/curfew-access/curfew/internal/mailtest"
)

// receiveHooks is this test binary run on a laptop as a receiver of webhooks: it refuses the first
// delivery with 503 and prints signature and body of each later one.
func receiveHooks(address string) int {
	var deliveries atomic.Int32
	err := http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || deliveries.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Printf("%s %s\n", r.Header.Get("Curfew-Signature"), body)
	}))
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// receiveMail is this test binary run on a laptop as a mail server with the certificate in mail.pem: it
// prints whom each mail is for, and the mail.
func receiveMail(address string) int {
	cert, err := tls.LoadX509KeyPair("mail.pem", "mail.pem")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l, err := net.Listen("tcp", address)
	if err == nil {
		err = mailtest.Serve(l, cert, func(m mailtest.Mail) { fmt.Printf("mail to %s\n%s\n", m.To, m.Data) })
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/join"
)

// MetadataURL is where an instance asks its cloud about itself; all three answer there.
const MetadataURL = "http://169.254.169.254"

const metadataTime = 5 * time.Second

// metadata asks an instance's metadata service.
type metadata struct {
	base string
	http *http.Client
}

func newMetadata(base string) *metadata {
	if base == "" {
		base = MetadataURL
	}
	return &metadata{base: strings.TrimSuffix(base, "/"), http: &http.Client{
		Timeout: metadataTime,
		// Never by a proxy: it would be the proxy's identity, or everybody's.
		Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the metadata service redirects, which none does")
		},
	}}
}

// document fetches the provider's word for this instance, made for the binding where the provider
// can (PROTOCOL.md section 2).
func (m *metadata) document(ctx context.Context, provider string, b join.Binding) (doc []byte, err error) {
	switch provider {
	case join.AWS:
		doc, err = m.aws(ctx)
	case join.GCP:
		doc, err = m.get(ctx, "/computeMetadata/v1/instance/service-accounts/default/identity?format=full&audience="+
			url.QueryEscape(b.Audience()), "Metadata-Flavor", "Google")
	case join.Azure:
		doc, err = m.get(ctx, "/metadata/attested/document?api-version=2021-02-01&nonce="+b.Nonce(),
			"Metadata", "true")
	default:
		return nil, fmt.Errorf("cloud %q: want aws, gcp or azure", provider)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the metadata service of %s who this machine is: %w", provider, err)
	}
	return doc, nil
}

// aws speaks IMDSv2 alone: version 1 answers whoever can make a machine fetch a URL.
func (m *metadata) aws(ctx context.Context) ([]byte, error) {
	token, err := m.call(ctx, http.MethodPut, "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if err != nil {
		return nil, err
	}
	return m.get(ctx, "/latest/dynamic/instance-identity/rsa2048", "X-aws-ec2-metadata-token", string(token))
}

func (m *metadata) get(ctx context.Context, path, header, value string) ([]byte, error) {
	return m.call(ctx, http.MethodGet, path, header, value)
}

func (m *metadata) call(ctx context.Context, method, path, header, value string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.base+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set(header, value)
	resp, err := m.http.Do(req)
	if err != nil {
		// Early in a boot the network may not be there yet.
		return nil, tryLater{fmt.Errorf("%w; is this an instance of that cloud?", err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, join.MaxDocument+1))
	switch {
	case err != nil:
		return nil, tryLater{fmt.Errorf("reading its answer: %w", err)}
	case resp.StatusCode >= http.StatusInternalServerError, resp.StatusCode == http.StatusTooManyRequests:
		return nil, tryLater{fmt.Errorf("it answers %s", resp.Status)}
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("it answers %s%s", resp.Status, whyNot(header, resp.StatusCode))
	case len(body) > join.MaxDocument:
		return nil, fmt.Errorf("it answers with more than %d bytes", join.MaxDocument)
	case header == "Metadata-Flavor" && resp.Header.Get(header) != value:
		return nil, errors.New("the answer is not Google's")
	}
	return body, nil
}

func whyNot(header string, code int) string {
	if header == "Metadata-Flavor" && code == http.StatusNotFound {
		return ": has the instance a service account? without one Google signs no identity"
	}
	return ""
}

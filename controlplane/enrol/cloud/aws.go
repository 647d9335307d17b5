package cloud

import (
	"encoding/json"
	"errors"
	"regexp"
	"time"

	"github.com/curfew-access/curfew/internal/join"
)

// awsDocument is the part of an instance identity document that counts here
// (docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html).
type awsDocument struct {
	Account string    `json:"accountId"`
	ID      string    `json:"instanceId"`
	Region  string    `json:"region"`
	Zone    string    `json:"availabilityZone"`
	Pending time.Time `json:"pendingTime"`
}

var awsInstance = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)

// verify checks the RSA-2048 PKCS #7 form under the certificates that the admin configured. Those
// inside the message count for nothing.
func (a *AWS) verify(document []byte, now time.Time) (i Instance, err error) {
	p, err := signed(string(document))
	if err != nil {
		return i, err
	}
	if _, err := signer(p, a.Certificates, now); err != nil {
		return i, err
	}
	var d awsDocument
	if err := json.Unmarshal(p.Content, &d); err != nil {
		return i, errors.New("what is signed is not an instance identity document")
	}
	if !awsInstance.MatchString(d.ID) {
		return i, errors.New("it names no instance")
	}
	if err := fresh(d.Pending, now, a.MaxAge); err != nil {
		return i, err
	}
	if err := listed("account", d.Account, a.Accounts); err != nil {
		return i, err
	}
	if len(a.Regions) > 0 {
		if err := listed("region", d.Region, a.Regions); err != nil {
			return i, err
		}
	}
	return Instance{
		Provider: join.AWS, Account: d.Account, ID: d.ID, Region: d.Region, Zone: d.Zone,
	}, nil
}

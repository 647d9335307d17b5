package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A record is u32 length, u32 CRC-32C of the length, the body, u32 CRC-32C of the body. The length
// has a sum of its own, so that a torn end and a damaged middle cannot be taken for each other.
const (
	recordHeader   = 8
	recordOverhead = recordHeader + 4
	maxRecord      = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeRecord(body []byte) ([]byte, error) {
	if len(body) == 0 || len(body) > maxRecord-recordOverhead {
		return nil, fmt.Errorf("keeping an event: %d bytes; at most %d", len(body),
			maxRecord-recordOverhead)
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	b = append(b, body...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(body, castagnoli)), nil
}

// splitRecords returns the bodies and how many bytes are good. What follows them can only be the
// remains of the very last append, since each is fsynced before the next; anything else is damage.
func splitRecords(data []byte) (bodies [][]byte, good int64, err error) {
	rest := data
	for len(rest) > 0 {
		body, n, err := nextRecord(rest)
		if errors.Is(err, errTorn) {
			return bodies, good, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("after byte %d: %w", good, err)
		}
		bodies = append(bodies, body)
		good += int64(n)
		rest = rest[n:]
	}
	return bodies, good, nil
}

var errTorn = errors.New("torn")

func nextRecord(b []byte) (body []byte, n int, err error) {
	if len(b) < recordHeader {
		return nil, 0, errTorn
	}
	length := int(binary.LittleEndian.Uint32(b))
	sum := binary.LittleEndian.Uint32(b[4:])
	if sum != crc32.Checksum(b[:4], castagnoli) || length == 0 || length > maxRecord-recordOverhead {
		if zero(b[recordHeader:]) {
			return nil, 0, errTorn
		}
		return nil, 0, errors.New("a record's length is damaged")
	}
	n = length + recordOverhead
	if n > len(b) {
		return nil, 0, errTorn
	}
	body = b[recordHeader : recordHeader+length]
	if binary.LittleEndian.Uint32(b[recordHeader+length:]) != crc32.Checksum(body, castagnoli) {
		if zero(b[n:]) {
			return nil, 0, errTorn
		}
		return nil, 0, errors.New("a record is damaged")
	}
	return body, n, nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

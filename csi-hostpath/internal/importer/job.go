// Package importer fills a volume with what an image on a server holds. The driver's side ([Run]) decides where
// connections may go and keeps the journal; a confined process of the same program ([Child]) speaks with the server and
// reads the image (ST-041, ST-061).
package importer

import (
	"errors"
	"time"

	"podvirt.dev/csi-hostpath/internal/fetch"
	"podvirt.dev/csi-hostpath/internal/image"
)

// Errors of an import beside [Refused].
var (
	// ErrChanged means that the source has another version by now: the volume must be made empty and filled anew.
	ErrChanged = fetch.ErrChanged
	ErrNoSpace = errors.New("no space left in the pool")
)

// Refused says why an import failed for good, in words for the claim's owner.
type Refused string

// Error returns the reason.
func (r Refused) Error() string { return string(r) }

// Checkpoint is up to where a volume is filled for good, and what it takes to go on from there. Only raw images that are
// not compressed have more than one.
type Checkpoint struct {
	Pin    fetch.Pin `json:"pin"`
	Offset int64     `json:"offset"`
	// Hashes are the states of the digests by algorithm, over what lies before Hashed: more was read than written.
	Hashes map[string][]byte `json:"hashes"`
	Hashed int64             `json:"hashed"`
}

// Progress is how far an import is.
type Progress struct {
	Transferred int64 // bytes that came over the network
	Position    int64 // bytes of the source that were read
	Total       int64 // bytes of the source; -1: not known
	Written     int64 // bytes written to the volume
	Restarts    int64 // connections made again
	Image       *image.Info
	Problem     string // why the last connection ended, until something came over the next
}

// job is what the confined process is told. Credentials travel over its standard input only.
type job struct {
	URL         string
	Format      string
	Compression string
	Checksum    string
	Archive     string
	Member      string
	Arch        string
	Size        int64
	Memory      int64
	Bandwidth   int64
	Roots       []byte // PEM
	Headers     []string
	User        string
	Password    string
	Token       string
	// AccessKey, SecretKey and SessionToken are for S3; Google is the JSON key of a service account.
	AccessKey, SecretKey, SessionToken string
	Google                             []byte
	Certificate                        []byte // PEM
	Key                                []byte
	Insecure                           bool
	Start                              *Checkpoint
	Tuning                             Tuning
}

// Tuning are the times of an import; tests make them short. The zero value is for production.
type Tuning struct {
	FirstPause, LastPause, StallAfter time.Duration
	CheckpointEvery                   int64 // bytes; 0: 64 MiB
	ReportEvery                       time.Duration
	ParallelFrom, Piece               int64 // bytes; 0: as in package fetch
}

// report is one line from the confined process.
type report struct {
	Progress   *Progress
	Checkpoint *Checkpoint
	Done       string // the digest of the source, as ALGORITHM:HEX
	Failed     string
	Kind       failure
}

type failure string

const (
	failedRefused failure = "refused"
	failedChanged failure = "changed"
	failedNoSpace failure = "no-space"
	failedOther   failure = "other"
)

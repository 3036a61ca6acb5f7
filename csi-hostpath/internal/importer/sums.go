package importer

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"podvirt.dev/csi-hostpath/internal/fetch"
	"podvirt.dev/csi-hostpath/internal/image"
)

// maxSums bounds a sums file, in bytes.
const maxSums = 4 << 20

// sums replaces the URL of a sums file by the digest that it has for the source (ST-047). Credentials are for the host of
// the source only.
func (w *worker) sums(ctx context.Context, options fetch.Options) error {
	if !strings.HasPrefix(w.job.Checksum, "http:") && !strings.HasPrefix(w.job.Checksum, "https:") {
		return nil
	}
	source, err := url.Parse(w.job.URL)
	if err != nil {
		return image.Refused("not a URL")
	}
	list, err := url.Parse(w.job.Checksum)
	if err != nil {
		return image.Refused("not a URL")
	}
	options.URL = w.job.Checksum
	if list.Host != source.Host || list.Scheme != source.Scheme {
		options.Headers, options.User, options.Password, options.Client = http.Header{}, "", "", nil
	}
	stream, err := fetch.Open(ctx, options, fetch.Pin{}, 0)
	if err != nil {
		return err
	}
	defer stream.Close()
	found, err := digestIn(stream, path.Base(source.Path))
	if err != nil {
		return fmt.Errorf("%s: %w", list.Redacted(), err)
	}
	w.job.Checksum = found
	return nil
}

// digestIn finds the digest of a file in the output of sha256sum or sha512sum, also with --tag. The longer one counts.
func digestIn(list io.Reader, name string) (string, error) {
	found, weak, read := "", false, 0
	lines := bufio.NewScanner(io.LimitReader(list, maxSums))
	for lines.Scan() {
		read++
		digits, file, ok := sumLine(strings.TrimSpace(lines.Text()))
		if !ok || path.Base(file) != name {
			continue
		}
		switch raw, err := hex.DecodeString(digits); {
		case err != nil:
		case len(raw) == 64:
			found = "sha512:" + strings.ToLower(digits)
		case len(raw) == 32 && found == "":
			found = "sha256:" + strings.ToLower(digits)
		case len(raw) == 16 || len(raw) == 20:
			weak = true
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return "", image.Refused("not a sums file")
	case err != nil:
		return "", err
	case found != "":
		return found, nil
	case weak:
		return "", image.Refused("it has no sha256 or sha512 of " + name + "; write the digest itself into podvirt.dev/import-checksum")
	}
	return "", image.Refused(fmt.Sprintf("none of its %d lines is for %s", read, name))
}

// sumLine divides "DIGITS  FILE", "DIGITS *FILE" and "ALGORITHM (FILE) = DIGITS".
func sumLine(line string) (digits, file string, ok bool) {
	if head, last, tagged := strings.Cut(line, ") = "); tagged {
		_, file, ok = strings.Cut(head, " (")
		return last, file, ok
	}
	digits, file, ok = strings.Cut(line, " ")
	return digits, strings.TrimLeft(file, " *"), ok
}

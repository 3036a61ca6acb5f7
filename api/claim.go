package api

import (
	"cmp"
	"encoding/hex"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Annotations that people write on a claim to say where its content comes from (storage.md 2.1).
const (
	KeyImportSource      = Prefix + "import-source"
	KeyImportFormat      = Prefix + "import-format"
	KeyImportCompression = Prefix + "import-compression"
	KeyImportArchive     = Prefix + "import-archive"
	KeyImportMember      = Prefix + "import-member"
	KeyImportChecksum    = Prefix + "import-checksum"
	KeyImportCA          = Prefix + "import-ca"
	KeyImportSecret      = Prefix + "import-secret"
	KeyImportHeaders     = Prefix + "import-headers"
	KeyImportInsecure    = Prefix + "import-insecure"
	// KeyImportHeadersSecret names Secrets whose values are headers.
	KeyImportHeadersSecret = Prefix + "import-headers-secret"
	KeyImportArch          = Prefix + "import-arch"
	KeyImportMode          = Prefix + "import-mode"
	KeyImportDeadline      = Prefix + "import-deadline"
	KeyImportPaused        = Prefix + "import-paused"
)

// Annotations and the condition that the driver writes on a claim (storage.md 2.2).
const (
	KeyImportPhase     = Prefix + "import-phase"
	KeyImportProgress  = Prefix + "import-progress"
	KeyImportBytes     = Prefix + "import-bytes"
	KeyImportMessage   = Prefix + "import-message"
	KeyImportRestarts  = Prefix + "import-restarts"
	KeyImportDigest    = Prefix + "import-digest"
	KeyImportInfo      = Prefix + "import-info"
	ConditionPopulated = Prefix + "Populated"
)

// ArchiveOVA is an appliance: a tar file with disks.
const ArchiveOVA = "ova"

// DefaultImportDeadline is after how long an import is given up (storage.md 2.1).
const DefaultImportDeadline = 24 * time.Hour

// Import is what the annotations of a claim ask for. Words hold their default where nothing was written.
type Import struct {
	Source      string
	Format      string // auto, raw, qcow2, vmdk, vdi, vhd, vhdx
	Compression string // auto, none, gz, xz, zst, bz2
	Checksum    string // ALGORITHM:HEX, or the URL of a sums file; empty: none
	Archive     string // ova; empty: none
	Member      string // the file of an ova, or of a registry source below disk/; empty: the only one
	Arch        string // of a registry source; empty: the node's
	CA          string // ConfigMap of the claim's namespace
	Secret      string // Secret of the claim's namespace
	Headers     []string
	// HeaderSecrets are Secrets of the claim's namespace with more of them.
	HeaderSecrets []string
	Insecure      bool
	Deadline      time.Duration // 0: none
	Paused        bool
}

// importRow is one key with its grammar. Refused words name what later versions do.
type importRow struct {
	key   string
	value Value
	lines bool // may hold several lines
}

func importRows() []importRow {
	object := named("object").wrong("not the name of an object")
	return []importRow{
		{key: KeyImportSource, value: text(MaxText)},
		{key: KeyImportFormat, value: word("auto raw iso qcow2 vmdk vdi vhd vhdx")},
		{key: KeyImportCompression, value: word("auto none gz xz zst bz2")},
		{key: KeyImportArchive, value: word("none tar ova").notNow("tar")},
		{key: KeyImportMember, value: text(MaxText)},
		{key: KeyImportChecksum, value: text(MaxText)},
		{key: KeyImportCA, value: object},
		{key: KeyImportSecret, value: object},
		{key: KeyImportHeaders, value: text(MaxText), lines: true},
		{key: KeyImportInsecure, value: boolean()},
		{key: KeyImportHeadersSecret, value: text(MaxText)},
		{key: Prefix + "import-proxy", value: word("default none").later("default none")},
		{key: KeyImportArch, value: word("amd64 arm64 s390x ppc64le riscv64")},
		{key: KeyImportMode, value: word("driver pod").later("driver")},
		{key: Prefix + "import-pull", value: word("direct node").later("direct")},
		{key: Prefix + "import-service-account", value: text(MaxText).later("")},
		{key: Prefix + "import-sidecar", value: text(MaxText).later("")},
		{key: Prefix + "import-cache", value: word("use bypass").later("use bypass")},
		{key: KeyImportDeadline, value: duration("30m or 24h").or("0").wrong("is not a duration such as 30m or 24h")},
		{key: KeyImportPaused, value: boolean()},
	}
}

// ParseImport reads the import annotations of a claim. It returns nil where the claim is to be blank. dataSource says
// that the claim has a native source, which excludes this one. All mistakes are returned at once.
func ParseImport(annotations map[string]string, dataSource bool) (*Import, Errors) {
	var errs Errors
	wrong := func(key, text string) {
		errs = append(errs, Error{Key: key, Text: quoteKey(key) + ": " + quote(annotations[key]) + ": " + text})
	}
	checkImportWords(annotations, wrong)
	source := annotations[KeyImportSource]
	if source == "" || source == "blank:" {
		checkBlank(annotations, wrong)
		return nil, errs.sorted()
	}
	if dataSource {
		wrong(KeyImportSource, "cannot be combined with spec.dataSource")
	}
	if text := checkSource(source); text != "" {
		wrong(KeyImportSource, text)
	}
	checkParts(annotations, wrong)
	asked := &Import{
		Source: source, Format: cmp.Or(annotations[KeyImportFormat], "auto"), Compression: cmp.Or(annotations[KeyImportCompression], "auto"),
		Checksum: digestsLower(annotations[KeyImportChecksum]), CA: annotations[KeyImportCA], Secret: annotations[KeyImportSecret],
		Insecure: annotations[KeyImportInsecure] == "true", Deadline: DefaultImportDeadline,
		Member: annotations[KeyImportMember], Arch: annotations[KeyImportArch],
		Paused: annotations[KeyImportPaused] == "true",
	}
	asked.Archive = archiveOf(annotations)
	if asked.Format == "iso" {
		asked.Format = "raw"
	}
	if text := annotations[KeyImportDeadline]; text != "" {
		asked.Deadline = toDuration(text)
	}
	var bad string
	if asked.Headers, bad = ParseHeaders(annotations[KeyImportHeaders]); bad != "" {
		wrong(KeyImportHeaders, bad)
	}
	object := named("object").wrong("not the name of an object")
	for name := range strings.SplitSeq(annotations[KeyImportHeadersSecret], ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if bad := object.Check(name); bad != "" {
			wrong(KeyImportHeadersSecret, bad)
		}
		asked.HeaderSecrets = append(asked.HeaderSecrets, name)
	}
	return asked, errs.sorted()
}

func checkImportWords(annotations map[string]string, wrong func(key, text string)) {
	rows := importRows()
	for _, row := range rows {
		value, written := annotations[row.key]
		if !written || value == "" {
			continue
		}
		if row.lines {
			value = strings.ReplaceAll(value, "\n", " ")
		}
		if text := row.value.Check(value); text != "" {
			wrong(row.key, text)
		}
	}
	programs := []string{
		KeyImportPhase, KeyImportProgress, KeyImportBytes, KeyImportMessage, KeyImportRestarts, KeyImportDigest, KeyImportInfo,
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		known := slices.ContainsFunc(rows, func(r importRow) bool { return r.key == key }) || slices.Contains(programs, key)
		if !strings.HasPrefix(key, Prefix+"import-") || known {
			continue
		}
		keys := make([]string, len(rows))
		for i, row := range rows {
			keys[i] = row.key
		}
		wrong(key, "unknown key"+nearestSuffix(key, keys))
	}
}

// checkBlank refuses what makes no sense without content (ST-058).
func checkBlank(annotations map[string]string, wrong func(key, text string)) {
	for _, key := range []string{KeyImportChecksum, KeyImportSecret, KeyImportCA, KeyImportHeaders, KeyImportHeadersSecret} {
		if annotations[key] != "" {
			wrong(key, "a blank volume has no source; set "+KeyImportSource)
		}
	}
}

// checkParts checks what belongs to one kind of source only.
func checkParts(annotations map[string]string, wrong func(key, text string)) {
	registry := strings.HasPrefix(annotations[KeyImportSource], "docker:")
	sum, member := annotations[KeyImportChecksum], annotations[KeyImportMember]
	switch {
	case sum == "":
	case registry:
		wrong(KeyImportChecksum, "a registry has digests of its own; put it into the source: docker://…@sha256:…")
	default:
		if text := checkChecksum(sum); text != "" {
			wrong(KeyImportChecksum, text)
		}
	}
	if member != "" && (path.IsAbs(member) || path.Clean(member) != member || strings.HasPrefix(member, "..")) {
		wrong(KeyImportMember, "leaves the archive")
	}
	if member != "" && !registry && archiveOf(annotations) != ArchiveOVA {
		wrong(KeyImportMember, "only for docker:// sources and archives")
	}
	if annotations[KeyImportArch] != "" && !registry {
		wrong(KeyImportArch, "only for docker:// sources")
	}
	if annotations[KeyImportArchive] == ArchiveOVA && registry {
		wrong(KeyImportArchive, "not for docker:// sources")
	}
}

// archiveOf is the archive around the disk: an ova is known by its name.
func archiveOf(annotations map[string]string) string {
	source, err := url.Parse(annotations[KeyImportSource])
	named := err == nil && source.Scheme != "docker" && strings.EqualFold(path.Ext(source.Path), "."+ArchiveOVA)
	if written := annotations[KeyImportArchive]; written == ArchiveOVA || written == "" && named {
		return ArchiveOVA
	}
	return ""
}

func checkSource(source string) string {
	schemes := []string{"http", "https", "s3", "gs", "docker", "nbd", "nbds", "pvc", "snapshot", "boot", "upload", "blank"}
	parsed, err := url.Parse(source)
	if err != nil || !slices.Contains(schemes, parsed.Scheme) {
		scheme, _, _ := strings.Cut(source, ":")
		return "scheme not one of " + strings.Join(schemes, ", ") + nearestSuffix(scheme, schemes)
	}
	store := parsed.Scheme == "s3" || parsed.Scheme == "gs"
	if !isWeb(parsed.Scheme) && parsed.Scheme != "docker" && !store {
		return parsed.Scheme + ": " + NotYet
	}
	if parsed.User != nil {
		return "a password in the URL; use " + KeyImportSecret
	}
	if parsed.Hostname() == "" {
		return "no host in the URL"
	}
	if store {
		return checkObject(parsed)
	}
	return ""
}

// checkObject checks a source in an object store.
func checkObject(source *url.URL) string {
	if strings.Trim(source.Path, "/") == "" {
		return "no object in the URL: " + source.Scheme + "://BUCKET/OBJECT"
	}
	var words []string
	if source.Scheme == "s3" {
		words = []string{"endpoint", "region", "style", "versionId"}
	}
	query := source.Query()
	for _, key := range slices.Sorted(maps.Keys(query)) {
		if !slices.Contains(words, key) {
			return strconv.Quote(key) + ": unknown parameter" + nearestSuffix(key, words)
		}
	}
	if style := query.Get("style"); style != "" && style != "path" && style != "host" {
		return "style: not one of path, host"
	}
	if endpoint := query.Get("endpoint"); endpoint != "" {
		if parsed, err := url.Parse(endpoint); err != nil || !isWeb(parsed.Scheme) || parsed.Host == "" || parsed.User != nil {
			return "endpoint: not a URL such as https://minio.example.org:9000"
		}
	}
	return ""
}

func isWeb(scheme string) bool { return scheme == "http" || scheme == "https" }

// digestsLower writes hex digits as programs do; URLs stay.
func digestsLower(sum string) string {
	if scheme, _, _ := strings.Cut(sum, ":"); isWeb(scheme) {
		return sum
	}
	return strings.ToLower(sum)
}

func checkChecksum(sum string) string {
	algorithm, digits, ok := strings.Cut(sum, ":")
	lengths := map[string]int{"sha256": 64, "sha512": 128, "sha1": 40, "md5": 32}
	words := []string{"sha256", "sha512", "sha1", "md5"}
	switch want := lengths[algorithm]; {
	case isWeb(algorithm):
		return checkSource(sum)
	case !ok || want == 0:
		return "not ALGORITHM:HEX with one of " + strings.Join(words, ", ") + nearestSuffix(algorithm, words)
	case len(digits) != want:
		return algorithm + " needs " + strconv.Itoa(want) + " hex digits, got " + strconv.Itoa(len(digits))
	}
	if _, err := hex.DecodeString(digits); err != nil {
		return algorithm + ": not hex digits"
	}
	return ""
}

// ParseHeaders divides "Name: value" lines; bad says which line is none.
func ParseHeaders(text string) (lines []string, bad string) {
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsFunc(name, notToken) || strings.ContainsFunc(value, isControl) {
			return nil, "line " + strconv.Itoa(n) + ` is not "Name: value"`
		}
		lines = append(lines, line)
	}
	return lines, ""
}

// notToken reports characters that the name of an HTTP header cannot have (RFC 9110, 5.6.2).
func notToken(r rune) bool {
	letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
	return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

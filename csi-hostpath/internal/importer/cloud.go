package importer

import (
	"cmp"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"podvirt.dev/csi-hostpath/internal/fetch"
	"podvirt.dev/csi-hostpath/internal/image"
)

const (
	defaultRegion = "us-east-1"
	googleStorage = "https://storage.googleapis.com"
	googleToken   = "https://oauth2.googleapis.com/token"
	googleScope   = "https://www.googleapis.com/auth/devstorage.read_only"
	maxAnswer     = 64 << 10 // bytes of an answer that is no content
)

// toCloud makes the source of an object store one of HTTP, whose requests are signed (ST-043).
func (j *job) toCloud(ctx context.Context, options *fetch.Options) error {
	source, err := url.Parse(j.URL)
	if err != nil {
		return image.Refused("not a URL")
	}
	switch source.Scheme {
	case "s3":
		target, region, err := s3Object(source)
		if err != nil {
			return err
		}
		options.URL, options.Explain = target, explain
		options.User, options.Password = "", ""
		if j.AccessKey != "" {
			options.Authorize = (&s3Signer{access: j.AccessKey, secret: j.SecretKey, token: j.SessionToken, region: region}).sign
		}
	case "gs":
		options.URL, options.Explain = googleStorage+escaped("/"+source.Host+source.Path), explain
		if len(j.Google) == 0 {
			return nil
		}
		account, err := newGoogleAccount(j.Google)
		if err != nil {
			return err
		}
		account.client = &http.Client{Transport: options.NewTransport(), Timeout: time.Minute}
		options.Authorize = func(r *http.Request) error { return account.authorize(ctx, r) }
	}
	return nil
}

// s3Object is where an object is: s3://BUCKET/KEY[?endpoint=&region=&style=path|host&versionId=].
func s3Object(source *url.URL) (target, region string, err error) {
	query := source.Query()
	region = cmp.Or(query.Get("region"), defaultRegion)
	endpoint, err := url.Parse(cmp.Or(query.Get("endpoint"), "https://s3."+region+".amazonaws.com"))
	if err != nil {
		return "", "", image.Refused("endpoint: not a URL")
	}
	style := query.Get("style")
	if style == "" && query.Get("endpoint") == "" && !strings.Contains(source.Host, ".") {
		style = "host"
	}
	at := endpoint.Scheme + "://" + endpoint.Host
	if style == "host" {
		at = endpoint.Scheme + "://" + source.Host + "." + endpoint.Host
	}
	at += strings.TrimSuffix(endpoint.Path, "/")
	if style != "host" {
		at += "/" + source.Host
	}
	at += escaped(source.Path)
	if version := query.Get("versionId"); version != "" {
		at += "?versionId=" + url.QueryEscape(version)
	}
	return at, region, nil
}

// escaped writes a path as signatures want it: all but the unreserved characters of RFC 3986 in percent.
func escaped(path string) string {
	var b strings.Builder
	for _, c := range []byte(path) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if letter || strings.IndexByte("-._~/", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// s3Signer signs requests by AWS Signature Version 4.
type s3Signer struct {
	access, secret, token, region string
	now                           func() time.Time // nil: [time.Now]
}

// noBody is the digest of nothing.
const noBody = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func (s *s3Signer) sign(r *http.Request) error {
	now := time.Now
	if s.now != nil {
		now = s.now
	}
	at := now().UTC()
	day, moment := at.Format("20060102"), at.Format("20060102T150405Z")
	r.Header.Set("X-Amz-Content-Sha256", noBody)
	r.Header.Set("X-Amz-Date", moment)
	if s.token != "" {
		r.Header.Set("X-Amz-Security-Token", s.token)
	}
	var headers, names strings.Builder
	for _, name := range []string{"host", "range", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"} { // sorted
		value := r.Header.Get(name)
		if name == "host" {
			value = r.URL.Host
		}
		if value != "" {
			headers.WriteString(name + ":" + strings.TrimSpace(value) + "\n")
			names.WriteString(";" + name)
		}
	}
	signed := strings.TrimPrefix(names.String(), ";")
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, headers.String(), signed, noBody}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	scope := day + "/" + s.region + "/s3/aws4_request"
	text := strings.Join([]string{"AWS4-HMAC-SHA256", moment, scope, hex.EncodeToString(sum[:])}, "\n")
	key := []byte("AWS4" + s.secret)
	for _, part := range []string{day, s.region, "s3", "aws4_request"} {
		key = mac(key, part)
	}
	r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s,SignedHeaders=%s,Signature=%x", s.access, scope, signed, mac(key, text)))
	return nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// explain says in a few words why an object store did not answer with the object; "" where it does not say.
func explain(resp *http.Response) string {
	var said struct {
		Code   string
		Region string
	}
	_ = xml.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&said) // what is no XML says nothing
	if region := cmp.Or(said.Region, resp.Header.Get("X-Amz-Bucket-Region")); region != "" {
		return clean(said.Code + ": the bucket is in region " + region)
	}
	return clean(said.Code)
}

// googleAccount is a service account of Google Cloud, from its JSON key. Its tokens are fetched when they are needed.
type googleAccount struct {
	email, keyID, tokenURI string
	key                    *rsa.PrivateKey
	client                 *http.Client

	mu    sync.Mutex
	token string
	until time.Time
}

func newGoogleAccount(raw []byte) (*googleAccount, error) {
	var parsed struct {
		Email string `json:"client_email"`
		KeyID string `json:"private_key_id"`
		Key   string `json:"private_key"`
		URI   string `json:"token_uri"`
	}
	bad := image.Refused(googleKey + " of the Secret is no key of a service account")
	if json.Unmarshal(raw, &parsed) != nil {
		return nil, bad
	}
	block, _ := pem.Decode([]byte(parsed.Key))
	if block == nil {
		return nil, bad
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := key.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, bad
	}
	return &googleAccount{email: parsed.Email, keyID: parsed.KeyID, key: private, tokenURI: cmp.Or(parsed.URI, googleToken)}, nil
}

func (g *googleAccount) authorize(ctx context.Context, r *http.Request) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Now().After(g.until) {
		if err := g.renew(ctx); err != nil {
			return err
		}
	}
	r.Header.Set("Authorization", "Bearer "+g.token)
	return nil
}

// renew asks for a token by an assertion (RFC 7523).
func (g *googleAccount) renew(ctx context.Context) error {
	assertion, err := g.assertion(time.Now())
	if err != nil {
		return err
	}
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.tokenURI, strings.NewReader(form.Encode()))
	if err != nil {
		return fetch.Permanent(googleKey + " of the Secret: token_uri is not a URL")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := g.client.Do(req)
	if err != nil {
		return fetch.Lasting(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 && resp.StatusCode < 500 {
		return fetch.Permanent(fmt.Sprintf("the token of the service account: %d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
	}
	var got struct {
		Token   string `json:"access_token"`
		Seconds int    `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&got); err != nil || got.Token == "" {
		return fmt.Errorf("the token of the service account: %s", resp.Status)
	}
	g.token, g.until = got.Token, time.Now().Add(time.Duration(got.Seconds-60)*time.Second)
	return nil
}

// assertion is a JSON Web Token that names the account.
func (g *googleAccount) assertion(now time.Time) (string, error) {
	part := func(value any) string {
		raw, _ := json.Marshal(value) // maps of strings and numbers
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	text := part(map[string]any{"alg": "RS256", "typ": "JWT", "kid": g.keyID}) + "." + part(map[string]any{
		"iss": g.email, "scope": googleScope, "aud": g.tokenURI, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, g.key, crypto.SHA256, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

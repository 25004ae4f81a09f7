package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// partSize is how much of a large file is in memory.
const partSize = 16 << 20

// S3Config says which bucket, and how it is reached.
type S3Config struct {
	// Bucket is s3://BUCKET/PREFIX.
	Bucket string
	// Endpoint is http(s)://HOST of an S3-compatible store, whose buckets are in paths; empty is
	// that of AWS for the region.
	Endpoint string
	Region   string
	// Lock is the mode of Object Lock for files with Until: GOVERNANCE or COMPLIANCE.
	Lock string
	// Transport may be nil.
	Transport http.RoundTripper
	// Credentials are asked for again when they have expired or were refused.
	Credentials *credentials.Credentials
}

// S3 is a bucket of S3-compatible object storage. Requests are signed (Signature V4).
type S3 struct {
	client *minio.Client
	bucket string
	prefix string
	config S3Config
	// unconditional: the store does not know conditional writes.
	unconditional atomic.Bool
}

// EnvironmentCredentials are, in this order, those of the variables AWS_ACCESS_KEY_ID and so on, of
// the file AWS_SHARED_CREDENTIALS_FILE, of a web identity (AWS_WEB_IDENTITY_TOKEN_FILE,
// AWS_ROLE_ARN), and of the machine.
func EnvironmentCredentials() *credentials.Credentials {
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
	})
}

// NewS3 asks the store for nothing yet.
func NewS3(c S3Config) (*S3, error) {
	u, err := parseBase(c.Bucket, "s3")
	if err != nil {
		return nil, err
	}
	if u.Path != "" {
		if err := clean(u.Path[1:]); err != nil {
			return nil, err
		}
	}
	endpoint := &url.URL{Scheme: "https", Host: "s3.amazonaws.com"}
	if c.Endpoint != "" {
		if endpoint, err = parseBase(c.Endpoint, "https", "http"); err != nil {
			return nil, err
		}
		if endpoint.Path != "" {
			return nil, fmt.Errorf("endpoint is %q; must have no path", c.Endpoint)
		}
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds: c.Credentials, Secure: endpoint.Scheme == "https", Region: c.Region,
		Transport: transportOr(c.Transport), MaxRetries: 1, // whoever calls tries again
	})
	if err != nil {
		return nil, fmt.Errorf("object storage at %s: %w", endpoint.Host, err)
	}
	client.SetAppInfo("meshvakt", "")
	return &S3{client: client, bucket: u.Host, prefix: strings.TrimPrefix(u.Path, "/"), config: c}, nil
}

func (s *S3) key(name string) (string, error) { return path.Join(s.prefix, name), clean(name) }

// Read returns a whole file, no longer than most. One that is not there is fs.ErrNotExist.
func (s *S3) Read(ctx context.Context, name string, most int64) (_ []byte, err error) {
	key, err := s.key(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience(most))
	defer cancel()
	body, _, _, err := (&minio.Core{Client: s.client}).GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, s.told(err, "GetObject", name)
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	return within(body, name, most)
}

// Size is that of a file. One that is not there is fs.ErrNotExist.
func (s *S3) Size(ctx context.Context, name string) (int64, error) {
	key, err := s.key(name)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience(0))
	defer cancel()
	info, err := s.client.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return 0, s.told(err, "HeadObject", name)
	}
	return info.Size, nil
}

// Write stores a file.
func (s *S3) Write(ctx context.Context, f *File) error {
	key, err := s.key(f.Name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience(f.Size))
	defer cancel()
	once := f.Once && !s.unconditional.Load()
	err = s.put(ctx, key, f, once)
	if once && notImplemented(err) {
		s.unconditional.Store(true)
		err = s.put(ctx, key, f, false)
	}
	if err != nil {
		return s.told(err, "PutObject", f.Name)
	}
	return nil
}

func (s *S3) put(ctx context.Context, key string, f *File, once bool) error {
	// Object Lock takes nothing without a digest of the content.
	o := minio.PutObjectOptions{ContentType: f.Type, CacheControl: f.Cache, PartSize: partSize, NumThreads: 1, SendContentMd5: true}
	if once {
		o.SetMatchETagExcept("*")
	}
	if !f.Until.IsZero() {
		o.Mode, o.RetainUntilDate = minio.RetentionMode(s.config.Lock), f.Until
	}
	_, err := s.client.PutObject(ctx, s.bucket, key, io.NewSectionReader(f.Data, 0, f.Size), f.Size, o)
	return err
}

// Remove removes a file; in a bucket with versions it hides it. That it is not there is no error.
func (s *S3) Remove(ctx context.Context, name string) error {
	key, err := s.key(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience(0))
	defer cancel()
	if err := s.client.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}); err != nil {
		return s.told(err, "DeleteObject", name)
	}
	return nil
}

func notImplemented(err error) bool {
	return err != nil && minio.ToErrorResponse(err).StatusCode == http.StatusNotImplemented
}

// told says what the store has answered, and what to do.
func (s *S3) told(err error, call, name string) error {
	r := minio.ToErrorResponse(err)
	what := fmt.Sprintf("bucket %q answers %s to %s of %s", s.bucket, r.Code, call, name)
	switch {
	case r.StatusCode == 0: // no answer
		return fmt.Errorf("%s of %s in bucket %q: %w", call, name, s.bucket, err)
	case r.Code == minio.NoSuchBucket:
		return fmt.Errorf("%s; must exist; create it, or see whether --mirror and --mirror-endpoint say what is meant", what)
	case r.StatusCode == http.StatusNotFound:
		return missing(name)
	case r.StatusCode == http.StatusPreconditionFailed:
		return there(name)
	case r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusUnauthorized:
		// They may have been replaced since they were read.
		s.config.Credentials.Expire()
		return fmt.Errorf("%s; must accept the credentials and allow s3:GetObject, s3:PutObject and s3:ListBucket; see AWS_ACCESS_KEY_ID or what stands for it, and the policies of user and bucket: %w", what, err)
	case strings.Contains(r.Code, "ObjectLock"):
		return fmt.Errorf("%s; must have Object Lock, which is turned on as a bucket is created, or --mirror-lock must not be given: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

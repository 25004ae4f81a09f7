// Package docs tests the documents where they can be tested: links, headings for
// all reasons, names of metrics.
package docs

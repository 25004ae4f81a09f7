// Package dockerfile tests the Dockerfile without a container engine: it runs the
// commands of the build stage in a copy of the tree and looks at what comes out,
// and at what the final stage takes.
package dockerfile

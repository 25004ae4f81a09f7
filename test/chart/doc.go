// Package chart tests the Helm chart without a cluster: what it renders, that
// its schema and its documentation say what its values are, and that the rights it
// grants are those the code needs and no more. That a real API server takes it
// is tested in test/e2e.
package chart

package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"
)

// AuditEvent is the part of an audit.k8s.io/v1 Event that tests of admission look at.
type AuditEvent struct {
	AuditID    string `json:"auditID"`
	Stage      string `json:"stage"`
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	User       struct {
		Username string   `json:"username"`
		Groups   []string `json:"groups"`
	} `json:"user"`
	ImpersonatedUser *struct {
		Username string `json:"username"`
	} `json:"impersonatedUser"`
	ObjectRef struct {
		APIGroup    string `json:"apiGroup"`
		APIVersion  string `json:"apiVersion"`
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code    int    `json:"code"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	} `json:"responseStatus"`
	Annotations map[string]string `json:"annotations"`
	// Received is when the request came in, Finished when this stage of it was over.
	Received time.Time `json:"requestReceivedTimestamp"`
	Finished time.Time `json:"stageTimestamp"`
}

// Audited returns the events that are in the audit log and match.
func (cp *ControlPlane) Audited(match func(AuditEvent) bool) ([]AuditEvent, error) {
	lines, err := completeLines(cp.AuditLogPath, 0)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	var found []AuditEvent
	for line := range bytes.Lines(lines) {
		var event AuditEvent
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		if match(event) {
			found = append(found, event)
		}
	}
	return found, nil
}

// WaitAudit waits for an event in the audit log that matches, old or new. The API server
// writes an event when it has answered, so a client can be ahead of it. An object that
// was created with generateName has no name in its event.
func (cp *ControlPlane) WaitAudit(ctx context.Context, match func(AuditEvent) bool) (AuditEvent, error) {
	var found AuditEvent
	var read int64
	err := poll(ctx, func(context.Context) error {
		lines, err := completeLines(cp.AuditLogPath, read)
		if err != nil {
			return err
		}
		read += int64(len(lines))
		for line := range bytes.Lines(lines) {
			var event AuditEvent
			if err := json.Unmarshal(line, &event); err != nil {
				return fmt.Errorf("read audit log: %w", err)
			}
			if match(event) {
				found = event
				return nil
			}
		}
		return errors.New("no event matches")
	})
	if err != nil {
		return AuditEvent{}, fmt.Errorf("wait for audit event: %w", err)
	}
	return found, nil
}

// completeLines returns the lines of a growing file from offset on, without the last one
// if it is still being written.
func completeLines(path string, offset int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.NewSectionReader(f, offset, math.MaxInt64-offset))
	if err != nil {
		return nil, err
	}
	return content[:bytes.LastIndexByte(content, '\n')+1], nil
}

package main

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
)

// The rows that router/openai/error.cc is tested against, too.
type refusalsFile struct {
	Statuses []struct {
		Status         string  `json:"status"`
		Number         int     `json:"number"`
		Message        string  `json:"message"`
		Param          *string `json:"param"`
		ErrorCode      *string `json:"error_code"`
		RetryAfter     int     `json:"retry_after"`
		HTTP           int     `json:"http"`
		ShouldRetry    bool    `json:"should_retry"`
		RetryAfterSent int     `json:"retry_after_sent"`
		Body           string  `json:"body"`
	} `json:"statuses"`
	Refusals []struct {
		Name       string `json:"name"`
		HTTP       int    `json:"http"`
		RetryAfter int    `json:"retry_after"`
		Body       string `json:"body"`
	} `json:"refusals"`
}

func readRefusals(t *testing.T) refusalsFile {
	t.Helper()
	text, err := os.ReadFile("../tests/fixtures/refusals.json")
	if err != nil {
		t.Fatal(err)
	}
	var file refusalsFile
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Statuses) < 16 || len(file.Refusals) < 10 {
		t.Fatalf("only %d statuses and %d refusals", len(file.Statuses), len(file.Refusals))
	}
	return file
}

func TestStatusesTakeTheRoutersShape(t *testing.T) {
	for _, row := range readRefusals(t).Statuses {
		r := refusalOf(codes.Code(row.Number), row.Message)
		if row.Param != nil {
			r.param = *row.Param
		}
		if row.ErrorCode != nil {
			r.code = *row.ErrorCode
			if r.code == "model_not_found" {
				r.param = "model"
			}
		}
		r.retryAfter = row.RetryAfter
		if got := string(r.body()); got != row.Body {
			t.Errorf("%s\n got %s\nwant %s", row.Status, got, row.Body)
		}
		w := httptest.NewRecorder()
		r.writeHead(w)
		if w.Code != row.HTTP {
			t.Errorf("%s: HTTP %d, want %d", row.Status, w.Code, row.HTTP)
		}
		if got := w.Header().Get("X-Should-Retry"); (got == "false") == row.ShouldRetry {
			t.Errorf("%s: x-should-retry '%s'", row.Status, got)
		}
		wantRetry := ""
		if row.RetryAfterSent > 0 {
			wantRetry = strconv.Itoa(row.RetryAfterSent)
		}
		if got := w.Header().Get("Retry-After"); got != wantRetry {
			t.Errorf("%s: retry-after '%s', want '%s'", row.Status, got, wantRetry)
		}
	}
}

func TestOwnRefusals(t *testing.T) {
	own := map[string]refusal{
		"no_route": noRoute(), "wrong_method": wrongMethod(), "malformed_path": malformedPath(), "missing_key": missingKey(),
		"wrong_key": wrongKey(), "body_too_large": bodyTooLarge(1000), "body_too_slow": bodyTooSlow(), "body_cut": bodyCut(),
		"headers_too_large": headersTooLarge(16384), "too_busy": tooBusy(), "not_ready": notReady(), "shutting_down": shuttingDown(),
		"internal": internal(),
	}
	rows := readRefusals(t).Refusals
	if len(rows) != len(own) {
		t.Errorf("%d rows for %d refusals", len(rows), len(own))
	}
	for _, row := range rows {
		r, found := own[row.Name]
		if !found {
			t.Errorf("no refusal is called %s", row.Name)
			continue
		}
		if r.http != row.HTTP || r.retryAfter != row.RetryAfter || string(r.body()) != row.Body {
			t.Errorf("%s: %d, retry after %d\n got %s\nwant %s", row.Name, r.http, r.retryAfter, r.body(), row.Body)
		}
	}
}

func TestInvalidBytesAreReplaced(t *testing.T) {
	r := refusalOf(codes.InvalidArgument, "a\xffb")
	if !json.Valid(r.body()) || string(appendJSONString(nil, "a\xffb")) != "\"a\ufffdb\"" {
		t.Errorf("got %s", r.body())
	}
}

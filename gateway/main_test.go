package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const runMain = "PHALANX_GATEWAY_TEST_MAIN" // set: the test program is the gateway

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// process is the gateway as its parent sees it.
type process struct {
	*exec.Cmd
	lines *bufio.Reader
	log   *logBuffer
}

func startProcess(t *testing.T, words ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], words...), log: &logBuffer{}}
	p.Env = append(os.Environ(), runMain+"=1", keysVariable+"=secret-key")
	p.Stderr = p.log
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewReader(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill() })
	return p
}

func (p *process) line(t *testing.T) string {
	t.Helper()
	line, err := p.lines.ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %s", err, p.log)
	}
	return strings.TrimSuffix(line, "\n")
}

func TestProcessDrainsOnASignal(t *testing.T) {
	router := &fakeRouter{}
	router.listen(t, "unix:"+filepath.Join(socketFolder(t), "r"))
	started, more := make(chan bool, 2), make(chan bool)
	router.on(func(_ *body, out stream) error {
		_ = out.Send(events("data: 1\n\n"))
		started <- true
		select {
		case <-more:
		case <-out.Context().Done():
		}
		return out.Send(events("data: [DONE]\n\n"))
	})
	for _, signals := range []int{1, 2} {
		p := startProcess(t, "--router", router.address, "--host=127.0.0.1", "--port=0", "--shutdown-timeout", "600")
		address, ready := strings.CutPrefix(p.line(t), "PHALANX_READY ")
		if !ready || !strings.HasPrefix(address, "127.0.0.1:") {
			t.Fatalf("not ready: %s", address)
		}
		request, _ := http.NewRequest("POST", "http://"+address+"/v1/chat/completions", strings.NewReader("{}"))
		request.Header.Set("Authorization", "Bearer secret-key")
		response, err := http.DefaultClient.Do(request)
		if err != nil || response.StatusCode != 200 {
			t.Fatalf("%v %v", response, err)
		}
		<-started
		for range signals {
			if err := p.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			// The kernel merges equal signals that are still pending.
			eventually(t, "drains", func() bool { return strings.Contains(p.log.String(), "draining") })
		}
		want := "data: 1\n\n" + string(shuttingDown().event())
		if signals == 1 {
			want = "data: 1\n\ndata: [DONE]\n\n"
			more <- true
		}
		if data, err := io.ReadAll(response.Body); err != nil || string(data) != want {
			t.Errorf("%d signals: %q, %v", signals, data, err)
		}
		response.Body.Close()
		_, _ = io.Copy(io.Discard, p.lines)
		if err := p.Wait(); err != nil {
			t.Errorf("%d signals: %v", signals, err)
		}
		if text := p.log.String(); strings.Contains(text, "secret") || !strings.Contains(text, "stopped") {
			t.Errorf("log: %s", text)
		}
	}
}

func TestProcessSaysWhyItCanNotStart(t *testing.T) {
	taken := newCluster(t)
	port := taken.address()[strings.LastIndex(taken.address(), ":")+1:]
	for words, want := range map[string]string{
		"--router h:1 --frobnicate":                           "PHALANX_ERROR unknown flag --frobnicate",
		"--router h:1 --ssl-certfile none --ssl-keyfile none": "PHALANX_ERROR --ssl-certfile",
		"--router h:1 --host 127.0.0.1 --port " + port:        "PHALANX_ERROR cannot listen on 127.0.0.1:" + port,
	} {
		p := startProcess(t, strings.Fields(words)...)
		if line := p.line(t); !strings.HasPrefix(line, want) {
			t.Errorf("%s: %s", words, line)
		}
		_, _ = io.Copy(io.Discard, p.lines)
		if err := p.Wait(); err == nil || p.ProcessState.ExitCode() != 1 {
			t.Errorf("%s: %v", words, err)
		}
	}
}

func TestProcessHelp(t *testing.T) {
	p := startProcess(t, "--help")
	text, err := io.ReadAll(p.lines)
	if waited := p.Wait(); err != nil || waited != nil || !strings.Contains(string(text), "--max-body-bytes") {
		t.Errorf("%v %v %s", err, waited, text)
	}
}

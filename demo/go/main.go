// A parent of imgproxy: fetch every layer of an image, with the standard library alone.
//
//	parent [--output DIR] IMAGE [OPTIONS OF IMGPROXY]
package main

import (
	"bytes"
	"context"
	"crypto"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	sourceLost = 5  // exit status of imgproxy
	tryAgain   = 75 // exit status of this program: EX_TEMPFAIL of sysexits.h
)

var (
	client    http.Client
	retryable bool // another try may succeed
)

// start runs imgproxy on one half of a socket pair; the client uses the other.
func start(image string, options []string) (*exec.Cmd, net.Conn, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()   // the connection has a copy
	defer theirs.Close() // so has the child, and each side must notice the other's end
	connection, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, err
	}
	// There is only this connection. After its end, a request over it fails.
	dial := func(context.Context, string, string) (net.Conn, error) { return connection, nil }
	client.Transport = &http.Transport{DialContext: dial, MaxConnsPerHost: 1}

	name := os.Getenv("IMGPROXY")
	if name == "" {
		name = "imgproxy"
	}
	child := exec.Command(name, append(append([]string{"--sockfd=3"}, options...), image)...)
	child.ExtraFiles = []*os.File{theirs} // the first of these is descriptor 3
	child.Stdin, child.Stderr = os.Stdin, &bytes.Buffer{}
	if child.Start() != nil {
		return nil, nil, fmt.Errorf("cannot start %s", name)
	}
	return child, connection, nil
}

// ask sends a request, and returns the reply, with its body unread, if it succeeds.
func ask(method, path string) (*http.Response, error) {
	request, err := http.NewRequest(method, "http://imgproxy"+path, nil)
	if err != nil {
		return nil, err
	}
	reply, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s: no reply", path)
	}
	if reply.StatusCode == http.StatusOK {
		return reply, nil
	}
	defer reply.Body.Close()
	var body struct {
		Errors []struct {
			Code, Message string
			Detail        struct{ Retryable bool }
		}
	}
	if json.NewDecoder(reply.Body).Decode(&body) != nil || len(body.Errors) == 0 {
		return nil, fmt.Errorf("%s: %d without a reason", path, reply.StatusCode)
	}
	refused := body.Errors[0]
	retryable = refused.Detail.Retryable
	return nil, fmt.Errorf("%s: %d %s: %s", path, reply.StatusCode, refused.Code, refused.Message)
}

// progress is a writer that shows on a terminal how much has been written to it.
type progress struct {
	digest             string
	received, expected int64
}

func (p *progress) Write(chunk []byte) (int, error) {
	before := 100 * p.received / p.expected
	p.received += int64(len(chunk))
	if percent := 100 * p.received / p.expected; percent != before {
		show("%.19s %d %%", p.digest, percent)
	}
	return len(chunk), nil
}

// show replaces the last line of a terminal.
func show(format string, values ...any) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintf(os.Stderr, "\r\033[K"+format, values...)
	}
}

// fetch hashes a blob, saves it if there is a directory, and returns its size.
func fetch(digest, directory string) (int64, error) {
	path := "/blobs/" + digest
	reply, err := ask("GET", path)
	if err != nil {
		return 0, err
	}
	defer reply.Body.Close()
	algorithm, hexadecimal, _ := strings.Cut(digest, ":")
	hashed := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha512": crypto.SHA512}[algorithm].New()
	// Safe as a file name from here on: imgproxy refuses a malformed digest.
	file, part := os.DevNull, os.DevNull
	if directory != "" {
		file = filepath.Join(directory, algorithm+"-"+hexadecimal)
		part = file + ".part"
		defer os.Remove(part)
	}
	output, err := os.Create(part)
	if err != nil {
		return 0, err
	}
	count := progress{digest: digest, expected: reply.ContentLength}
	_, err = io.Copy(io.MultiWriter(output, hashed, &count), reply.Body)
	show("")
	closing := output.Close()
	var local *os.PathError
	switch {
	case errors.As(err, &local):
		return 0, local
	case err != nil || count.received != count.expected:
		return 0, fmt.Errorf("%s: short body, %d of %d bytes", path, count.received, count.expected)
	case fmt.Sprintf("%x", hashed.Sum(nil)) != hexadecimal:
		return 0, fmt.Errorf("%s: does not match its digest", path)
	case closing != nil || directory == "":
		return count.received, closing
	}
	return count.received, os.Rename(part, file) // only a complete file gets its name
}

// list prints the parts of the image, and fetches its layers.
func list(directory string) error {
	if directory != "" {
		if err := os.MkdirAll(directory, 0o777); err != nil {
			return err
		}
	}
	reply, err := ask("GET", "/manifest")
	if err != nil {
		return err
	}
	type descriptor struct {
		Digest string
		Size   int64
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		return errors.New("/manifest: short body")
	}
	if err := json.Unmarshal(body, &manifest); err != nil {
		return err
	}
	fmt.Println("manifest", reply.Header.Get("Manifest-Digest"))
	fmt.Println("config", manifest.Config.Digest, manifest.Config.Size, "bytes")
	for _, layer := range manifest.Layers {
		size, err := fetch(layer.Digest, directory)
		if err != nil {
			return err
		}
		fmt.Println("layer", layer.Digest, size, "bytes")
	}
	_, err = ask("POST", "/quit")
	return err
}

// ending describes how the child failed, with the last line of its standard error.
func ending(child *exec.Cmd) string {
	ended := child.ProcessState.Sys().(syscall.WaitStatus)
	how := fmt.Sprintf("exit status %d", ended.ExitStatus())
	if ended.Signaled() {
		how = fmt.Sprintf("killed by signal %d", ended.Signal())
	}
	lines := strings.Split(strings.TrimSpace(child.Stderr.(*bytes.Buffer).String()), "\n")
	return strings.TrimSuffix(how+": "+lines[len(lines)-1], ": ")
}

func run(image, directory string, options []string) int {
	child, connection, err := start(image, options)
	if err == nil {
		err = list(directory)
		connection.Close() // which ends imgproxy, too
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
	}
	if child == nil {
		return 1
	}
	if child.Wait() != nil {
		fmt.Fprintln(os.Stderr, "imgproxy:", ending(child))
	}
	switch {
	case retryable || child.ProcessState.ExitCode() == sourceLost:
		return tryAgain
	case err != nil || !child.ProcessState.Success():
		return 1
	}
	return 0
}

func main() {
	arguments, directory := os.Args[1:], ""
	if len(arguments) > 1 && arguments[0] == "--output" {
		directory, arguments = arguments[1], arguments[2:]
	}
	if len(arguments) == 0 || strings.HasPrefix(arguments[0], "-") {
		fmt.Fprintln(os.Stderr, "usage: parent [--output DIR] IMAGE [OPTIONS OF IMGPROXY]")
		os.Exit(1)
	}
	os.Exit(run(arguments[0], directory, arguments[1:]))
}

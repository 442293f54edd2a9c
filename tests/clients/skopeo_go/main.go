// A client of skopeo's protocol of Go's kind: it starts the proxy as the suites of skopeo and of
// its libraries do, and insists on what they and other clients rely on.
//
//	skopeo_go [-absent REFERENCE] [-open] REFERENCE PROGRAM [OPTION...]
//
// The program is run as PROGRAM OPTION... experimental-image-proxy --sockfd 3. The image is read
// whole and verified, each layer in every way that the version of the protocol has; -open only
// opens it. REFERENCE of -absent must not exist. Then the proxy is told to shut down, and must end
// with status 0. What was found is printed as JSON; the exit status is 1, with one line on standard
// error, where anything was not as it should be.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

// In bytes: more than fits into a pipe, so that a reader who leaves early is noticed.
const large = 4 << 20

// Of nothing that there is.
var noDigest = digestOf([]byte("no such blob"))

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type layerInfo struct {
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	MediaType string `json:"media_type"`
}

// report is what is printed.
type report struct {
	Version  string          `json:"version"`
	Digest   string          `json:"digest"`   // what GetManifest says
	Manifest string          `json:"manifest"` // as text
	Config   json.RawMessage `json:"config"`
	Layers   []string        `json:"layers"` // the digests of what was read
	Left     string          `json:"left"`   // the failure after an early close, if one was tried
}

func digestOf(content []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(content))
}

func main() {
	runtime.LockOSThread() // the proxy is ended with the thread that has started it
	absent := flag.String("absent", "", "a reference of no image")
	open := flag.Bool("open", false, "open the image, and no more")
	flag.Parse()
	if flag.NArg() < 2 {
		flag.Usage()
		os.Exit(2)
	}
	found, err := run(flag.Arg(0), *absent, *open, flag.Args()[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(found)
}

// run reads the image by a proxy of its own. One that lives on after a failure is ended.
func run(reference, absent string, open bool, command []string) (report, error) {
	p, err := start(command)
	if err != nil {
		return report{}, err
	}
	defer p.kill()
	found, err := converse(p, reference, absent, open)
	if err != nil {
		return report{}, err
	}
	return found, p.shutdown()
}

func converse(p *proxy, reference, absent string, open bool) (found report, err error) {
	if err = p.value(&found.Version, "Initialize"); err != nil {
		return found, err
	}
	if !strings.HasPrefix(found.Version, "0.2.") {
		return found, fmt.Errorf("protocol %q", found.Version)
	}
	var id uint64
	if err = p.value(&id, "OpenImage", reference); err != nil {
		return found, err
	}
	if id == 0 {
		return found, errors.New("OpenImage: 0 for an image that there is")
	}
	if absent != "" && found.Version >= "0.2.4" {
		none := uint64(1)
		if err = p.value(&none, "OpenImageOptional", absent); err != nil {
			return found, err
		}
		if none != 0 {
			return found, fmt.Errorf("OpenImageOptional: %d for an image that there is not", none)
		}
	}
	if !open {
		if err = read(p, id, &found); err != nil {
			return found, err
		}
	}
	return found, p.value(nil, "CloseImage", id)
}

// read reads all there is of an image.
func read(p *proxy, id uint64, found *report) error {
	content, err := p.bytes(&found.Digest, "GetManifest", id)
	if err != nil {
		return err
	}
	found.Manifest = string(content)
	var parsed manifest
	if err := json.Unmarshal(content, &parsed); err != nil {
		return fmt.Errorf("the manifest: %w", err)
	}
	if parsed.SchemaVersion != 2 {
		return fmt.Errorf("the manifest: schemaVersion %d", parsed.SchemaVersion)
	}
	if err := readConfig(p, id, found); err != nil {
		return err
	}
	if err := checkLayerInfo(p, id, parsed.Layers, found.Version); err != nil {
		return err
	}
	blobs, err := readAtOnce(p, id, parsed.Layers)
	if err != nil {
		return err
	}
	for n, layer := range parsed.Layers {
		if err := layer.check(blobs[n]); err != nil {
			return fmt.Errorf("GetBlob: %w", err)
		}
		found.Layers = append(found.Layers, digestOf(blobs[n]))
		if err := readAgain(p, id, layer, blobs[n], found); err != nil {
			return err
		}
	}
	return checkNoBlob(p, id, found.Version)
}

// readConfig reads the config in both ways, of which one gives a part of the other.
func readConfig(p *proxy, id uint64, found *report) error {
	content, err := p.bytes(nil, "GetFullConfig", id)
	if err != nil {
		return err
	}
	found.Config = content
	var full struct{ Architecture string }
	if err := json.Unmarshal(content, &full); err != nil || full.Architecture == "" {
		return fmt.Errorf("GetFullConfig: %.200q: %v", content, err)
	}
	content, err = p.bytes(nil, "GetConfig", id)
	if err != nil {
		return err
	}
	var inner map[string]any
	if err := json.Unmarshal(content, &inner); err != nil {
		return fmt.Errorf("GetConfig: %.200q: %v", content, err)
	}
	return nil
}

// checkLayerInfo compares the list of layers with those of the manifest.
func checkLayerInfo(p *proxy, id uint64, layers []descriptor, version string) error {
	var inline, piped []layerInfo
	if version >= "0.2.5" {
		if err := p.value(&inline, "GetLayerInfo", id); err != nil {
			return err
		}
	}
	if version >= "0.2.7" {
		content, err := p.bytes(nil, "GetLayerInfoPiped", id)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(content, &piped); err != nil {
			return err
		}
	}
	for _, found := range [][]layerInfo{inline, piped} {
		if found != nil && len(found) != len(layers) {
			return fmt.Errorf("%d layers listed, %d in the manifest", len(found), len(layers))
		}
		for n, layer := range found {
			if layer.Digest != layers[n].Digest || layer.Size != layers[n].Size {
				return fmt.Errorf("layer %d is listed as %v, and is %v", n, layer, layers[n])
			}
		}
	}
	return nil
}

// readAtOnce opens all layers before it reads any, and finishes the last one first.
func readAtOnce(p *proxy, id uint64, layers []descriptor) ([][]byte, error) {
	blobs := make([][]byte, len(layers))
	pending := make([]*reading, len(layers))
	for n, layer := range layers {
		pipe, err := p.pipe(nil, "GetBlob", id, layer.Digest, layer.Size)
		if err != nil {
			return nil, err
		}
		pending[n] = pipe.read()
	}
	for n := len(layers) - 1; n >= 0; n-- {
		content, err := pending[n].finish(p)
		if err != nil {
			return nil, fmt.Errorf("GetBlob of %s: %w", layers[n].Digest, err)
		}
		blobs[n] = content
	}
	return blobs, nil
}

// readAgain reads a layer by itself, raw, and, if it is large, not to its end.
func readAgain(p *proxy, id uint64, layer descriptor, content []byte, found *report) error {
	again, err := p.bytes(nil, "GetBlob", id, layer.Digest, layer.Size)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, content) {
		return fmt.Errorf("GetBlob of %s: not the same twice", layer.Digest)
	}
	if found.Version >= "0.2.8" {
		raw, failure, err := p.raw(id, layer.Digest)
		if err != nil || failure != "" {
			return fmt.Errorf("GetRawBlob of %s: %s %v", layer.Digest, failure, err)
		}
		if !bytes.Equal(raw, content) {
			return fmt.Errorf("GetRawBlob of %s: not what GetBlob gives", layer.Digest)
		}
	}
	if layer.Size >= large {
		return leaveEarly(p, id, layer, found)
	}
	return nil
}

// leaveEarly reads the first byte of a layer, closes the pipe, and finishes it all the same.
func leaveEarly(p *proxy, id uint64, layer descriptor, found *report) error {
	pipe, err := p.pipe(nil, "GetBlob", id, layer.Digest, layer.Size)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(pipe.file, make([]byte, 1))
	pipe.file.Close()
	if err != nil {
		return err
	}
	var refused *refusal
	if err := p.value(nil, "FinishPipe", pipe.id); !errors.As(err, &refused) {
		return fmt.Errorf("FinishPipe after an early close: %v, expected a failure", err)
	}
	if found.Version >= "0.2.8" && refused.Code != "EPIPE" {
		return fmt.Errorf("FinishPipe after an early close: code %q", refused.Code)
	}
	if !strings.HasSuffix(refused.Words, "broken pipe") {
		return fmt.Errorf("FinishPipe after an early close: %q", refused.Words)
	}
	found.Left = refused.Words
	return nil
}

// checkNoBlob asks for what is not there, which must fail at the call or by the second pipe.
func checkNoBlob(p *proxy, id uint64, version string) error {
	var refused *refusal
	if _, err := p.bytes(nil, "GetBlob", id, noDigest, 12); !errors.As(err, &refused) {
		return fmt.Errorf("GetBlob of no blob: %v, expected a failure", err)
	}
	if version < "0.2.8" {
		return nil
	}
	_, failure, err := p.raw(id, noDigest)
	if failure == "" && !errors.As(err, &refused) {
		return fmt.Errorf("GetRawBlob of no blob: %v, expected a failure", err)
	}
	return nil
}

func (d descriptor) check(content []byte) error {
	if int64(len(content)) != d.Size || digestOf(content) != d.Digest {
		return fmt.Errorf("%s of %d bytes, got %s of %d",
			d.Digest, d.Size, digestOf(content), len(content))
	}
	return nil
}

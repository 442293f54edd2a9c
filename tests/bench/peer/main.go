// A peer for the bench: stands for a current skopeo where only an old one can be had.
//
// It speaks skopeo-experimental-image-proxy(1) on the library that skopeo is made of, of a current
// version, and does what skopeo's own proxy does for each request, no cleverer and no duller. What
// the bench does not ask for is left out: other methods, policies other than to accept everything.
// Without cgo the library keeps in memory where a blob was found, which skopeo's would write into
// an SQLite file. Built in this folder by one line, for `python tests/bench --skopeo PATH`:
//
//	CGO_ENABLED=0 go build -tags containers_image_openpgp,exclude_graphdriver_btrfs -o PATH
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/transports/alltransports"
	"go.podman.io/image/v5/types"
	"go.podman.io/image/v5/version"
)

const (
	protocol   = "0.2.8"
	maxMessage = 32 << 10
)

var ctx = context.Background()

type request struct {
	Method string            `json:"method"`
	Args   []json.RawMessage `json:"args"`
}

type reply struct {
	Success bool     `json:"success"`
	Value   any      `json:"value"`
	PipeID  uint32   `json:"pipeid"`
	Error   string   `json:"error"`
	pipe    *os.File // the parent's end: goes along, and is closed here
}

type layerInfo struct {
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"media_type"`
}

type openImage struct {
	source types.ImageSource
	chosen types.Image // once its manifest has been asked for
}

type activePipe struct {
	writer *os.File
	group  sync.WaitGroup
	err    error // how it ended, once the group is through
}

type proxy struct {
	system *types.SystemContext
	cache  types.BlobInfoCache
	images []*openImage // image 1 is the first: no image has the number 0
	pipes  map[uint32]*activePipe
}

func (p *proxy) openImage(name string) (reply, error) {
	reference, err := alltransports.ParseImageName(name)
	if err != nil {
		return reply{}, err
	}
	source, err := reference.NewImageSource(ctx, p.system)
	if err != nil {
		return reply{}, err
	}
	p.images = append(p.images, &openImage{source: source})
	anything := signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: anything})
	if err != nil {
		return reply{}, err
	}
	defer policy.Destroy()
	_, err = policy.IsRunningImageAllowed(ctx, image.UnparsedInstance(source, nil))
	return reply{Value: len(p.images)}, err
}

// choose gives the image, or the one of its index that fits this machine.
func (p *proxy) choose(source types.ImageSource) (types.Image, error) {
	target := image.UnparsedInstance(source, nil)
	raw, mediaType, err := target.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	if manifest.MIMETypeIsMultiImage(mediaType) {
		list, err := manifest.ListFromBlob(raw, mediaType)
		if err != nil {
			return nil, err
		}
		instance, err := list.ChooseInstance(p.system)
		if err != nil {
			return nil, err
		}
		target = image.UnparsedInstance(source, &instance)
	}
	return image.FromUnparsedImage(ctx, p.system, target)
}

// image gives what was chosen of an open image, which is done once.
func (p *proxy) image(opened *openImage) (_ types.Image, err error) {
	if opened.chosen == nil {
		opened.chosen, err = p.choose(opened.source)
	}
	return opened.chosen, err
}

// getManifest gives the digest of the manifest as it is, and the manifest as OCI has it.
func (p *proxy) getManifest(opened *openImage) (reply, error) {
	if _, err := p.image(opened); err != nil {
		return reply{}, err
	}
	raw, mediaType, err := opened.chosen.Manifest(ctx)
	if err != nil {
		return reply{}, err
	}
	original, err := manifest.Digest(raw)
	if err != nil {
		return reply{}, err
	}
	if mediaType != imgspecv1.MediaTypeImageManifest {
		update := types.ManifestUpdateOptions{ManifestMIMEType: imgspecv1.MediaTypeImageManifest}
		converted, err := opened.chosen.UpdatedImage(ctx, update)
		if err != nil {
			return reply{}, err
		}
		if raw, _, err = converted.Manifest(ctx); err != nil {
			return reply{}, err
		}
	}
	return p.sendBytes(original, raw)
}

// getLayerInfo gives all layers as a copy of the image would fetch them.
func (p *proxy) getLayerInfo(opened *openImage) (reply, error) {
	chosen, err := p.image(opened)
	if err != nil {
		return reply{}, err
	}
	found, err := chosen.LayerInfosForCopy(ctx)
	if err != nil {
		return reply{}, err
	}
	if found == nil {
		found = chosen.LayerInfos()
	}
	layers := make([]layerInfo, 0, len(found))
	for _, layer := range found {
		layers = append(layers, layerInfo{layer.Digest, layer.Size, layer.MediaType})
	}
	content, err := json.Marshal(layers)
	if err != nil {
		return reply{}, err
	}
	return p.sendBytes(nil, content)
}

func (p *proxy) getBlob(opened *openImage, wanted digest.Digest, size int64) (reply, error) {
	if err := wanted.Validate(); err != nil {
		return reply{}, err
	}
	info := types.BlobInfo{Digest: wanted, Size: size}
	blob, announced, err := opened.source.GetBlob(ctx, info, p.cache)
	if err != nil {
		return reply{}, err
	}
	return p.send(announced, func(writer *os.File) error {
		defer blob.Close()
		verifier := wanted.Verifier()
		copied, err := io.Copy(writer, io.TeeReader(blob, verifier))
		if err != nil {
			return err
		}
		if copied != size {
			return fmt.Errorf("expected %d bytes in blob, got %d", size, copied)
		}
		if !verifier.Verified() {
			return fmt.Errorf("corrupted blob, expecting %s", wanted)
		}
		return nil
	})
}

func (p *proxy) sendBytes(value any, content []byte) (reply, error) {
	return p.send(value, func(writer *os.File) error {
		_, err := io.Copy(writer, bytes.NewReader(content))
		return err
	})
}

// send answers with a value and a pipe, which is filled while the parent reads.
func (p *proxy) send(value any, fill func(*os.File) error) (reply, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return reply{}, err
	}
	active := &activePipe{writer: writer}
	id := uint32(writer.Fd())
	p.pipes[id] = active
	active.group.Go(func() { active.err = fill(writer) })
	return reply{Value: value, PipeID: id, pipe: reader}, nil
}

// finishPipe waits until all is written; the verdict comes with the end.
func (p *proxy) finishPipe(id uint32) (reply, error) {
	active, found := p.pipes[id]
	if !found {
		return reply{}, fmt.Errorf("no active pipe %d", id)
	}
	active.group.Wait()
	active.writer.Close()
	delete(p.pipes, id)
	return reply{}, active.err
}

func (p *proxy) answer(asked request) (reply, error) {
	var (
		name   string
		number int
		wanted digest.Digest
		size   int64
		id     uint32
	)
	parameters, known := map[string][]any{
		"Initialize": {}, "OpenImage": {&name}, "GetManifest": {&number},
		"GetLayerInfoPiped": {&number}, "GetBlob": {&number, &wanted, &size}, "FinishPipe": {&id},
	}[asked.Method]
	if !known {
		return reply{}, fmt.Errorf("unknown method %q", asked.Method)
	}
	if len(asked.Args) != len(parameters) {
		return reply{}, fmt.Errorf("%s: %d arguments", asked.Method, len(asked.Args))
	}
	if p.cache == nil && asked.Method != "Initialize" {
		return reply{}, errors.New("must invoke Initialize")
	}
	for i, argument := range asked.Args {
		if err := json.Unmarshal(argument, parameters[i]); err != nil {
			return reply{}, err
		}
	}
	switch asked.Method {
	case "Initialize":
		p.cache = blobinfocache.DefaultCache(p.system)
		return reply{Value: protocol}, nil
	case "OpenImage":
		return p.openImage(name)
	case "FinishPipe":
		return p.finishPipe(id)
	}
	if number < 1 || number > len(p.images) {
		return reply{}, fmt.Errorf("no image %d", number)
	}
	opened := p.images[number-1]
	switch asked.Method {
	case "GetManifest":
		return p.getManifest(opened)
	case "GetLayerInfoPiped":
		return p.getLayerInfo(opened)
	case "GetBlob":
		return p.getBlob(opened, wanted, size)
	}
	panic("a method with parameters and without an answer")
}

func (r *reply) write(connection *net.UnixConn) error {
	var rights []byte
	if r.pipe != nil {
		defer r.pipe.Close()
		rights = syscall.UnixRights(int(r.pipe.Fd()))
	}
	message, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, _, err = connection.WriteMsgUnix(message, rights, nil)
	return err
}

// serve answers until the parent says Shutdown or is gone.
func (p *proxy) serve(connection *net.UnixConn) error {
	message := make([]byte, maxMessage)
	for {
		length, err := connection.Read(message)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var asked request
		if err := json.Unmarshal(message[:length], &asked); err != nil {
			return err
		}
		if asked.Method == "Shutdown" {
			return nil
		}
		answer, err := p.answer(asked)
		if answer.Success = err == nil; err != nil {
			answer = reply{Error: err.Error()}
		}
		if err := answer.write(connection); err != nil {
			return err
		}
	}
}

func run() error {
	global := flag.NewFlagSet(os.Args[0], flag.ExitOnError)
	showVersion := global.Bool("version", false, "print the version of the library")
	insecurePolicy := global.Bool("insecure-policy", false, "accept every image")
	_ = global.Parse(os.Args[1:]) // an error ends the program
	if *showVersion {
		fmt.Println("containers/image version", version.Version)
		return nil
	}
	if global.Arg(0) != "experimental-image-proxy" || !*insecurePolicy {
		return errors.New("expected --insecure-policy experimental-image-proxy")
	}
	command := flag.NewFlagSet(global.Arg(0), flag.ExitOnError)
	tlsVerify := command.Bool("tls-verify", true, "insist on TLS, verified")
	fd := command.Uint("sockfd", 0, "serve on this descriptor")
	_ = command.Parse(global.Args()[1:])

	file := os.NewFile(uintptr(*fd), "sockfd")
	inherited, err := net.FileConn(file)
	if err != nil {
		return err
	}
	file.Close() // the connection has a copy
	connection, ok := inherited.(*net.UnixConn)
	if !ok {
		return errors.New("--sockfd is no Unix socket")
	}
	system := &types.SystemContext{}
	if !*tlsVerify {
		system.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	p := proxy{system: system, pipes: map[uint32]*activePipe{}}
	err = p.serve(connection)
	for _, opened := range p.images {
		opened.source.Close()
	}
	return err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

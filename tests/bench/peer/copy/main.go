// A peer for the bench: what a current `skopeo copy` does, on the library that skopeo is made of.
//
// It is a program of its own, so that the other peer does not start with what only a copy needs.
// The bench runs it as `peer-copy copy --src-tls-verify=false IMAGE TO`, if it is in PATH. Built in
// the folder above by one line:
//
//	CGO_ENABLED=0 go build -tags containers_image_openpgp,exclude_graphdriver_btrfs -o PATH/peer-copy ./copy
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/transports/alltransports"
	"go.podman.io/image/v5/types"
)

func run() error {
	command := flag.NewFlagSet("copy", flag.ExitOnError)
	tlsVerify := command.Bool("src-tls-verify", true, "insist on TLS, verified")
	if len(os.Args) > 1 {
		_ = command.Parse(os.Args[2:]) // an error ends the program
	}
	source, err := alltransports.ParseImageName(command.Arg(0))
	if err != nil {
		return err
	}
	destination, err := alltransports.ParseImageName(command.Arg(1))
	if err != nil {
		return err
	}
	anything := signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: anything})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	system := &types.SystemContext{}
	if !*tlsVerify {
		system.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	options := copy.Options{SourceCtx: system}
	_, err = copy.Image(context.Background(), policy, destination, source, &options)
	return err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

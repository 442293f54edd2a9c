// What proxy_test.go of skopeo's integration suite takes from the files beside it, most of which
// want modules or networks that cannot be had. It is run by tests/interop/test_skopeo_go.py, in a
// folder where that file and procutils*_test.go are copied to.
package main

import "os"

const knownListImage = "docker://registry.fedoraproject.org/fedora-minimal:38"

var skopeoBinary = os.Getenv("SKOPEO_BINARY")

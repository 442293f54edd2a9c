"""Docker schema 2 to OCI. The golden bytes are frozen: parents store the digest of the result."""

from __future__ import annotations

import json

import pytest

from imgproxy.specs.oci import convert, manifest
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci.digest import Digest, compute

# A manifest of `docker push`, to the byte: three spaces of indentation, in this order.
DOCKER = b"""{
   "schemaVersion": 2,
   "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
   "config": {
      "mediaType": "application/vnd.docker.container.image.v1+json",
      "size": 1457,
      "digest": "sha256:6d6859d1a42a2395a8eacc41c718a039210b377f922d19076ebbdd74aa047e89"
   },
   "layers": [
      {
         "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
         "size": 772792,
         "digest": "sha256:50783e0dfb64b73019e973e7bce2c0d5a882301b781327ca153b876ad758dbd3"
      }
   ]
}"""

DOCKER_AS_OCI = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
    b'"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":1457,'
    b'"digest":"sha256:6d6859d1a42a2395a8eacc41c718a039210b377f922d19076ebbdd74aa047e89"},'
    b'"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":772792,'
    b'"digest":"sha256:50783e0dfb64b73019e973e7bce2c0d5a882301b781327ca153b876ad758dbd3"}]}'
)

# All members that a conversion might change by mistake.
ODD = rb"""
{ "layers": [
    { "urls": ["https://example.com/?a=1&b=<2>"], "size": 0, "digest": "multihash+base58:Qm",
      "annotations": {"b": "\u00e4\ud83d\udc33\u2028\u007f\/\"\u001b", "a": "\\"},
      "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" },
    { "mediaType": "application/vnd.in-toto+json", "digest": "x:2", "size": 9007199254740993 },
    { "digest": "x:3", "size": 1, "unheard-of": {"mediaType": "kept"} } ],
  "zeta": [1.5, -0.0, null, true, false, {}, []],
  "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
  "alpha": "application/vnd.docker.container.image.v1+json",
  "config": { "size": 2, "mediaType": "application/octet-stream", "digest": "x:1" },
  "schemaVersion": 2 }
"""

ODD_AS_OCI = (
    '{"layers":['
    '{"urls":["https://example.com/?a=1&b=<2>"],"size":0,"digest":"multihash+base58:Qm",'
    '"annotations":{"b":"ä🐳\u2028\x7f/\\"\\u001b","a":"\\\\"},'
    '"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},'
    '{"mediaType":"application/vnd.in-toto+json","digest":"x:2","size":9007199254740993},'
    '{"digest":"x:3","size":1,"unheard-of":{"mediaType":"kept"}}],'
    '"zeta":[1.5,-0.0,null,true,false,{},[]],'
    '"mediaType":"application/vnd.oci.image.manifest.v1+json",'
    '"alpha":"application/vnd.docker.container.image.v1+json",'
    '"config":{"size":2,"mediaType":"application/octet-stream","digest":"x:1"},'
    '"schemaVersion":2}'
).encode()


@pytest.mark.parametrize(
    ("docker", "oci", "digest"),
    [
        pytest.param(
            DOCKER,
            DOCKER_AS_OCI,
            "sha256:d0d1d0900427ff65c3ce583ed29570d1ab8c2ccf8d6f84db21fb747a636a4261",
            id="docker-push",
        ),
        pytest.param(
            ODD,
            ODD_AS_OCI,
            "sha256:bd4d885dd0c9f0b3eb53f7e531239be26a769ca568d6ff5c20024cf66ee859df",
            id="everything-odd",
        ),
    ],
)
def test_the_conversion_gives_these_bytes_for_ever(docker: bytes, oci: bytes, digest: str) -> None:
    assert convert.manifest(docker) == oci
    assert str(compute(oci)) == digest


@pytest.mark.parametrize("raw", [DOCKER, ODD], ids=["docker-push", "everything-odd"])
def test_a_converted_manifest_names_the_same_blobs(raw: bytes) -> None:
    before, after = (
        manifest.parse(document, "", "it") for document in (raw, convert.manifest(raw))
    )
    assert isinstance(before, manifest.Manifest)
    assert isinstance(after, manifest.Manifest)
    assert after.media_type == types.OCI_MANIFEST
    assert [each[1:] for each in (after.config, *after.layers)] == [
        each[1:] for each in (before.config, *before.layers)
    ]


@pytest.mark.parametrize(
    ("docker", "oci"),
    [
        (
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.oci.image.manifest.v1+json",
        ),
        (
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.oci.image.config.v1+json",
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.oci.image.layer.v1.tar",
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        ),
    ],
)
def test_media_types_are_relabelled(docker: str, oci: str) -> None:
    assert convert.media_type(docker) == oci
    assert convert.media_type(oci) == oci


@pytest.mark.parametrize(
    "other",
    [
        "",
        "application/octet-stream",
        "application/vnd.docker.plugin.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar.bzip2",
        "Application/vnd.docker.container.image.v1+json",
    ],
)
def test_unknown_types_are_kept(other: str) -> None:
    assert convert.media_type(other) == other


@pytest.mark.parametrize(
    ("document", "converted"),
    [
        ('{"config":{}}', '{"config":{}}'),
        ('{"config":{},"layers":null}', '{"config":{},"layers":null}'),
        ('{"config":{"mediaType":null},"layers":[]}', '{"config":{"mediaType":null},"layers":[]}'),
    ],
)
def test_what_is_not_there_is_not_added(document: str, converted: str) -> None:
    assert convert.manifest(document.encode()) == converted.encode()


def test_a_subject_keeps_the_type_that_it_has() -> None:
    document = {"config": {}, "subject": {"mediaType": types.DOCKER_MANIFEST}}
    assert json.loads(convert.manifest(json.dumps(document).encode())) == document


def test_a_list_is_an_index_of_what_its_entries_became() -> None:
    entries = [
        {
            "mediaType": types.DOCKER_MANIFEST,
            "size": 5,
            "digest": "x:1",
            "platform": {"a": "b"},
        },
        {"mediaType": types.OCI_MANIFEST, "size": 6, "digest": "x:2", "unheard-of": 1},
        {"size": 7, "digest": "x:3", "data": "e30="},
    ]
    raw = json.dumps({"mediaType": types.DOCKER_LIST, "manifests": entries, "a": "b"}).encode()
    new = manifest.Descriptor(types.OCI_MANIFEST, Digest("y", "9"), 99)
    assert convert.index(raw, {"x:1": new, "x:3": new}) == (
        b'{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":['
        b'{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":99,"digest":"y:9",'
        b'"platform":{"a":"b"}},'
        b'{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":6,"digest":"x:2",'
        b'"unheard-of":1},'
        b'{"size":99,"digest":"y:9","mediaType":"application/vnd.oci.image.manifest.v1+json"}],'
        b'"a":"b"}'
    )

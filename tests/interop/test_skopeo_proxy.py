"""skopeo's protocol from outside: methods, errors and packets, as a table.

imgproxy and Debian's skopeo, which speaks 0.2.3, answer the same rows. A row says where they
differ: skopeo has words of its own, does not know the method yet, or does what is not worth
imitating.
"""

from __future__ import annotations

import json
import os
import re
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.images import OCI_CONFIG, OCI_LAYER, digest_of
from support.skopeo_client import (
    MAX_PACKET,
    PROGRAMS,
    Client,
    Ended,
    Program,
    encode,
    read_to_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conftest import Converse, Sample

NOWHERE = "sha256:" + "0" * 64
# The digest of the sample's first layer, and its name in rows.
LAYER = digest_of(b"first layer" * 100)
LAYER_SIZE = 1100

BEFORE_INITIALIZE = re.escape("client error: must invoke Initialize")
ONE = re.escape("invalid request, expecting one argument")
NONE = re.escape("invalid request, expecting zero arguments")
IMAGE_ID = re.escape("invalid request, expecting: [imgid]")
BLOB = r"found {} args, expecting \(imgid, digest, size\)"
RAW_BLOB = r"found {} args, expecting \(imgid, digest\)"
LAYERS = r"found {} args, expecting \(imgid\)"
NUMERIC = "expecting numeric, not {}"
OLD_NUMERIC = "expecting integer imageid, not {}"
NO_PIPE = "finishpipe: no active pipe {}"
BAD = "invalid request: .+"


class Row(NamedTuple):
    """A request that fails: the words, as a pattern, and those of skopeo where it has others.

    `skopeo` is empty where it succeeds, and `since` the version that the method came with.
    """

    method: str
    arguments: tuple[object, ...]
    words: str
    skopeo: str | None = None
    since: str = "0.2.1"

    def __str__(self) -> str:
        return f"{self.method}{self.arguments}"

    def expected(self, program: Program) -> str:
        if not program.is_old:
            return self.words
        if self.since > "0.2.3":
            return f"unknown method: {self.method}"
        return self.words if self.skopeo is None else self.skopeo


def check(client: Client, rows: Iterable[Row]) -> None:
    """Send all requests, and name those whose replies are others."""
    failures = []
    for row in rows:
        reply = client.call(row.method, *row.arguments)
        expected = row.expected(client.program)
        if not re.fullmatch(expected, reply.words):
            failures.append(f"{row}: expected {expected}, got {reply.words}")
        if not reply.success and reply.code != "other":
            failures.append(f"{row}: code {reply.code}")
    assert not failures, "\n".join(failures)


EARLY = [
    # The number of arguments and their types are not looked at before.
    *(
        Row(method, arguments, BEFORE_INITIALIZE, since=since)
        for method, since in {
            "OpenImage": "0.2.1",
            "OpenImageOptional": "0.2.4",
            "CloseImage": "0.2.1",
            "GetManifest": "0.2.1",
            "GetConfig": "0.2.1",
            "GetFullConfig": "0.2.3",
            "GetLayerInfo": "0.2.5",
            "GetLayerInfoPiped": "0.2.7",
            "GetBlob": "0.2.1",
            "GetRawBlob": "0.2.8",
        }.items()
        for arguments in ((), ("oci:/nowhere",), (1, 2, 3, 4))
    ),
    Row("FinishPipe", (1,), NO_PIPE.format(1)),
    Row("FinishPipe", ("x",), NUMERIC.format("string")),
    Row("Nope", (), "unknown method: Nope"),
    Row("Initialize", ("x",), NONE),
    Row("Initialize", (None,), NONE),
]

# With one image open, whose id is 1.
ERRORS = [
    Row("Initialize", (), "already initialized"),
    Row("Initialize", (1,), NONE),
    *(Row("Nope", arguments, "unknown method: Nope") for arguments in ((), (1,), ("x", "y"))),
    # Values are compared exactly, and 0.2.9 is not spoken.
    Row("initialize", (), "unknown method: initialize"),
    Row("OpenVarlinkSocket", (1,), "unknown method: OpenVarlinkSocket"),
    # The number of arguments comes before their types.
    *(
        Row(method, arguments, ONE)
        for method in ("OpenImage", "CloseImage", "GetManifest")
        for arguments in ((), ("x", 1), (99, 99))
    ),
    *(
        Row(method, arguments, IMAGE_ID)
        for method in ("GetConfig", "GetFullConfig")
        for arguments in ((), ("x", 1), (99, 99))
    ),
    Row("OpenImageOptional", (), ONE, since="0.2.4"),
    Row("OpenImageOptional", ("x", "x"), ONE, since="0.2.4"),
    Row("GetLayerInfo", (), LAYERS.format(0), since="0.2.5"),
    Row("GetLayerInfo", (99, 99), LAYERS.format(2), since="0.2.5"),
    Row("GetLayerInfoPiped", (), LAYERS.format(0), since="0.2.7"),
    Row("GetLayerInfoPiped", (99, 99), LAYERS.format(2), since="0.2.7"),
    Row("GetBlob", (), BLOB.format(0)),
    Row("GetBlob", (1, LAYER), BLOB.format(2)),
    Row("GetBlob", (99, LAYER, LAYER_SIZE, 1), BLOB.format(4)),
    Row("GetRawBlob", (), RAW_BLOB.format(0), since="0.2.8"),
    Row("GetRawBlob", (1,), RAW_BLOB.format(1), since="0.2.8"),
    Row("GetRawBlob", ("x", 1, 1), RAW_BLOB.format(3), since="0.2.8"),
    # Then the type of the reference, or of the id.
    *(
        Row("OpenImage", (value,), f"expecting string imageref, not {re.escape(kind)}")
        for value, kind in {
            1.5: "float64",
            7: "float64",
            None: "<nil>",
            True: "bool",
        }.items()
    ),
    Row("OpenImage", ([],), re.escape("expecting string imageref, not []interface {}")),
    Row("OpenImage", ({},), re.escape("expecting string imageref, not map[string]interface {}")),
    Row("OpenImageOptional", (1,), "expecting string imageref, not float64", since="0.2.4"),
    *(
        Row(method, (value, *rest), NUMERIC.format(kind), OLD_NUMERIC.format(kind), since)
        for method, rest, since in (
            ("CloseImage", (), "0.2.1"),
            ("GetManifest", (), "0.2.1"),
            ("GetConfig", (), "0.2.1"),
            ("GetFullConfig", (), "0.2.3"),
            ("GetLayerInfo", (), "0.2.5"),
            ("GetLayerInfoPiped", (), "0.2.7"),
            ("GetBlob", ("x", "x"), "0.2.1"),
            ("GetRawBlob", (1,), "0.2.8"),
        )
        for value, kind in (("1", "string"), (True, "bool"), (False, "bool"), (None, "<nil>"))
    ),
    Row("CloseImage", ([1],), NUMERIC.format(r"\[\].*"), OLD_NUMERIC.format(r"\[\].*")),
    Row("CloseImage", ({},), NUMERIC.format("map.*"), OLD_NUMERIC.format("map.*")),
    # Then the id itself.
    *(
        Row(method, (id_, *rest), words, skopeo, since)
        for method, rest, since in (
            ("CloseImage", (), "0.2.1"),
            ("GetManifest", (), "0.2.1"),
            ("GetConfig", (), "0.2.1"),
            ("GetFullConfig", (), "0.2.3"),
            ("GetLayerInfo", (), "0.2.5"),
            ("GetLayerInfoPiped", (), "0.2.7"),
            ("GetBlob", (1, "x"), "0.2.1"),
            ("GetRawBlob", (1,), "0.2.8"),
        )
        for id_, words, skopeo in (
            (99, "no image 99", None),
            (0, "invalid imageid value of zero", "no image 0"),
            # Numbers are neither wrapped nor cut; Debian's does both.
            (-1, "no image -1", "no image 4294967295"),
            (99.5, r"expecting a whole number, not 99\.5", "no image 99"),
            (2**53 - 1, f"no image {2**53 - 1}", "no image 4294967295"),
            (2**53, f"out of range integer for numeric {2**53}", "no image 0"),
            (-(2**53), f"out of range integer for numeric -{2**53}", "no image 0"),
            (1e300, r"out of range integer for numeric 1e\+300", "no image 0"),
            (10**30, f"out of range integer for numeric {10**30}", "no image 0"),
        )
    ),
    # Then the rest.
    Row("GetBlob", (1, 1, "x"), "expecting string blobid, not float64", "expecting string blobid"),
    Row("GetBlob", (1, None, "x"), "expecting string blobid, not <nil>", "expecting string blobid"),
    Row("GetBlob", (1, LAYER, "1100"), NUMERIC.format("string")),
    Row("GetBlob", (1, LAYER, True), NUMERIC.format("bool")),
    Row("GetBlob", (1, LAYER, None), NUMERIC.format("<nil>")),
    Row("GetBlob", (1, LAYER, 2**53), "out of range integer for numeric .*"),
    Row("GetRawBlob", (1, 2), "expecting string blobid, not float64", since="0.2.8"),
    *(
        Row("GetBlob", (1, digest, LAYER_SIZE), words, skopeo)
        for digest, words, skopeo in (
            ("x", '"x" is not a digest .*', "invalid checksum digest format"),
            ("", '"" is not a digest .*', "invalid checksum digest format"),
            ("sha256:abc", ".*: sha256 has 64 .*", "invalid checksum digest length"),
            (LAYER.upper(), ".* is not a digest .*", "invalid checksum digest format"),
            ("sha256:" + "A" * 64, ".*: sha256 has 64 .*", "invalid checksum digest format"),
            ("md5:" + "0" * 32, ".*: no released .* md5:0*", "unsupported digest algorithm"),
            (NOWHERE, f".*: no released .* {NOWHERE}", "open .*: no such file or directory"),
        )
    ),
    Row("GetRawBlob", (1, "x"), '"x" is not a digest .*', since="0.2.8"),
    Row("GetRawBlob", (1, NOWHERE), f".*: no released .* {NOWHERE}", since="0.2.8"),
    Row("FinishPipe", (77,), NO_PIPE.format(77)),
    Row("FinishPipe", (0,), NO_PIPE.format(0)),
    Row("FinishPipe", (77, 1, "x"), NO_PIPE.format(77)),
    Row("FinishPipe", (-1,), NO_PIPE.format(-1), NO_PIPE.format(4294967295)),
    Row("FinishPipe", (77.5,), r"expecting a whole number, not 77\.5", NO_PIPE.format(77)),
    Row("FinishPipe", ("1",), NUMERIC.format("string")),
    Row("FinishPipe", (True,), NUMERIC.format("bool")),
    Row("FinishPipe", (None,), NUMERIC.format("<nil>")),
    Row("FinishPipe", (2**53,), "out of range integer for numeric .*"),
    # References.
    *(
        Row("OpenImage", (reference,), words, skopeo)
        for reference, words, skopeo in (
            ("", 'the image name "": .*', 'Invalid image name "", .*'),
            ("oci:/nowhere", "/nowhere/.*: No such file or directory", "open /nowhere/.*"),
            ("docker-archive:/nowhere", "/nowhere: No such .*", 'opening file "/nowhere": .*'),
            ("oci-archive:/nowhere", "/nowhere: No such .*", "creating temp directory: .*"),
            ("docker://UPPER", ".*: the repository must be lower-case", ".* must be lowercase"),
            ("docker://", "the image name .*", ".*"),
            # The transports of daemons and of containers' storage are for skopeo alone.
            ("containers-storage:x", ".* containers-storage: is not supported; .*", ".*"),
            ("docker-daemon:x:1", ".* docker-daemon: is not supported; .*", ".*"),
            ("registry:x/y:1", ".+", 'Invalid image name "registry:x/y:1", unknown transport .*'),
            ("dir:\0", ".+", ".*invalid argument"),
        )
    ),
    Row("OpenImageOptional", ("",), 'the image name "": .*', since="0.2.4"),
]


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_before_initialize_nothing_else_is_done(
    program: Program, sample: Sample, converse: Converse
) -> None:
    client = converse(program=program)
    check(client, EARLY)
    check(client, [Row("OpenImage", (sample.name,), BEFORE_INITIALIZE)])
    assert client.initialize() == ("0.2.3" if program.is_old else "0.2.8")
    assert client.open(sample.name) == 1
    assert client.finalize() == 0


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_errors_have_their_words_and_their_order(
    program: Program, sample: Sample, converse: Converse
) -> None:
    client = converse(program=program)
    client.initialize()
    assert client.open(sample.name) == 1
    check(client, ERRORS)
    assert client.blob(1, sample.layout.layers(sample.descriptor)[0]) == sample.layers[0]
    assert client.finalize() == 0


# Packets: what is in them, and what is answered, where it is not an answer to CloseImage without
# arguments, which each is read as that can be read at all.
READ = ONE
CALL = b'{"method":"CloseImage"}'
UNNAMED = "unknown method: ?"
PACKETS = {
    "as the Go client": (b'{"method":"CloseImage","args":null}', READ, READ),
    "as the Rust client": (b'{"method":"CloseImage","args":[]}', READ, READ),
    "no args": (CALL, READ, READ),
    "unknown members": (b'{"x":{"y":[1]},"method":"CloseImage","z":null}', READ, READ),
    "unknown members, twice": (b'{"method":"CloseImage","x":1,"x":2}', READ, READ),
    "white space": (b' \t\n{ "method" : "CloseImage" }\r\n ', READ, READ),
    "escapes": (rb'{"m\u0065thod":"Close\u0049mage"}', READ, READ),
    "32 KiB": (CALL.ljust(MAX_PACKET), READ, READ),
    "an empty object": (b"{}", UNNAMED, UNNAMED),
    "null": (b"null", UNNAMED, UNNAMED),
    "method null": (b'{"method":null,"args":[]}', UNNAMED, UNNAMED),
    "a lone surrogate": (rb'{"method":"a\ud800b"}', "unknown method: a.b", "unknown method: a.b"),
    "not UTF-8": (b'{"method":"a\xffb"}', "unknown method: a.b", "unknown method: a.b"),
    "an array": (b'["CloseImage"]', BAD, BAD),
    "a number": (b"1", BAD, BAD),
    "a string": (b'"CloseImage"', BAD, BAD),
    "true": (b"true", BAD, BAD),
    "method a number": (b'{"method":1}', BAD, BAD),
    "method an array": (b'{"method":["CloseImage"]}', BAD, BAD),
    "args an object": (b'{"method":"CloseImage","args":{}}', BAD, BAD),
    "args a string": (b'{"method":"CloseImage","args":"x"}', BAD, BAD),
    "args false": (b'{"method":"CloseImage","args":false}', BAD, BAD),
    "two objects": (CALL + CALL, BAD, BAD),
    "something after it": (CALL + b"x", BAD, BAD),
    "a comma after it": (b'{"method":"CloseImage",}', BAD, BAD),
    "cut": (CALL[:-1], BAD, BAD),
    "cut in a string": (CALL[:-3], BAD, BAD),
    "one byte": (b"\0", BAD, BAD),
    "white space alone": (b"  ", BAD, BAD),
    "a byte order mark": (b"\xef\xbb\xbf" + CALL, BAD, BAD),
    "UTF-16": (CALL.decode().encode("utf-16"), BAD, BAD),
    "NaN": (b'{"method":"CloseImage","args":[NaN]}', BAD, BAD),
    "Infinity": (b'{"method":"CloseImage","args":[-Infinity]}', BAD, BAD),
    "1e400": (b'{"method":"CloseImage","args":[1e400]}', BAD, BAD),
    "a number of 5000 digits": (b'{"method":"CloseImage","args":[' + b"9" * 5000 + b"]}", BAD, BAD),
    "a control character": (b'{"method":"Close\nImage"}', BAD, BAD),
    "single quotes": (b"{'method':'CloseImage'}", BAD, BAD),
    "HTTP": (b"GET /manifest HTTP/1.1\r\nHost: localhost\r\n\r\n", BAD, BAD),
    "nested 15,000 times": (b'{"args":' + b"[" * 15_000 + b"]" * 15_000 + b"}", BAD, BAD),
    "nested without an end": (b"[" * MAX_PACKET, BAD, BAD),
    "objects without an end": (b'{"a":' * 6000, BAD, BAD),
    # Over 32 KiB: skopeo sees the beginning alone, which may be whole.
    "a byte more than 32 KiB": (CALL.ljust(MAX_PACKET + 1), BAD, READ),
    "60,000 bytes": (b'{"method":"' + b"a" * 60_000 + b'"}', BAD, BAD),
    "200,000 bytes": (CALL.ljust(200_000), BAD, READ),
    # What is not worth imitating.
    "member names in capitals": (b'{"METHOD":"CloseImage"}', UNNAMED, READ),
    "a method twice": (b'{"method":"x","method":"CloseImage"}', BAD, READ),
    "nested 5,000 times": (
        b'{"args":' + b"[" * 5000 + b"]" * 5000 + b',"method":"CloseImage"}',
        BAD,
        "invalid imageid .*|expecting .*",
    ),
}


@pytest.mark.parametrize("is_initialized", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_packets_of_any_kind_get_one_reply(
    program: Program, converse: Converse, *, is_initialized: bool
) -> None:
    client = converse(program=program)
    if is_initialized:
        client.initialize()
    failures = []
    for name, (packet, ours, skopeo) in PACKETS.items():
        words = skopeo if program.is_old else ours
        if not is_initialized and not words.startswith(("unknown", "invalid request: ")):
            words = BEFORE_INITIALIZE
        reply = client.request(packet)
        if reply.success or not re.fullmatch(words, reply.words):
            failures.append(f"{name}: expected {words}, got {reply}")
    assert not failures, "\n".join(failures)
    if not is_initialized:
        client.initialize()
    assert client.failure("GetManifest", 5).words == "no image 5"
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_descriptors_in_requests_are_dropped(
    program: Program, sample: Sample, converse: Converse
) -> None:
    client = converse(program=program)
    read_end, write_end = os.pipe()
    for packet in (encode("Initialize"), encode("OpenImage", sample.name), b"junk"):
        socket.send_fds(client.socket, [packet], [write_end])
        client.receive()
    os.close(write_end)
    assert not read_to_end(read_end), "nobody else has the write end"
    assert client.finalize() == 0


# How a conversation may end, by what the client does. Each must end with status 0, and without a
# reply.
ENDINGS: dict[str, Callable[[Client], None]] = {
    "Shutdown": lambda client: client.ask("Shutdown"),
    "Shutdown with arguments": lambda client: client.ask("Shutdown", 1, "x"),
    "an empty packet": lambda client: client.send(b""),
    "end of file": lambda client: client.socket.shutdown(1),
}


@pytest.mark.parametrize("is_initialized", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_endings_have_no_reply_and_status_0(
    program: Program, ending: str, converse: Converse, *, is_initialized: bool
) -> None:
    client = converse(program=program)
    if is_initialized:
        client.initialize()
    ENDINGS[ending](client)
    with pytest.raises(Ended):
        client.receive()
    assert client.child.wait() == 0
    assert not client.child.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_method_delivers(program: Program, sample: Sample, converse: Converse) -> None:
    client = converse(program=program)
    client.initialize()
    image = client.open(sample.name)
    assert image == 1
    assert client.open(sample.name) == 2, "ids are never reused"
    manifest, content, finished = client.content("GetManifest", image)
    assert manifest.value == sample.descriptor["digest"]
    assert content == sample.manifest
    assert finished == (True, None, 0, "", "", ())
    document = json.loads(sample.manifest)
    config = sample.layout.read(document["config"]["digest"])
    full, content, finished = client.content("GetFullConfig", image)
    assert full.value is None
    assert finished.success
    assert json.loads(content)["rootfs"] == json.loads(config)["rootfs"]
    assert program.is_old or content == config, "byte for byte"
    inner, content, finished = client.content("GetConfig", image)
    assert inner.value is None
    assert content == b"{}"
    assert finished.success
    for descriptor, layer in zip(document["layers"], sample.layers, strict=True):
        blob, content, finished = client.content(
            "GetBlob", image, descriptor["digest"], descriptor["size"]
        )
        assert blob.value == descriptor["size"]
        assert content == layer
        assert finished.success
    assert client.blob(image, document["config"]) == config
    assert client.get("CloseImage", image).value is None
    assert client.failure("CloseImage", image).words == f"no image {image}"
    assert client.blob(2, document["config"]) == config
    assert client.finalize() == 0


def test_newer_methods_deliver(sample: Sample, converse: Converse) -> None:
    client = converse()
    client.initialize()
    image = client.get("OpenImageOptional", sample.name).value
    assert image == 1
    layers = [
        {"digest": each["digest"], "size": each["size"], "media_type": OCI_LAYER}
        for each in sample.layout.layers(sample.descriptor)
    ]
    assert client.get("GetLayerInfo", image).value == layers
    piped, content, finished = client.content("GetLayerInfoPiped", image)
    assert piped.value is None
    assert json.loads(content) == layers
    assert finished.success
    config = sample.layout.document(sample.descriptor)["config"]
    assert config["mediaType"] == OCI_CONFIG
    for each in (*layers, config):
        size, content, trouble = client.raw_blob(image, each["digest"])
        assert size == each["size"]
        assert content == sample.layout.read(each["digest"])
        assert trouble is None, "nothing in the second pipe: all was sent"
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_inner_config_is_a_member(program: Program, sample: Sample, converse: Converse) -> None:
    layout = sample.layout
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", "ü\u2028<>&"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    manifest = layout.document(sample.descriptor)
    manifest["config"] = layout.add(json.dumps(config).encode(), OCI_CONFIG)
    layout.save(layout.add(json.dumps(manifest).encode(), manifest["mediaType"]))
    client = converse(program=program)
    client.initialize()
    image = client.open(sample.name)
    assert json.loads(client.document("GetConfig", image)) == config["config"]
    assert json.loads(client.document("GetFullConfig", image))["config"] == config["config"]
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_requests_are_answered_in_their_order(
    program: Program, sample: Sample, converse: Converse
) -> None:
    client = converse(program=program)
    client.initialize()
    image = client.open(sample.name)
    for n in range(50):
        client.ask("GetManifest", image if n % 2 else 1000 + n)
    for n in range(50):
        reply = client.answer("GetManifest")
        if n % 2:
            client.ask("FinishPipe", reply.pipe)
            assert read_to_end(reply.fds[0]) == sample.manifest
        else:
            assert reply.words == f"no image {1000 + n}"
    assert all(client.answer("FinishPipe").success for n in range(25))
    assert client.finalize() == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_300_images_are_open_at_once(program: Program, sample: Sample, converse: Converse) -> None:
    client = converse(program=program)
    client.initialize()
    images = [client.open(sample.name) for _ in range(300)]
    assert images == list(range(1, 301))
    descriptor = sample.layout.layers(sample.descriptor)[1]
    for image in (images[0], images[150], images[-1]):
        assert client.blob(image, descriptor) == sample.layers[1]
        assert client.document("GetManifest", image) == sample.manifest
    for image in images[:-1]:
        client.get("CloseImage", image)
    assert client.blob(images[-1], descriptor) == sample.layers[1]
    assert client.open(sample.name) == 301
    assert client.finalize() == 0


@pytest.mark.slow
def test_layer_info_that_does_not_fit_names_the_other_method(
    sample: Sample, converse: Converse
) -> None:
    """Clients receive into 32 KiB; skopeo itself sends more than that, or ends."""
    layout = sample.layout
    descriptor = layout.image(*(str(n).encode() for n in range(250)))
    layout.save(descriptor)
    client = converse()
    client.initialize()
    image = client.open(sample.name)
    reply = client.failure("GetLayerInfo", image)
    assert reply.code == "other"
    assert "GetLayerInfoPiped" in reply.words
    layers = json.loads(client.document("GetLayerInfoPiped", image))
    assert [each["digest"] for each in layers] == [
        each["digest"] for each in layout.layers(descriptor)
    ]
    assert client.blob(image, layers[0]) == b"0"
    assert client.finalize() == 0


@pytest.mark.slow
def test_long_words_fit_into_a_packet(converse: Converse) -> None:
    client = converse()
    client.initialize()
    for text in ("x", "ü", "\U0001f4a9", '"', "\\"):
        reference = "dir:/" + text * (30_000 // len(json.dumps(text)[1:-1]))
        assert client.failure("OpenImage", reference).words
        assert client.failure("OpenImage", reference.removeprefix("dir:/")).words
    long = {"method": "x" * 30_000}
    assert client.request(json.dumps(long).encode()).words.startswith("unknown method: xxx")
    assert client.finalize() == 0


@pytest.mark.slow
def test_finishing_without_a_pipe_is_an_error(converse: Converse) -> None:
    """It ends skopeo with a trace of its stack."""
    client = converse()
    client.initialize()
    assert "expecting (pipeid)" in client.failure("FinishPipe").words
    assert client.finalize() == 0

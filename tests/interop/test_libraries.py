"""HTTP libraries that parents are written with: what imgproxy-protocol(7) says of them.

Whether a body that stays short is noticed is the library's part, and the manual names those that
do not notice it; a library that changes is found here.
"""

from __future__ import annotations

import http.client
import io
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.filled import MIB, noise
from support.images import Layout
from support.parent import LIMIT
from support.servers import skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Listen, Sample, Serve

LARGE = noise(5 * MIB // 2)  # verified while it is streamed
STARTING = 60.0  # a compiler, or a virtual machine, on a machine that is busy


@pytest.fixture
def spoilt(listen: Listen, tmp_path: Path) -> str:
    """Return the URL of a blob whose body stays short, on a TCP listener."""
    layout = Layout(tmp_path / "image")
    descriptor = layout.save_image(LARGE)
    digest = layout.layers(descriptor)[0]["digest"]
    layout.file(digest).write_bytes(LARGE[:-1] + bytes([LARGE[-1] ^ 1]))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listen(f"oci:{layout.path}", listener=listener)
    return f"http://localhost:{port}/blobs/{digest}"


NODE = "const http = require('http'), fs = require('fs'), {pipeline} = require('stream');"
JAVA = """
import java.net.*;
import java.net.http.*;
class Get {{
    public static void main(String[] words) throws Exception {{ {0} }}
}}
"""
GO = """package main
import ("fmt"; "io"; "net/http"; "os")
func main() {
    response, err := http.Get(os.Args[1])
    if err != nil { panic(err) }
    _, err = io.Copy(io.Discard, response.Body)
    fmt.Println(err)
}
"""

# The file with the program, if one is needed, and the command; URL and OUT stand for what they say.
NOTICED: dict[str, tuple[str, str, list[str]]] = {
    "curl": ("", "", ["curl", "-sS", "URL", "-o", "OUT"]),
    "curl with --fail-early": (
        "",
        "",
        ["curl", "-sS", "--fail-early", "URL", "-o", "OUT", "URL/../../manifest", "-o", "OUT"],
    ),
    "wget": ("", "", ["wget", "-q", "-t1", "URL", "-O", "OUT"]),
    "Node.js, pipeline": (
        "",
        "",
        [
            "node",
            "-e",
            NODE + "http.get(process.argv[1], r => pipeline(r, fs.createWriteStream('/dev/null'),"
            "e => process.exit(e && e.code == 'ECONNRESET' ? 18 : 0)))",
            "URL",
        ],
    ),
    "Node.js, fetch": (
        "",
        "",
        ["node", "-e", "fetch(process.argv[1]).then(r => r.arrayBuffer())", "URL"],
    ),
    "Perl, HTTP::Tiny": (
        "",
        "",
        ["perl", "-MHTTP::Tiny", "-e", "exit HTTP::Tiny->new->get(@ARGV)->{status} == 599", "URL"],
    ),
    "Java, HttpClient": (
        "Get.java",
        JAVA.format(
            "HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build().send("
            "HttpRequest.newBuilder(URI.create(words[0])).build(),"
            " HttpResponse.BodyHandlers.ofByteArray());"
        ),
        ["java", "FILE", "URL"],
    ),
}
NOT_NOTICED: dict[str, tuple[str, str, list[str]]] = {
    "curl with several URLs": (
        "",
        "",
        ["curl", "-sS", "URL", "-o", "OUT", "URL/../../manifest", "-o", "OUT"],
    ),
    "Node.js, pipe": (
        "",
        "",
        [
            "node",
            "-e",
            NODE + "http.get(process.argv[1], r => r.pipe(fs.createWriteStream('/dev/null')))",
            "URL",
        ],
    ),
    "Java, HttpURLConnection": (
        "Get.java",
        JAVA.format("new URL(words[0]).openConnection().getInputStream().readAllBytes();"),
        ["java", "FILE", "URL"],
    ),
}


def status_of(command: list[str], **values: str) -> int:
    """Return how a command ends in which some words stand for values."""
    if not shutil.which(command[0]):
        skip(f"{command[0]} is not installed")
    for name, value in values.items():
        command = [word.replace(name, value) if word.startswith(name) else word for word in command]
    result = subprocess.run(command, capture_output=True, timeout=STARTING, check=False)
    return result.returncode


@pytest.mark.slow
@pytest.mark.parametrize("library", [*NOTICED, *NOT_NOTICED])
def test_a_short_body_is_noticed_as_the_manual_says(
    library: str, spoilt: str, tmp_path: Path
) -> None:
    name, program, command = {**NOTICED, **NOT_NOTICED}[library]
    file = tmp_path / (name or "none")
    file.write_text(program)
    status = status_of(command, URL=spoilt, OUT=str(tmp_path / "out"), FILE=str(file))
    assert (status != 0) == (library in NOTICED)


@pytest.mark.slow
def test_go_notices_a_short_body(spoilt: str, tmp_path: Path) -> None:
    if not shutil.which("go"):
        skip("go is not installed")
    file = tmp_path / "get.go"
    file.write_text(GO)
    result = subprocess.run(
        ["go", "run", str(file), spoilt], capture_output=True, timeout=STARTING, check=True
    )
    assert result.stdout == b"unexpected EOF\n"


READINGS: dict[str, tuple[Callable[[http.client.HTTPResponse], object], bool]] = {
    "read()": (lambda reply: reply.read(), True),
    "read(N)": (lambda reply: reply.read(len(LARGE)), False),
    "readinto()": (lambda reply: reply.readinto(bytearray(len(LARGE))), False),
    "copyfileobj()": (lambda reply: shutil.copyfileobj(reply, io.BytesIO()), False),
}


@pytest.mark.parametrize("how", READINGS)
def test_http_client_notices_a_short_body_if_it_is_read_at_once(how: str, spoilt: str) -> None:
    read, notices = READINGS[how]
    host, _, path = spoilt.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=LIMIT)
    connection.request("GET", f"/{path}")
    reply = connection.getresponse()
    try:
        read(reply)
    except http.client.IncompleteRead:
        assert notices
    else:
        assert not notices
    connection.close()


@pytest.mark.parametrize("option", ["--http2-prior-knowledge", "--http1.0", "--http1.1"])
def test_curl_gets_what_it_asks_for_but_over_http_2(
    option: str, sample: Sample, listen: Listen
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/manifest"
    listen(sample.name, listener=listener)
    if not shutil.which("curl"):
        skip("curl is not installed")
    result = subprocess.run(
        ["curl", "-sSf", "-m", str(LIMIT), option, url, url], capture_output=True, check=False
    )
    assert (result.returncode == 0) == option.startswith("--http1")
    assert result.stdout == (2 * sample.manifest if option.startswith("--http1") else b"")


def test_curl_is_refused_a_tunnel_to_another_host(sample: Sample, listen: Listen) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
    child = listen(sample.name, listener=listener)
    command = ["curl", "-sS", "-m", str(LIMIT), "-p", "-x", proxy, "http://localhost/manifest"]
    assert status_of(command) != 0
    assert "CONNECT localhost:80: 501 UNSUPPORTED" in child.stderr


def test_an_http_client_that_loses_a_kept_connection_is_told(sample: Sample, serve: Serve) -> None:
    """The reply to `POST /quit` says so, so that no library sends one more request on it."""
    child = serve(sample.name)
    connection = http.client.HTTPConnection("image")
    connection.sock, connection.auto_open = child.client.socket, 0
    for _ in range(3):
        connection.request("GET", "/manifest")
        assert connection.getresponse().read() == sample.manifest
    connection.request("POST", "/quit")
    reply = connection.getresponse()
    assert (reply.status, reply.read(), reply.will_close) == (200, b"", True)
    assert child.wait() == 0

"""`imgproxy registry`, started on a listener of the test's, and asked from outside."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support import parent
from support.images import Layout, digest_of, named, on
from support.parent import COMMAND, INSECURE, Child, Client, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from support.images import Json

REGISTRY = "registry.example"
NAME = f"{REGISTRY}/team/app"
ABSENT = digest_of(b"nobody has this")


class Door:
    """A registry that runs, on a port of 127.0.0.1."""

    def __init__(self, child: Child, port: int) -> None:
        self.child = child
        self.port = port
        self.address = f"127.0.0.1:{port}"

    def connect(self) -> Client:
        return self.child.connect(("127.0.0.1", self.port))

    def ask(self, target: str, *fields: str, method: str = "GET", body: bytes = b"") -> Reply:
        """Ask on a connection of its own; `fields` are whole lines."""
        client = self.connect()
        try:
            return client.request(method, target, *fields, body=body)
        finally:
            client.close()
            self.child.clients.remove(client)

    def status(self, target: str, *fields: str, method: str = "GET") -> int:
        return self.ask(target, *fields, method=method).status


def start(
    *options: str,
    policy: str | None = INSECURE,
    env: Mapping[str, str] | None = None,
    around: Sequence[str] = (),
    port: int = 0,
) -> Door:
    """Start the program; whoever connects before it is ready waits in the listener's queue."""
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        fd = listener.fileno()
        chosen = [] if policy is None else [policy]
        arguments = [*around, *COMMAND, "registry", "--sockfd", str(fd), *chosen, *options]
        return Door(Child(arguments, pass_fds=[fd], env=env), listener.getsockname()[1])


@contextmanager
def running(
    *options: str,
    policy: str | None = INSECURE,
    env: Mapping[str, str] | None = None,
    around: Sequence[str] = (),
    port: int = 0,
) -> Iterator[Door]:
    """Run a registry for the block; what it leaves on standard error has no traceback."""
    door = start(*options, policy=policy, env=env, around=around, port=port)
    with parent.closing(door.child):
        yield door


def path(name: str, kind: str, last: object, query: str = "") -> str:
    """Return the path of a request under `/v2/`."""
    return f"/v2/{name}/{kind}/{last}{query and '?'}{query}"


def manifest(name: str, reference: object, query: str = "") -> str:
    return path(name, "manifests", reference, query)


def blob(name: str, digest: str, query: str = "") -> str:
    return path(name, "blobs", digest, query)


class Stock:
    """A layout with every kind of content that a registry gives, under `NAME` and others."""

    layers = (b"first layer" * 100, b"second layer" * 200)

    # In the order of their code points.
    tags = ("1", "10", "2", "Beta", "_x", "docker", "index")

    def __init__(self, directory: Path) -> None:
        layout = self.layout = Layout(directory)
        self.app = layout.image(*self.layers)
        self.docker = layout.image(b"a layer of docker's", docker=True)
        self.platforms = [
            on(layout.image(each.encode(), platform=each), each)
            for each in ("linux/amd64", "linux/arm64")
        ]
        self.index = layout.index(*self.platforms)
        self.other = layout.image(b"a layer of another repository")
        self.hub = layout.image(b"a layer of docker.io's")
        self.referrers = [self._referrer(kind) for kind in ("text/sbom", "text/signature")]
        tagged = {
            **dict.fromkeys(self.tags, self.app),
            "docker": self.docker,
            "index": self.index,
        }
        layout.save(
            *(named(each, f"{NAME}:{tag}") for tag, each in tagged.items()),
            named(self.other, f"{REGISTRY}/other:1"),
            named(self.hub, "busybox:1"),
            *self.referrers,
        )

    def _referrer(self, artifact_type: str) -> Json:
        return self.layout.image(
            artifact_type.encode(),
            artifactType=artifact_type,
            subject={key: self.app[key] for key in ("mediaType", "digest", "size")},
            annotations={"kind": artifact_type},
        )

    def read(self, descriptor: Json) -> bytes:
        return self.layout.read(descriptor["digest"])

    @property
    def layer(self) -> Json:
        """The first layer of the first image."""
        return self.layout.layers(self.app)[0]

    @property
    def documents(self) -> dict[str, Json]:
        """The documents under `NAME` by what leads to them: tags, and digests."""
        found = [self.app, self.docker, self.index, *self.platforms, *self.referrers]
        tags = {"1": self.app, "docker": self.docker, "index": self.index}
        return {**tags, **{each["digest"]: each for each in found}}


def targets(stock: Stock) -> list[str]:
    """Return targets of every route, what is there and what is not."""
    return [
        "/v2/",
        "/healthz",
        "/nothing",
        "/v2/_catalog",
        *(manifest(NAME, each) for each in (*stock.documents, "absent", ABSENT, ".bad")),
        *(blob(NAME, each) for each in (stock.layer["digest"], ABSENT, "sha256:bad")),
        *(path(each, "tags", "list") for each in (NAME, f"{REGISTRY}/nothing")),
        path(NAME, "tags", "list", "n=2"),
        path(NAME, "tags", "list", "n=-1"),
        *(path(NAME, "referrers", each) for each in (stock.app["digest"], ABSENT, "bad")),
    ]


def assert_is_refused(reply: Reply, status: int, code: str) -> None:
    """Assert that a reply is an error as the specification has it."""
    assert (reply.status, reply.code) == (status, code), reply
    assert reply.get("Docker-Distribution-Api-Version") in {None, "registry/2.0"}
    assert reply.get("WWW-Authenticate") is None, "a client would begin to log in"

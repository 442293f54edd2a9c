"""Real servers on loopback, for the tests and the bench: a registry, nginx, a token service.

Each is a context manager that enters when the server answers and leaves when it is gone. They
listen on ports that were free a moment ago, keep everything in the directory they are given, and
need no pytest to run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import select
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from support.images import Json, Layout

# A server that has not answered by then never will.
STARTING = 10.0

# distribution's registry takes a token for so many seconds after its end.
LEEWAY = 60

# close() with this sends RST instead of FIN.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def require(program: str) -> str:
    """Return the program's path; skip the test if the program is not installed.

    With IMGPROXY_TEST_NO_SKIP=1 the test fails instead: where everything is installed, no test may
    be skipped silently.
    """
    return shutil.which(program) or skip(f"{program} is not installed")


def skip(message: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be skipped; outside of pytest, raise."""
    if "PYTEST_CURRENT_TEST" not in os.environ:
        raise FileNotFoundError(message)
    import pytest

    if os.environ.get("IMGPROXY_TEST_NO_SKIP") == "1":
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when somebody listens on the port, in the network that the process is in.

    Raise with the log if nobody ever does.
    """
    # proc(5): the local address, the remote one, and 0A for a socket that listens
    listening = re.compile(f":{port:04X} [0-9A-F]+:0000 0A ")
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and process.poll() is None:
        tables = (f"/proc/{process.pid}/net/{name}" for name in ("tcp", "tcp6"))
        if any(listening.search(Path(table).read_text()) for table in tables):
            return
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} does not answer on {port}: {log.read_text()}")


@contextmanager
def running(arguments: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """Run a server, from when its port answers to the end of the block."""
    with (
        log.open("ab") as output,
        subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            _wait_for(port, process, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority that is not trusted by default, and its certificate for this host."""

    authority: Path
    certificate: Path
    key: Path

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


def certificates(directory: Path, *names: str) -> Certificates:
    """Write an authority, and a certificate for the names (default: this host's) and its key."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert(
        *(names or ("localhost", "127.0.0.1")), key_type=trustme.KeyType.RSA
    )
    directory.mkdir(parents=True, exist_ok=True)
    files = Certificates(
        directory / "authority.pem", directory / "certificate.pem", directory / "key.pem"
    )
    authority.cert_pem.write_to_path(str(files.authority))
    files.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(files.key))
    return files


@dataclass
class TokenService:
    """A token service for a registry, and the requests that it received.

    Without `users` every client may pull; with some, only these and holders of an identity token.
    Tokens expire after `lifetime` seconds, though replies claim `said_lifetime`. `answer` replaces
    the service's own answers until it returns False.
    """

    realm: str
    certificates: Certificates
    service: str = "registry.test"
    issuer: str = "tokens.test"
    users: dict[str, str] = field(default_factory=dict)
    identity_tokens: set[str] = field(default_factory=set)
    lifetime: float = 300
    said_lifetime: int = 300
    granted: str = "pull"
    scopes: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    forms: list[dict[str, list[str]]] = field(default_factory=list)
    answer: Callable[[Answering], bool] = lambda _: False

    def issue(self, scopes: Sequence[str]) -> str:
        """Sign a token for the permitted scopes: RS256, with the certificate inside."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            actions_granted = [action for action in actions.split(",") if action == self.granted]
            access.append({"type": kind, "name": name, "actions": actions_granted})
        chain = _der_certificates(self.certificates.certificate.read_bytes())
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": chain}
        claims = {
            "iss": self.issuer,
            "sub": "",
            "aud": self.service,
            "exp": int(time.time() + self.lifetime) - LEEWAY,
            "nbf": now - 2 * LEEWAY,
            "iat": now,
            "jti": uuid.uuid4().hex,
            "access": access,
        }
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = _sign(self.certificates.key.read_bytes(), signed)
        return b".".join((signed, _base64url(signature))).decode()

    def get(self, request: Answering) -> None:
        """Answer clients with user and password, and anonymous ones."""
        query = parse_qs(urlsplit(request.path).query)
        authorization = request.headers["Authorization"]
        self.authorizations.append(authorization)
        self.scopes += query["scope"]
        known = [basic(user, password) for user, password in self.users.items()]
        self._give(request, query["scope"], allowed=not known or authorization in known)

    def post(self, request: Answering) -> None:
        """Answer clients with an identity token: distribution's "OAuth2 Token Authentication"."""
        form = parse_qs(request.rfile.read(int(request.headers["Content-Length"])).decode())
        self.forms.append(form)
        (refresh_token,) = form["refresh_token"]
        scopes = form["scope"][0].split(" ")
        self._give(request, scopes, allowed=refresh_token in self.identity_tokens)

    def _give(self, request: Answering, scopes: list[str], *, allowed: bool) -> None:
        if self.answer(request):
            return
        if not allowed:
            refusal = {"errors": [{"code": "UNAUTHORIZED", "message": "nobody we know"}]}
            request.answer(401, json.dumps(refusal).encode(), Content_Type="application/json")
            return
        key = "access_token" if request.command == "POST" else "token"
        token = {key: self.issue(scopes), "expires_in": self.said_lifetime}
        request.answer(200, json.dumps(token).encode(), Content_Type="application/json")


def basic(user: str, password: str) -> str:
    """Return the value of `Authorization` in the Basic scheme: RFC 7617."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _der_certificates(pems: bytes) -> list[str]:
    """Return the certificates of a PEM file in the form of `x5c`: base64 of DER, leaf first."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return [
        base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        for certificate in x509.load_pem_x509_certificates(pems)
    ]


def _sign(key_pem: bytes, content: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(key_pem, None)
    assert isinstance(key, RSAPrivateKey)
    return key.sign(content, PKCS1v15(), hashes.SHA256())


@contextmanager
def in_thread(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve in a thread of this process until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Answering(BaseHTTPRequestHandler):
    """A handler that writes nothing to standard error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  (its signature)
        pass

    def answer(self, status: int, content: bytes, **fields: str) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def http_server(
    get: Callable[[Answering], None],
    post: Callable[[Answering], None] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """Run an HTTP server whose replies are sent by the functions; yield its address."""

    class Handler(Answering):
        def do_GET(self) -> None:
            get(self)

        def do_POST(self) -> None:
            (post or get)(self)

        do_HEAD = do_CONNECT = do_GET  # noqa: N815  (its names)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with in_thread(server):
        yield f"127.0.0.1:{server.server_port}"


@contextmanager
def token_service(directory: Path) -> Iterator[TokenService]:
    """Run a token service that issues tokens for pulls to anonymous clients."""
    service = TokenService("", certificates(directory))
    with http_server(service.get, service.post) as address:
        service.realm = f"http://{address}/token"
        yield service


# The user of a registry with `READERS`; the password cannot be derived from the file below.
READER = "reader"
PASSWORD = "open-sesame-77"
READERS = f"{READER}:$2y$04$abcdefghijklmnopqrstuuhsaF7HPU29Q1kRg4bhnrT9MvUkWCDPO\n"


@contextmanager
def docker_registry(
    directory: Path,
    *,
    tls: Certificates | None = None,
    auth: TokenService | Literal["htpasswd"] | None = None,
    origin: str = "",
    port: int | None = None,
    around: Sequence[str] = (),
) -> Iterator[str]:
    """Run distribution's registry over the directory; yield its address.

    Several may run over one directory: one without `auth` fills it, others require credentials.
    With an `origin` it is a pull-through cache of that. `around` is what its command line begins
    with; it may lead into another network, where all addresses are listened on.
    """
    program = require("docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    http: dict[str, Any] = {"addr": f"{'' if around else '127.0.0.1'}:{port}", "secret": "shared"}
    if tls:
        http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    document: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory)}},
        "http": http,
    }
    if origin:
        document["proxy"] = {"remoteurl": f"http://{origin}"}
    if auth == "htpasswd":
        (directory / "htpasswd").write_text(READERS)
        document["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    elif auth:
        document["auth"] = {
            "token": {
                "realm": auth.realm,
                "service": auth.service,
                "issuer": auth.issuer,
                "rootcertbundle": str(auth.certificates.authority),
            }
        }
    config = directory / f"registry-{port}.yaml"  # JSON is YAML
    config.write_text(json.dumps(document))
    with running([*around, program, "serve", str(config)], port, config.with_suffix(".log")):
        yield f"127.0.0.1:{port}"


def stored_blob(directory: Path, digest: str) -> Path:
    """Return the path of a blob or a manifest of the registry over this directory."""
    algorithm, hexadecimal = digest.split(":")
    root = directory / "docker/registry/v2/blobs"
    return root / algorithm / hexadecimal[:2] / hexadecimal / "data"


def skopeo_copy(source: str, destination: str, *options: str) -> None:
    """Copy an image with skopeo; show its output if it fails."""
    arguments = [require("skopeo"), "--insecure-policy", "copy", "--quiet", *options]
    if destination.startswith("docker://"):
        arguments.append("--dest-tls-verify=false")
    result = subprocess.run(
        [*arguments, source, destination], capture_output=True, text=True, timeout=60, check=False
    )
    if result.returncode:
        raise RuntimeError(f"skopeo copy {source} {destination}: {result.stderr}")


def put_manifest(
    address: str, repository: str, reference: str, content: bytes, media_type: str
) -> None:
    """Upload a manifest unchanged, in cases that skopeo does not support."""
    connection = HTTPConnection(address, timeout=10)
    try:
        path = f"/v2/{repository}/manifests/{reference}"
        connection.request("PUT", path, content, {"Content-Type": media_type})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 201:
        raise RuntimeError(f"PUT {path}: {response.status} {answer!r}")


def put_blob(address: str, repository: str, content: bytes) -> None:
    """Upload a blob, which takes two requests."""
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", f"/v2/{repository}/blobs/uploads/")
        begun = connection.getresponse()
        begun.read()
        target = urlsplit(begun.headers["Location"])
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        path = f"{target.path}?{target.query}&digest={digest}"
        connection.request("PUT", path, content, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 201:
        raise RuntimeError(f"PUT {path}: {response.status} {answer!r}")


def put_image(address: str, name: str, layout: Layout, descriptor: Json) -> None:
    """Upload an image of a layout unchanged; `name` is its repository and its tag."""
    repository, _, tag = name.rpartition(":")
    document = layout.document(descriptor)
    for each in (document["config"], *document["layers"]):
        put_blob(address, repository, layout.read(each["digest"]))
    content = layout.read(descriptor["digest"])
    put_manifest(address, repository, tag, content, descriptor["mediaType"])


@contextmanager
def nginx(
    directory: Path,
    config: str,
    *,
    tls: Certificates | None = None,
    port: int | None = None,
    around: str = "",
) -> Iterator[str]:
    """Run nginx with one server, whose directives are `config`; yield its address.

    `around` are directives outside of the server. Requests are logged in `access.log`, with their
    `Authorization`.
    """
    program = require("nginx")
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    secure = f"ssl_certificate {tls.certificate}; ssl_certificate_key {tls.key};" if tls else ""
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    (directory / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {directory}/pid; error_log stderr;
        events {{ worker_connections 256; }}
        http {{
            {temporary}
            log_format requests '$request $status $http_authorization';
            access_log {directory}/access.log requests;
            sendfile on;
            {around}
            server {{ listen 127.0.0.1:{port}{" ssl" if tls else ""}; {secure} {config} }}
        }}
    """)
    arguments = [program, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]
    with running(arguments, port, directory / "log"):
        yield f"127.0.0.1:{port}"


def layout_as_registry(layout: Path, manifest_type: str) -> str:
    """Return nginx directives that serve an image layout's blobs as a registry of any name."""
    return f"""
        location = /v2/ {{ return 200 '{{}}'; }}
        location ~ ^/v2/.+/manifests/sha256:([0-9a-f]+)$ {{
            types {{}} default_type {manifest_type}; alias {layout}/blobs/sha256/$1;
        }}
        location ~ ^/v2/.+/blobs/sha256:([0-9a-f]+)$ {{
            types {{}} default_type application/octet-stream; alias {layout}/blobs/sha256/$1;
        }}
    """


Fate = Literal["end", "reset", "stall"]


class _Relay(socketserver.ThreadingTCPServer):
    """Forward bytes both ways, up to `budget` bytes from the target; then apply the fault."""

    daemon_threads = True

    def __init__(self, target: str, budget: int, fate: Fate) -> None:
        super().__init__(("127.0.0.1", 0), _RelayedConnection)
        host, port = target.split(":")
        self.target = (host, int(port))
        self.budget = budget
        self.fate = fate
        self.ended = threading.Event()

    def verify_request(self, *_: object) -> bool:
        """After the fault, accept no further connection."""
        return self.budget > 0


class _RelayedConnection(socketserver.BaseRequestHandler):
    server: _Relay
    request: socket.socket

    def handle(self) -> None:
        with (
            socket.create_connection(self.server.target, timeout=10) as upstream,
            suppress(OSError),
        ):
            while self.server.budget > 0:
                readable, _, _ = select.select([self.request, upstream], [], [], STARTING)
                if not all(self._pass_on(source, upstream) for source in readable):
                    return
            self._meet_fate()

    def _pass_on(self, source: socket.socket, upstream: socket.socket) -> bool:
        """Forward received bytes; return False at an end of file."""
        if source is self.request:
            data = source.recv(65536)
            upstream.sendall(data)
        else:
            data = source.recv(min(65536, max(1, self.server.budget)))
            self.request.sendall(data)
            self.server.budget -= len(data)
        return bool(data)

    def _meet_fate(self) -> None:
        if self.server.fate == "stall":
            self.server.ended.wait()
        elif self.server.fate == "reset":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.request.close()


@contextmanager
def relay(target: str, *, after: int, fate: Fate) -> Iterator[str]:
    """Forward to a server; after so many of its bytes, end, reset or stall; yield the address."""
    server = _Relay(target, after, fate)
    with in_thread(server):
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.ended.set()


@contextmanager
def silent_server() -> Iterator[socket.socket]:
    """Listen on loopback without answers; connections can be accepted by the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def address_of(server: socket.socket) -> str:
    host, port = server.getsockname()
    return f"{host}:{port}"

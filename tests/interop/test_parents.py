"""The parents in demo/, which people copy: each does its job, and tells what it could not do.

They are built by the lines of demo/README.md, and the same is expected of all of them: the same
words and the same exit status, whatever language they are written in.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import pytest
from support.effort import SLOW
from support.filled import MIB, noise
from support.images import Layout, digest_of
from support.networks import Cut, line_to
from support.parent import COMMAND, INSECURE, LIMIT, ROOT, environment, eventually
from support.servers import free_port, skip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.filled import Registry

DEMO = ROOT / "demo"
BUILT = ROOT / "build/demo"
BUILDING = 600.0
# The user's own, as compilers have their settings and caches there. Git, which Go asks for the
# version, does not answer where the checkout is somebody else's.
BUILDER = {**os.environ, "GOFLAGS": "-buildvcs=false"}

LARGE = noise(5 * MIB // 2)  # verified while it is streamed
SMALL = b"a small layer"
PLAIN = "--tls-verify=false"

NO_CRATES = "cargo cannot fetch the crates"
WORKERS = 4

# sysexits.h: worth another try
TEMPFAIL = 75

# What each cannot do without.
NEEDS = {
    "Python": [],
    "shell": ["sh", "jq"],
    "Node.js": ["node"],
    "Go": ["go"],
    "Rust": ["cargo"],
    "C": ["cc"],
}
# Half a minute and more to build, where the compilers have nothing in their caches.
BUILT_SLOWLY = ("Go", "Rust")


@dataclass(frozen=True)
class Row:
    """What demo/README.md says of a parent: how it is built in its directory, and started there."""

    build: str
    start: str


def rows() -> dict[str, Row]:
    readme = (DEMO / "README.md").read_text()
    pattern = r"^\| (\S+) \| `[^`]+` \| (?:`([^`]+)`)? *\| `([^`]+)` \|"
    cells = re.findall(pattern, readme, re.MULTILINE)
    return {language: Row(build, start) for language, build, start in cells}


@cache
def built(language: str) -> list[str] | str:
    """Build a parent where nothing is tracked; give the command that starts it, or what lacks."""
    row = rows()[language]
    for program in NEEDS[language]:
        if not shutil.which(program):
            return f"{program} is not installed"
    start = row.start.split()
    if not row.build:
        return [str(DEMO / word) if "parent" in word else word for word in start]
    directory = BUILT / start[0].split("/")[0]
    shutil.copytree(DEMO / directory.name, directory, dirs_exist_ok=True)
    if language == "Rust" and (error := run("cargo fetch --locked", directory)):
        return f"{NO_CRATES}: {error[-300:]}"
    error = run(row.build, directory)
    assert not error, error
    return [str(BUILT / start[0])]


def run(line: str, directory: Path) -> str:
    """Run a compiler as the user has set it up; give what it says if it fails."""
    result = subprocess.run(
        ["sh", "-c", line],
        cwd=directory,
        env=BUILDER,
        capture_output=True,
        text=True,
        timeout=BUILDING,
        check=False,
    )
    return result.stderr.strip() or "no reason given" if result.returncode else ""


@dataclass
class Ended:
    """What a parent has printed, and how it ended."""

    status: int
    stdout: list[str]
    stderr: list[str]

    def failed(self, status: int, *patterns: str) -> None:
        """See that these are all the lines on its standard error."""
        assert len(self.stderr) == len(patterns), self
        for line, pattern in zip(self.stderr, patterns, strict=True):
            assert re.fullmatch(pattern, line), self
        assert self.status == status, self


@dataclass
class Parent:
    """A parent that can be started; `directory` is its own, `pid_file` names its last child."""

    language: str
    command: list[str]
    directory: Path

    @property
    def output(self) -> Path:
        return self.directory / "output"

    @property
    def imgproxy(self) -> Path:
        """A program that writes its process into `pid_file` and then is imgproxy."""
        return self.directory / "imgproxy"

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"

    def popen(self, *words: str, program: str = "", stderr: int = subprocess.PIPE) -> Popen:
        """Start it; `program` takes the place of imgproxy."""
        home = str(self.directory / "home")
        return subprocess.Popen(
            [*self.command, *words],
            env=environment(IMGPROXY=program or str(self.imgproxy), HOME=home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def __call__(self, *words: str, program: str = "") -> Ended:
        """Run it to its end."""
        return self.end(self.popen(*words, program=program))

    @staticmethod
    def end(process: Popen) -> Ended:
        with process:
            try:
                stdout, stderr = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Ended(process.returncode, stdout.splitlines(), (stderr or "").splitlines())


Popen = subprocess.Popen[str]


class Everyone(Protocol):
    """Try each parent there is, some at once; name those that fail.

    Those that are built slowly are there with IMGPROXY_TEST_SLOW=1 alone.
    """

    def __call__(self, check: Callable[[Parent], None]) -> None: ...


@pytest.fixture
def everyone(tmp_path: Path) -> Everyone:
    parents = []
    for language in NEEDS:
        if language in BUILT_SLOWLY and not SLOW:
            continue
        command = built(language)
        directory = tmp_path / language
        directory.mkdir()
        if not isinstance(command, str):
            parents.append(Parent(language, command, directory))
            # Here, and not in a thread: what is being written cannot be run, and a child that
            # another thread is just starting has all open files.
            run_it = f'echo $$ >{parents[-1].pid_file}\nexec {" ".join(COMMAND)} "$@"\n'
            write_program(parents[-1].imgproxy, f"#!/bin/sh\n{run_it}")

    def everyone(check: Callable[[Parent], None]) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            running = {parent.language: pool.submit(check, parent) for parent in parents}
        failures = []
        for language, future in running.items():
            failure = future.exception()
            if failure is not None:
                failure.add_note(f"by the parent in: {language}")
                failures.append(failure)
        if failures:
            raise BaseExceptionGroup(f"{len(failures)} of {len(parents)} parents", failures)

    return everyone


def write_program(file: Path, script: str) -> str:
    file.write_text(script)
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "image")
    layout.save_image(LARGE, SMALL)
    return layout


def described(layout: Layout, manifest: str) -> list[str]:
    """Return what a parent prints of an image, whose layers have all been fetched."""
    document = json.loads(layout.read(manifest))
    config = document["config"]
    return [
        f"manifest {manifest}",
        f"config {config['digest']} {config['size']} bytes",
        *(f"layer {layer['digest']} {layer['size']} bytes" for layer in document["layers"]),
    ]


def digest_in(layout: Layout) -> str:
    (descriptor,) = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    digest: str = descriptor["digest"]
    return digest


def spoil(layout: Layout, digest: str) -> None:
    content = bytearray(layout.read(digest))
    content[len(content) // 2] ^= 1
    layout.file(digest).write_bytes(content)


def short_body(content: bytes) -> str:
    return rf"failed: /blobs/{digest_of(content)}: short body, \d+ of {len(content)} bytes"


@pytest.mark.parametrize(
    "language",
    [pytest.param(each, marks=pytest.mark.slow if each in BUILT_SLOWLY else ()) for each in NEEDS],
)
def test_it_is_built_as_it_says(language: str) -> None:
    command = built(language)
    if isinstance(command, str) and command.startswith(NO_CRATES):
        pytest.skip(command)  # without that part of the network, the rest still counts
    if isinstance(command, str):
        skip(command)


@pytest.mark.slow
def test_what_the_readme_shows_is_so(tmp_path: Path) -> None:
    """Typed where the parents are built: the same tree, untracked."""
    if isinstance(built("Go"), str):
        skip(str(built("Go")))
    blocks = re.findall(
        r"^```\n(.*?)^```$", (DEMO / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    typed, shown = (block.replace("/tmp/", f"{tmp_path}/") for block in blocks)  # noqa: S108
    first, _, typed = typed.partition("\n")
    assert first == 'export IMGPROXY=$(dirname "$(demo/environment)")/imgproxy'
    script = f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n'
    imgproxy = write_program(tmp_path / "imgproxy", script)
    shutil.copy(DEMO / "sample.py", BUILT)
    result = subprocess.run(
        ["sh", "-euc", typed],
        cwd=BUILT.parent,
        env={**BUILDER, **environment(IMGPROXY=imgproxy)},
        capture_output=True,
        text=True,
        timeout=BUILDING,
        check=False,
    )
    assert (result.stdout, result.returncode) == (shown, 0), result.stderr
    assert len(list((tmp_path / "layers").iterdir())) == 3


# --- what works ------------------------------------------------------------------------------


def test_every_layer_of_a_layout(everyone: Everyone, layout: Layout) -> None:
    def check(parent: Parent) -> None:
        assert parent(f"oci:{layout.path}", INSECURE) == Ended(
            0, described(layout, digest_in(layout)), []
        )

    everyone(check)


@pytest.mark.slow
def test_every_layer_of_an_image_in_a_registry_as_a_file(
    everyone: Everyone, registry: Registry
) -> None:
    def check(parent: Parent) -> None:
        ended = parent("--output", str(parent.output), registry.name(":large"), INSECURE, PLAIN)
        assert ended == Ended(0, described(registry.layout, registry.images["large"]["digest"]), [])
        (layer,) = registry.layers("large")
        (file,) = parent.output.iterdir()
        assert file.name == layer["digest"].replace(":", "-")
        assert file.read_bytes() == registry.layout.read(layer["digest"])

    everyone(check)


@pytest.mark.slow
def test_layers_without_content_of_other_digests_and_beside_strange_words(
    everyone: Everyone, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "image")
    words = {'"layers":[{"digest":"no\\"': "}]{[\\ü\N{GRINNING FACE}\u0001"}
    layout.save_image(SMALL, b"", LARGE, algorithm="sha512", annotations=words)

    def check(parent: Parent) -> None:
        ended = parent("--output", str(parent.output), f"oci:{layout.path}", INSECURE)
        assert ended == Ended(0, described(layout, digest_in(layout)), [])
        files = {file.name: file.read_bytes() for file in parent.output.iterdir()}
        digests = [digest_of(each, "sha512").replace(":", "-") for each in (SMALL, b"", LARGE)]
        assert files == dict(zip(digests, (SMALL, b"", LARGE), strict=True))

    everyone(check)


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_alone(everyone: Everyone, layout: Layout) -> None:
    """That it is not shown elsewhere, all others see."""

    def check(parent: Parent) -> None:
        ours, theirs = pty.openpty()
        process = parent.popen(f"oci:{layout.path}", INSECURE, stderr=theirs)
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # which is how the end is told
            while data := os.read(ours, 4096):
                shown += data
        os.close(ours)
        ended = parent.end(process)
        assert (ended.status, ended.stdout) == (0, described(layout, digest_in(layout)))
        assert b"\r" in shown
        assert re.search(rf"100 %|{len(LARGE)} bytes".encode(), shown)

    everyone(check)


# --- what is refused -------------------------------------------------------------------------


def test_no_such_image(everyone: Everyone, tmp_path: Path) -> None:
    """Told in the words of imgproxy, all of them."""
    layout = Layout(tmp_path / "äé\N{GRINNING FACE}")
    layout.save_image(SMALL)

    def check(parent: Parent) -> None:
        ended = parent(f"oci:{layout.path}:absent", INSECURE)
        ended.failed(1, rf"failed: /manifest: 404 MANIFEST_UNKNOWN: .*{layout.path.name}.*absent.*")
        assert ended.stdout == []

    everyone(check)


def test_the_policy_refuses(everyone: Everyone, layout: Layout, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "reject"}]}))

    def check(parent: Parent) -> None:
        ended = parent(f"oci:{layout.path}", "--policy", str(policy))
        ended.failed(1, "failed: /manifest: 403 DENIED: .*")

    everyone(check)


@pytest.mark.slow
def test_no_registry_is_worth_another_try(everyone: Everyone) -> None:
    def check(parent: Parent) -> None:
        image = f"docker://127.0.0.1:{free_port()}/no/body"
        ended = parent(image, INSECURE, PLAIN, "--retries=0")
        ended.failed(TEMPFAIL, "failed: /manifest: 50[34] [A-Z]+: .*127.0.0.1.*")

    everyone(check)


def test_wrong_options_of_imgproxy(everyone: Everyone, layout: Layout) -> None:
    def check(parent: Parent) -> None:
        ended = parent(f"oci:{layout.path}", "--nonsense")
        ended.failed(
            1, "failed: /manifest: no reply", "imgproxy: exit status 2: imgproxy: .*--nonsense.*"
        )

    everyone(check)


@pytest.mark.slow
def test_wrong_usage(everyone: Everyone) -> None:
    def check(parent: Parent) -> None:
        usage = r"usage: \S+ \[--output DIR\] IMAGE \[OPTIONS OF IMGPROXY\]"
        for words in ([], ["--output"], ["--output", "x"], ["--nonsense"]):
            parent(*words).failed(1, usage)

    everyone(check)


def test_no_imgproxy(everyone: Everyone) -> None:
    def check(parent: Parent) -> None:
        parent("image", program="/nowhere/imgproxy").failed(
            1, "failed: cannot start /nowhere/imgproxy"
        )

    everyone(check)


@pytest.mark.slow
def test_no_directory_for_the_output(everyone: Everyone, layout: Layout) -> None:
    def check(parent: Parent) -> None:
        parent.output.write_text("a file")
        ended = parent("--output", str(parent.output), f"oci:{layout.path}", INSECURE)
        assert ended.status == 1
        assert any(line.startswith("failed: ") and "output" in line for line in ended.stderr)

    everyone(check)


@pytest.mark.slow
def test_no_file_for_a_layer(everyone: Everyone, layout: Layout) -> None:
    name = digest_of(LARGE).replace(":", "-") + ".part"

    def check(parent: Parent) -> None:
        (parent.output / name / "in the way").mkdir(parents=True)
        ended = parent("--output", str(parent.output), f"oci:{layout.path}", INSECURE)
        assert ended.stdout == described(layout, digest_in(layout))[:2]
        assert (ended.status, ended.stderr[-1].startswith("failed: ")) == (1, True), ended
        assert name in ended.stderr[-1]

    everyone(check)


# --- what breaks in the middle ---------------------------------------------------------------


def test_a_small_corrupt_blob(everyone: Everyone, layout: Layout) -> None:
    spoil(layout, digest_of(SMALL))

    def check(parent: Parent) -> None:
        ended = parent("--output", str(parent.output), f"oci:{layout.path}", INSECURE)
        ended.failed(1, f"failed: /blobs/{digest_of(SMALL)}: 422 DIGEST_INVALID: .*")
        assert ended.stdout == described(layout, digest_in(layout))[:3]
        assert len(list(parent.output.iterdir())) == 1

    everyone(check)


@pytest.mark.slow
def test_a_large_corrupt_blob(everyone: Everyone, layout: Layout) -> None:
    spoil(layout, digest_of(LARGE))

    def check(parent: Parent) -> None:
        ended = parent("--output", str(parent.output), f"oci:{layout.path}", INSECURE)
        ended.failed(
            1, short_body(LARGE), f"imgproxy: exit status 4: imgproxy: .*{digest_of(LARGE)}.*"
        )
        assert ended.stdout == described(layout, digest_in(layout))[:2]
        assert list(parent.output.iterdir()) == []

    everyone(check)


@pytest.mark.slow
def test_a_registry_that_dies_is_worth_another_try(everyone: Everyone, registry: Registry) -> None:
    def check(parent: Parent) -> None:
        (layer,) = registry.layers("large")
        with line_to(registry.address, Cut(4 * MIB, "reset")) as line:
            image = registry.name(":large", line.address)
            output = ("--output", str(parent.output))
            ended = parent(*output, image, INSECURE, PLAIN, "--retries=0")
        ended.failed(
            TEMPFAIL,
            short_body(registry.layout.read(layer["digest"])),
            f"imgproxy: exit status 5: imgproxy: .*{line.address}.*",
        )
        assert list(parent.output.iterdir()) == []

    everyone(check)


def test_imgproxy_is_killed(everyone: Everyone, registry: Registry) -> None:
    def check(parent: Parent) -> None:
        (layer,) = registry.layers("large")
        with line_to(registry.address, Cut(4 * MIB, "stall")) as line:
            image = registry.name(":large", line.address)
            process = parent.popen("--output", str(parent.output), image, INSECURE, PLAIN)
            assert eventually(
                lambda: any(part.stat().st_size for part in parent.output.glob("*.part"))
            )
            os.kill(int(parent.pid_file.read_text()), signal.SIGKILL)
            ended = parent.end(process)
        ended.failed(
            1, short_body(registry.layout.read(layer["digest"])), "imgproxy: killed by signal 9"
        )
        assert list(parent.output.iterdir()) == []

    everyone(check)


# Serves a manifest with a layer, and other bytes of the same length as that; or dies before.
LIAR = """#!{python}
import os, socket, sys
fds = [word.partition("=")[2] for word in sys.argv if word.startswith("--sockfd=")]
requests = os.fdopen(int(fds[0]) if fds else 0, "rb", closefd=False)
replies = os.fdopen(int(fds[0]) if fds else 1, "wb", closefd=False)
bodies = [{manifest!r}, b"a lie".ljust({size}), b""]
for body in bodies[:{replies}]:
    while (line := requests.readline()) != b"\\r\\n":
        if not line:
            sys.exit()
    replies.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n" % len(body))
    replies.write(b"MANIFEST-DIGEST: {digest}\\r\\n\\r\\n" + body)
    replies.flush()
"""


def script_of_liar(layout: Layout, digest: str, *, replies: int) -> str:
    return LIAR.format(
        python=sys.executable,
        manifest=layout.read(digest),
        size=len(SMALL),
        digest=digest,
        replies=replies,
    )


@pytest.mark.parametrize("replies", [0, 1])
def test_an_imgproxy_that_ends_between_replies(
    replies: int, everyone: Everyone, layout: Layout, tmp_path: Path
) -> None:
    """Whatever came until then was whole, and it ended with 0."""
    digest = layout.save_image(SMALL)["digest"]
    program = write_program(tmp_path / "short", script_of_liar(layout, digest, replies=replies))
    target = ["/manifest", f"/blobs/{digest_of(SMALL)}"][replies]

    def check(parent: Parent) -> None:
        parent("image", program=program).failed(1, f"failed: {target}: no reply")

    everyone(check)


# Answers for no blob before all of them are requested.
PATIENT = """#!{python}
import re, socket
sock = socket.socket(fileno=3)
asked = ""

def wait_asked(pattern, count):
    global asked
    while len(re.findall(pattern, asked)) < count:
        asked += sock.recv(65536).decode()

def send(body):
    sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)

wait_asked("GET /manifest", 1)
send({manifest})
wait_asked("GET /blobs/", {count})
for path in re.findall("GET /blobs/", asked):
    send({content})
wait_asked("POST /quit", 1)
send(b"")
"""


def test_the_one_in_c_requests_layers_ahead(layout: Layout, tmp_path: Path) -> None:
    command = built("C")
    if isinstance(command, str):
        skip(command)
    digest = layout.save_image(*[SMALL] * 5)["digest"]
    program = PATIENT.format(
        python=sys.executable, manifest=layout.read(digest), count=5, content=SMALL
    )
    file = write_program(tmp_path / "patient", program)
    ended = Parent("C", command, tmp_path)("image", program=file)
    assert (ended.status, ended.stderr) == (0, [])
    assert ended.stdout[2:] == [f"layer {digest_of(SMALL)} {len(SMALL)} bytes"] * 5


def test_an_imgproxy_that_lies_is_found_out_but_by_the_one_in_c(
    everyone: Everyone, layout: Layout, tmp_path: Path
) -> None:
    """Which has no SHA-256 in its library, and says so."""
    digest = layout.save_image(SMALL)["digest"]
    liar = write_program(tmp_path / "liar", script_of_liar(layout, digest, replies=3))

    def check(parent: Parent) -> None:
        ended = parent("image", program=liar)
        if parent.language == "C":
            assert ended == Ended(0, described(layout, digest), [])
        else:
            ended.failed(1, f"failed: /blobs/{digest_of(SMALL)}: does not match its digest")

    everyone(check)

"""The updater in demo/: a system of Debian's own files, from a registry into OSTree.

It is installed, updated, killed at many points, and fed with what is broken. What the repository
has then is compared with what the layers were made of.

A few packages of this host make the system. To try it with a whole one, and to kill it more often:

    debootstrap --variant=minbase bookworm /tmp/system
    IMGPROXY_TEST_SYSTEM=/tmp/system IMGPROXY_TEST_KILLS=40 tests/run tests/interop/test_updater.py
"""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import random
import re
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.damage import flip
from support.effort import rounds
from support.filled import MIB, noise
from support.home import REGISTRIES_CONF, table
from support.images import OCI_LAYER, OCI_MANIFEST, Json, Layout
from support.networks import Cut, line_to
from support.parent import INSECURE, LIMIT, ROOT, environment, eventually
from support.servers import docker_registry, put_blob, put_manifest, require, skip, stored_blob

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from support.home import Home
    from support.networks import Line

PLAIN = "--tls-verify=false"
BRANCH = "imgproxy/image"

# sysexits.h: worth another try
TEMPFAIL = 75

SYSTEM = os.environ.get("IMGPROXY_TEST_SYSTEM", "")

# With programs that run as another user or group, and directories that are not 0755.
PACKAGES = ("base-files", "login", "passwd")
TRANSLATIONS = ("/usr/share/locale/", "/usr/share/man/")  # too many files for tests to be quick

# How often it is killed, or done before that.
KILLS = rounds("IMGPROXY_TEST_KILLS", slow=4, quick=2)
SEED = int(os.environ.get("IMGPROXY_TEST_SEED", "0"))


class File(NamedTuple):
    """A file, a directory or a link; `content` is also where a link leads."""

    kind: str
    mode: int
    uid: int
    gid: int
    content: bytes = b""


Tree = dict[str, File]

DIRECTORY = File("d", 0o755, 0, 0)


def plain(content: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> File:
    return File("-", mode, uid, gid, content)


def there(path: str) -> File | None:
    """Return what lies at a path; None for what cannot be had."""
    try:
        status = os.lstat(path)
        kind = stat.filemode(status.st_mode)[0]
        content = content_of(Path(path), kind)
    except OSError:
        return None
    return File(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, content)


def content_of(path: Path, kind: str) -> bytes:
    if kind == "l":
        return os.fsencode(os.readlink(path))
    return path.read_bytes() if kind == "-" else b""


@cache
def package(name: str) -> Tree:
    """Return the files of a package, each with the directories that it is in."""
    listed = subprocess.run(
        [require("dpkg"), "-L", name], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if listed.returncode:
        skip(f"{name} is not installed")
    paths = set()
    for line in listed.stdout.split("\n")[1:-1]:  # the first one is the root
        path = os.path.join(os.path.realpath(os.path.dirname(line)), os.path.basename(line))
        paths |= {path, *map(str, Path(path).parents[:-1])}
    wanted = sorted(path for path in paths if not path.startswith(TRANSLATIONS))
    return {"/": DIRECTORY} | {path: file for path in wanted if (file := there(SYSTEM + path))}


def whole_system() -> tuple[Tree, bytes]:
    """Return the files of a system but for its devices, and the layer that GNU tar makes of it."""
    paths = sorted(f"/{path.relative_to(SYSTEM)}" for path in Path(SYSTEM).rglob("*"))
    found = {path: file for path in ["/", *paths] if (file := there(SYSTEM + path))}
    words = [require("tar"), "--numeric-owner", "--xattrs", "-cC", SYSTEM, "."]
    archive = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
    return {path: file for path, file in found.items() if file.kind in "-dl"}, archive


# --- layers --------------------------------------------------------------------------------------


def member(path: str, file: File) -> tuple[tarfile.TarInfo, io.BytesIO]:
    kinds = {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "-": tarfile.REGTYPE}
    made = tarfile.TarInfo(f".{path}")
    made.type, made.mode, made.uid, made.gid = kinds[file.kind], file.mode, file.uid, file.gid
    if file.kind == "l":
        made.linkname = os.fsdecode(file.content)
    else:
        made.size = len(file.content)
    return made, io.BytesIO(file.content)


def tar(files: Mapping[str, File], *others: tarfile.TarInfo) -> bytes:
    """Return a layer with these files, and members without content."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as output:
        for path, file in files.items():
            output.addfile(*member(path, file))
        for each in others:
            output.addfile(each)
    return archive.getvalue()


def special(path: str, kind: bytes, **fields: str | int) -> tarfile.TarInfo:
    made = tarfile.TarInfo(path)
    made.type = kind
    for name, value in fields.items():
        setattr(made, name, value)
    return made


DEVICES = (
    special("./dev/null", tarfile.CHRTYPE),
    special("./dev/loop0", tarfile.BLKTYPE),
    special("./run/initctl", tarfile.FIFOTYPE),
)
TYPES = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}
WHITEOUT = plain(b"")
KERNEL = "/boot/vmlinuz"
TAGS = ("1", "2")


class System(NamedTuple):
    """A version of a system: what it consists of, and the layers that make it."""

    tree: Tree
    layers: list[bytes]


def first() -> System:
    base, login, passwd = map(package, PACKAGES)
    base, archive = whole_system() if SYSTEM else (base, tar(base, *DEVICES))
    kernel = plain(noise(4 * MIB), 0o600)
    # Only what has changed, as umoci writes it: the directories are as they were.
    configuration = {"/root/.bashrc": plain(b"PS1=%\n"), "/tmp/kept": plain(b"1"), KERNEL: kernel}  # noqa: S108
    layers = [
        archive,
        gzip.compress(tar(login), 1, mtime=0),
        zstd.compress(tar(passwd)),
        tar(configuration),
    ]
    return System(base | login | passwd | configuration, layers)


def second() -> System:
    """With another kernel, and without a few things: a file, a directory, a directory's content."""
    tree, layers = first()
    kernel = {KERNEL: plain(noise(4 * MIB + 1), 0o600), "/root/.bashrc": plain(b"PS1=$\n")}
    changes = {
        "/etc": DIRECTORY._replace(mode=0o751),
        "/etc/login.defs": File("d", 0o700, 1, 2),
        "/etc/login.defs/part": plain(b"a file is a directory now"),
        "/usr/share/doc": File("l", 0o777, 0, 0, b"nowhere"),
        "/usr/share/lintian": DIRECTORY,
        "/usr/share/lintian/new": plain(b"alone"),
    }
    removed = {
        "/usr/bin/.wh.chage": WHITEOUT,
        "/usr/share/.wh.locale": WHITEOUT,
        "/usr/share/.wh.absent": WHITEOUT,
        "/dev/.wh.null": WHITEOUT,
        "/usr/share/lintian/.wh..wh..opq": WHITEOUT,
    }
    gone = ("/usr/share/locale/", "/usr/share/doc/", "/usr/share/lintian/", "/tmp/")  # noqa: S108
    left = {
        path: file
        for path, file in tree.items()
        if not path.startswith(gone) and path not in {"/usr/bin/chage", "/usr/share/locale"}
    }
    layers = [*layers[:3], tar(kernel), gzip.compress(tar({**removed, **changes}))]
    return System(left | kernel | changes, layers)


# --- the registry and the updater ----------------------------------------------------------------


@dataclass
class Store:
    """A registry at `address` over `directory`."""

    address: str
    directory: Path
    layout: Layout

    def push(self, tag: str, layers: list[bytes]) -> Json:
        """Put an image; give its manifest."""
        descriptors = [
            self.layout.add(layer, OCI_LAYER + TYPES.get(layer[:2], "")) for layer in layers
        ]
        image = self.layout.image(layers=descriptors)
        manifest = self.layout.document(image)
        for descriptor in {each["digest"]: each for each in [manifest["config"], *descriptors]}:
            put_blob(self.address, "acme/os", self.layout.read(descriptor))
        content = self.layout.read(image["digest"])
        put_manifest(self.address, "acme/os", tag, content, OCI_MANIFEST)
        return {**manifest, "digest": image["digest"]}

    def name(self, tag: str, address: str | None = None) -> str:
        return f"docker://{address or self.address}/acme/os:{tag}"


class Ended(NamedTuple):
    """What the updater has printed, and how it ended."""

    status: int
    stdout: list[str]
    stderr: list[str]

    def failed(self, status: int, pattern: str) -> None:
        """See that it says why in one line, and imgproxy at most one more."""
        assert self.status == status, self
        *before, last = self.stderr
        assert len(before) <= 1, self
        assert re.fullmatch(f"failed: {pattern}", last), self


@dataclass
class Updater:
    """The updater with a repository of its own; what it starts is known by `mark`."""

    directory: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def repo(self) -> Path:
        return self.directory / "os"

    def popen(self, image: str, *options: str, **env: str) -> subprocess.Popen[str]:
        self.directory.mkdir(exist_ok=True)
        # Without a directory for temporary files, there are none.
        changes = {"HOME": str(self.directory), "TMPDIR": "/nowhere", "MARK": self.mark, **env}
        words = [sys.executable, str(ROOT / "demo/updater.py"), str(self.repo), image]
        return subprocess.Popen(
            [*words, "--", INSECURE, PLAIN, *options],
            env=environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def __call__(self, image: str, *options: str, **env: str) -> Ended:
        """Run it to its end."""
        return self.end(self.popen(image, *options, **env))

    def end(self, process: subprocess.Popen[str]) -> Ended:
        with process:
            try:
                stdout, stderr = process.communicate(timeout=6 * LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert not self.processes()
        return Ended(process.returncode, stdout.splitlines(), stderr.splitlines())

    def processes(self) -> dict[int, str]:
        """Return the command lines of what it has started and has not ended."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK={self.mark}" in (process / "environ").read_text():
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
            except (OSError, UnicodeDecodeError):
                continue  # gone, or somebody else's
        return found

    def ostree(self, *words: str) -> str:
        result = subprocess.run(
            [require("ostree"), f"--repo={self.repo}", *words],
            capture_output=True,
            text=True,
            timeout=6 * LIMIT,
            check=False,
        )
        assert result.returncode == 0, (words, result.stderr)
        return result.stdout.rstrip("\n")

    @property
    def refs(self) -> set[str]:
        return set(self.ostree("refs", "--list").split()) if self.is_made else set()

    @property
    def is_made(self) -> bool:
        """Say whether there is a repository; that is the last directory in it."""
        return (self.repo / "objects").exists()

    def tree_of(self, ref: str) -> str:
        """Return the checksums of all that a ref leads to, apart from when it was committed."""
        return self.ostree("ls", "-d", "-C", ref, "/")

    @property
    def objects(self) -> set[str]:
        """Name what is stored, apart from commits, which have a date."""
        files = (self.repo / "objects").glob("*/*")
        return {f"{file.parent.name}{file.name}" for file in files if file.suffix != ".commit"}

    def tree(self) -> Tree:
        """Return what the branch leads to."""
        place = self.directory / "tree"
        self.ostree("checkout", "--user-mode", BRANCH, str(place))
        tree = {}
        for line in self.ostree("ls", "-R", BRANCH).split("\n"):
            kind, mode, uid, gid, path = re.fullmatch(LISTED, line).groups()  # type: ignore[union-attr]
            content = content_of(place / path[1:], kind)
            tree[path] = File(kind, int(mode, 8), int(uid), int(gid), content)
        shutil.rmtree(place)
        return tree


LISTED = r"(.)0(\d{4}) (\d+) (\d+) +\d+ (/.*?)(?: -> .*)?"


def ref_of(layer: Json) -> str:
    return f"imgproxy/layer/{layer['digest'].replace(':', '-')}"


def refs_of(manifest: Json) -> set[str]:
    return {BRANCH, *map(ref_of, manifest["layers"])}


def fetched(line: Line) -> list[str]:
    """Return the digests of the blobs that were asked for; the config is none of the updater's."""
    return [path.rpartition("/")[2] for path in line.paths("/blobs/")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    require("ostree")
    directory = tmp_path_factory.mktemp("store")
    try:
        os.setxattr(directory, "user.test", b"")
    except OSError:
        skip(f"{directory} has no extended attributes, which OSTree needs")
    with docker_registry(directory / "data") as address:
        yield Store(address, directory / "data", Layout(directory / "layout"))


class Version(NamedTuple):
    """An image in the registry, and what came of it, and when, with nothing in the way."""

    system: System
    manifest: Json
    ended: Ended
    fetched: list[str]
    seen: Tree
    tree: str
    parts: dict[str, str]
    objects: set[str]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Updater:
    return Updater(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def versions(store: Store, undisturbed: Updater) -> list[Version]:
    """Install the first version of a system, and update it to the second."""
    versions = []
    for tag, system in zip(TAGS, (first(), second()), strict=True):
        manifest = store.push(tag, system.layers)
        begun = time.monotonic()
        with line_to(store.address) as line:
            ended = undisturbed(store.name(tag, line.address))
        seconds = time.monotonic() - begun
        assert ended.status == 0, ended
        undisturbed.ostree("fsck", "--quiet")
        parts = {ref: undisturbed.tree_of(ref) for ref in undisturbed.refs - {BRANCH}}
        seen, tree = undisturbed.tree(), undisturbed.tree_of(BRANCH)
        of_it = (fetched(line), seen, tree, parts, undisturbed.objects, seconds)
        versions.append(Version(system, manifest, ended, *of_it))
    return versions


@pytest.fixture
def updater(tmp_path: Path) -> Updater:
    return Updater(tmp_path / "updater")


# --- what works ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_system_is_in_the_repository_as_it_is_in_its_layers(versions: list[Version]) -> None:
    version = versions[0]
    assert version.seen == version.system.tree
    manifest, *layers, commit = version.ended.stdout
    assert manifest == f"manifest {version.manifest['digest']}"
    described = [
        f"layer {each['digest']} {each['size']} bytes" for each in version.manifest["layers"]
    ]
    assert layers == described
    assert re.fullmatch("commit [0-9a-f]{64}", commit)
    assert version.ended.stderr == []
    assert sorted(version.fetched) == sorted(each["digest"] for each in version.manifest["layers"])
    assert version.parts.keys() == refs_of(version.manifest) - {BRANCH}


def test_an_update_fetches_what_has_changed_and_nothing_else(versions: list[Version]) -> None:
    before, after = versions
    assert after.seen == after.system.tree
    old = {each["digest"] for each in before.manifest["layers"]}
    new = [each["digest"] for each in after.manifest["layers"] if each["digest"] not in old]
    assert (len(new), sorted(after.fetched)) == (2, sorted(new))
    assert after.parts.keys() == refs_of(after.manifest) - {BRANCH}


def test_where_nothing_is_new_nothing_happens(
    store: Store, versions: list[Version], undisturbed: Updater
) -> None:
    """And the image before is there until the next one comes."""
    updater = undisturbed
    commits = [updater.ostree("rev-parse", name) for name in (BRANCH, f"{BRANCH}^")]
    assert [versions[n].ended.stdout[-1] for n in (1, 0)] == [f"commit {each}" for each in commits]
    with line_to(store.address) as line:
        ended = updater(store.name("2", line.address))
    assert ended == Ended(0, [f"manifest {versions[1].manifest['digest']}"], [])
    assert fetched(line) == []
    assert [updater.ostree("rev-parse", name) for name in (BRANCH, f"{BRANCH}^")] == commits
    assert updater.objects == versions[1].objects


# --- kills -----------------------------------------------------------------------------------


def kill(updater: Updater, image: str, is_time: Callable[[], bool], sent: signal.Signals) -> bool:
    """End it when it is time; say whether it was at work still."""
    process = updater.popen(image)
    assert eventually(lambda: is_time() or process.poll() is not None, limit=6 * LIMIT)
    with suppress(ProcessLookupError):
        send = os.killpg if sent == signal.SIGINT else os.kill  # as a terminal does, or anybody
        send(process.pid, sent)
    said = process.communicate()
    assert eventually(lambda: not updater.processes()), updater.processes()
    assert process.returncode in {0, -sent}, said
    return process.returncode != 0


@pytest.mark.slow
def test_it_may_be_killed_at_any_point(
    store: Store, versions: list[Version], tmp_path: Path
) -> None:
    """In the middle of a layer, and at any time: what has a ref then is what it should be.

    In the end nothing tells the repository from one of which nobody was killed.
    """
    known = versions[0].parts | versions[1].parts
    trees = {version.tree for version in versions}

    def check(updater: Updater) -> None:
        if updater.is_made:
            updater.ostree("fsck", "--quiet")
            for ref in updater.refs:
                assert updater.tree_of(ref) in (trees if ref == BRANCH else {known[ref]})

    def is_done(updater: Updater, version: Version) -> None:
        assert updater.tree_of(BRANCH) == version.tree
        assert updater.refs == refs_of(version.manifest)
        assert updater.objects <= versions[0].objects | versions[1].objects
        assert os.listdir(updater.repo / "tmp") == ["cache"]

    chance, kills = random.Random(SEED), 0
    updater, goal = Updater(tmp_path / "updater"), 0
    for n in range(KILLS):
        version = versions[goal]
        layers = version.manifest["layers"]
        new = sum(each["size"] for each in layers if ref_of(each) not in updater.refs)
        cuts = [Cut(chance.randint(1, new), "stall")] if new and not n % 2 else []
        moment = chance.uniform(0.2, version.seconds) if n % 2 else 6 * LIMIT
        sent = signal.SIGINT if n % 4 == 1 else signal.SIGKILL
        with line_to(store.address, *cuts) as line:
            is_time = is_broken_or_late(line, moment)
            was_killed = kill(updater, store.name(TAGS[goal], line.address), is_time, sent)
        check(updater)
        kills += was_killed
        if not was_killed:  # on to the other version
            is_done(updater, version)
            goal = 1 - goal
    assert updater(store.name(TAGS[goal])).status == 0
    check(updater)
    is_done(updater, versions[goal])
    assert kills >= KILLS // 2


def is_broken_or_late(line: Line, seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: line.broken > 0 or time.monotonic() > end


# --- what goes wrong -------------------------------------------------------------------------

SMALL = tar({"/": DIRECTORY, "/small": plain(b"a small layer")})
ARCHIVE = tar({"/": DIRECTORY, "/large": plain(noise(2 * MIB))})
LARGE = ARCHIVE + noise(2 * MIB)  # of which ostree has no need, but the digest


SMALL_FILE = plain(b"")
WHOLE = tar({"/": DIRECTORY, "/whole": plain(b"as it should be")})


@contextmanager
def spoiled(file: Path, place: int) -> Iterator[None]:
    flip(file, place)
    try:
        yield
    finally:
        flip(file, place)


@pytest.mark.slow
def test_a_corrupt_layer_gets_no_ref(store: Store, updater: Updater) -> None:
    """Though all of its archive has been committed, or there seemed to be none."""
    manifest = store.push("corrupt", [WHOLE, LARGE])
    whole, large = manifest["layers"]
    short = (
        rf"/blobs/{large['digest']}: short body, \d+ of {len(LARGE)} bytes:"
        r" .*did not match its digest.*"
    )
    for place in (len(LARGE) - 1, 0):
        with spoiled(stored_blob(store.directory, large["digest"]), place):
            updater(store.name("corrupt")).failed(1, short)
        updater.ostree("fsck", "--quiet")
        assert updater.refs == {ref_of(whole)}


@pytest.mark.slow
def test_what_may_pass_is_worth_another_try(store: Store, updater: Updater) -> None:
    """A registry that dies in the middle of a layer, or an imgproxy that is killed."""
    manifest = store.push("large", [LARGE])
    (layer,) = manifest["layers"]
    short = rf"/blobs/{layer['digest']}: short body, \d+ of {layer['size']} bytes: "
    with line_to(store.address, Cut(2 * MIB, "reset")) as line:
        ended = updater(store.name("large", line.address), "--retries=0")
        ended.failed(TEMPFAIL, f"{short}imgproxy ended with exit status 5 .*")
    with line_to(store.address, Cut(2 * MIB, "stall")) as line:
        process = updater.popen(store.name("large", line.address))
        assert eventually(lambda: line.broken > 0 and "--tree=tar" in str(updater.processes()))
        (child,) = (pid for pid, words in updater.processes().items() if "-m imgproxy" in words)
        os.kill(child, signal.SIGKILL)
        updater.end(process).failed(TEMPFAIL, f"{short}imgproxy was killed by SIGKILL")
    updater.ostree("fsck", "--quiet")
    assert updater.refs == set()
    (part,) = updater.repo.glob("imgproxy-cache/.imgproxy/partial/*")
    kept = part.stat().st_size
    with line_to(store.address) as line:
        assert updater(store.name("large", line.address)).status == 0
    assert 0 < kept < layer["size"]
    assert line.passed < layer["size"] - kept + MIB // 4
    assert not (updater.repo / "imgproxy-cache").exists()


@pytest.mark.slow
def test_one_updater_at_a_time(updater: Updater) -> None:
    """Even if all that is left of the other is an ostree."""
    updater.repo.mkdir(parents=True)
    holder = os.open(updater.repo, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with subprocess.Popen(["sleep", "60"], pass_fds=[holder]) as other:
        os.close(holder)
        process = updater.popen("oci:/nowhere")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert process.poll() is None
        other.kill()
    assert line == f"waiting for another updater of {updater.repo}\n"
    updater.end(process).failed(1, "/manifest: 404 .*")


@pytest.mark.parametrize("mode", ["archive", "bare-user-only"])
def test_repositories_of_other_modes(updater: Updater, mode: str) -> None:
    updater.repo.mkdir(parents=True)
    updater.ostree("init", f"--mode={mode}")
    pattern = f"{updater.repo} has the mode {mode}(-z2)?, expected bare-user or bare"
    updater("image").failed(1, pattern)


OSTREE = """#!/bin/sh
case "$*" in
    *tree=tar=*) head -c 1000000 >/dev/null; kill -9 $$ ;;
    *) exec {} "$@" ;;
esac
"""


@pytest.mark.slow
def test_an_ostree_that_dies_in_the_middle(updater: Updater, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "image")
    layout.save_image(LARGE)
    program = tmp_path / "bin/ostree"
    program.parent.mkdir()
    program.write_text(OSTREE.format(require("ostree")))
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    updater(f"oci:{layout.path}", PATH=path).failed(1, "ostree: ended with -9")
    assert updater.refs == set()


# --- layers ----------------------------------------------------------------------------------


def holey(directory: Path, form: str) -> bytes:
    """Return what GNU tar makes of a file that is mostly a hole."""
    with (directory / "hole").open("wb") as file:
        file.write(b"begin")
        file.seek(MIB)
        file.write(b"end")
    words = [require("tar"), f"--format={form}", "--sparse", "--owner=0", "--group=0", "--mode=644"]
    result = subprocess.run([*words, "-cC", directory, "hole"], stdout=subprocess.PIPE, check=True)
    assert len(result.stdout) < MIB
    return result.stdout


@pytest.mark.slow
def test_strange_layers(updater: Updater, tmp_path: Path) -> None:
    """In pieces that are compressed one by one, without anything, with things after their end."""
    layout = Layout(tmp_path / "image")
    long = "/" + "/".join(["long" * 20] * 4)
    grinning = "/\N{GRINNING FACE} and = spaces"
    archive = tar({long: plain(b"1"), grinning: plain(b"2")})
    other = tar({"/zstd": plain(b"3")})
    capable = special("capable", tarfile.REGTYPE)
    capable.pax_headers = {"SCHILY.xattr.security.capability": "\1\0\0\2\0 \0\udcff" + "\0" * 12}
    links = tar(
        {"/a": plain(b"linked")},
        special("b", tarfile.LNKTYPE, linkname="a"),
        special("c", tarfile.SYMTYPE, linkname="./a", mode=0o777),
        capable,
    )
    empty = gzip.compress(bytes(1024))
    layout.save_image(
        gzip.compress(archive[:700]) + gzip.compress(archive[700:]),
        zstd.compress(other[:700]) + zstd.compress(other[700:]),
        empty,
        holey(tmp_path, "gnu"),
        tar({"/.wh.hole": WHITEOUT}),
        holey(tmp_path, "posix"),
        links + noise(2 * MIB),
        empty,
    )
    ended = updater(f"oci:{layout.path}")
    assert ended.status == 0, ended
    parts = long.split("/")
    assert updater.tree() == {
        **{"/".join(parts[:n]) or "/": DIRECTORY for n in range(1, len(parts))},
        long: plain(b"1"),
        grinning: plain(b"2"),
        "/zstd": plain(b"3"),
        "/hole": plain(b"begin".ljust(MIB, b"\0") + b"end"),
        "/a": plain(b"linked"),
        "/b": plain(b"linked"),
        "/c": File("l", 0o777, 0, 0, b"./a"),
        "/capable": plain(b""),
    }
    listed = updater.ostree("ls", "-X", BRANCH, "/capable")
    assert "security.capability', [byte 0x01, 0x00, 0x00, 0x02, 0x00, 0x20, 0x00, 0xff," in listed


LINK = tar({"/bin": File("l", 0o777, 0, 0, b"usr/bin")})
BROKEN = {
    "nothing at all": (b"", "empty file"),
    "no archive": (b"no archive" * 99, "invalid header"),
    "cut short": (ARCHIVE[:-MIB], "unexpected end of data"),
    "cut short within gzip": (gzip.compress(ARCHIVE)[:-MIB], "end-of-stream"),
    "cut short within zstd": (zstd.compress(ARCHIVE)[:-MIB], "end-of-stream"),
    "damaged": (SMALL[:512] + b"?" + SMALL[513:], "bad checksum"),
    "a name of two lines": (tar({"/a\nb": SMALL_FILE}), r"'./a\\nb': an ambiguous name"),
    "a name like a link": (tar({"/a -> b": SMALL_FILE}), "'./a -> b': an ambiguous name"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_archives_that_are_not_passed_on(what: str) -> None:
    """Most of which `tarfile` would take for whole."""
    archive, words = BROKEN[what]
    module = runpy.run_path(str(ROOT / "demo/updater.py"))
    with pytest.raises((module["FailedError"], tarfile.TarError, EOFError), match=words):
        module["pass_on"](io.BufferedReader(io.BytesIO(archive)), io.BytesIO())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        ([LINK, tar({"/bin/a": SMALL_FILE})], "/bin: not a directory, but a later layer .*"),
        ([LINK[:512] + tar({"/bin/a": SMALL_FILE})], "ostree: .*"),
    ],
)
def test_layers_that_are_refused(
    updater: Updater, tmp_path: Path, layers: list[bytes], pattern: str
) -> None:
    layout = Layout(tmp_path / "image")
    layout.save_image(*layers)
    updater(f"oci:{layout.path}").failed(1, pattern)
    assert BRANCH not in updater.refs
    updater.ostree("fsck", "--quiet")


# --- the command -----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_readme_says_can_be_done(
    store: Store, versions: list[Version], home: Home, tmp_path: Path
) -> None:
    """On a host that has a policy, and a registry of that name."""
    (block,) = re.findall(
        r"^```sh\n(.*?)^```$", (ROOT / "demo/README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    home.write(".config/containers/policy.json", {"default": [{"type": "insecureAcceptAnything"}]})
    registry = table("registry.example.com", store.address, "insecure = true")
    home.write(REGISTRIES_CONF, registry)
    home.program("python", f'exec {sys.executable} "$@"')
    result = subprocess.run(
        ["sh", "-euxc", block.replace("/srv/", f"{tmp_path}/")],
        cwd=ROOT,
        env=home.environment(),
        capture_output=True,
        text=True,
        timeout=6 * LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(re.findall("^commit ", result.stdout, re.MULTILINE)) == 4  # two are in the log
    assert Updater(tmp_path).tree_of(BRANCH) == versions[1].tree
    for path, file in versions[1].system.tree.items():
        assert content_of(tmp_path / "tree" / path[1:], file.kind) == file.content


@pytest.mark.skipif(os.geteuid() != 0, reason="owners are for root to give")
def test_root_has_a_system_with_all_its_owners(
    versions: list[Version], undisturbed: Updater, tmp_path: Path
) -> None:
    bare = Updater(tmp_path)
    bare.repo.mkdir()
    bare.ostree("init", "--mode=bare")
    bare.ostree("pull-local", str(undisturbed.repo), BRANCH)
    bare.ostree("checkout", "--require-hardlinks", BRANCH, str(tmp_path / "tree"))
    for path, file in versions[1].system.tree.items():
        assert there(str(tmp_path / "tree" / path[1:])) == file


def test_wrong_usage() -> None:
    for words in (["repo"], ["repo", "image", "--offline"]):
        command = [sys.executable, str(ROOT / "demo/updater.py"), *words]
        result = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
        )
        usage = "usage: updater.py REPO IMAGE [-- OPTIONS OF IMGPROXY]\n"
        assert (result.returncode, result.stdout, result.stderr) == (1, "", usage)


def test_no_ostree(updater: Updater) -> None:
    updater("image", PATH="/nowhere").failed(1, ".*'ostree'")

#!/usr/bin/env python3
"""An updater: keep an operating system, distributed as a container image, in an OSTree repository.

    updater.py REPO IMAGE [-- OPTIONS OF IMGPROXY]

Each layer becomes a commit, through a pipe to `ostree commit`. What has arrived of it is kept in
imgproxy's cache, REPO/imgproxy-cache, until the update is complete: whoever starts again after a
power cut goes on in the middle of a layer. A layer gets a ref only when it is verified and
committed as a whole, so that one with a ref need not be fetched again, and one without has no
effect. Then the layers are merged into one tree, and the branch `imgproxy/image` is moved to that.
The updater may be killed at any time and started again.
"""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from imgproxy import parent

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # imgproxy needs it too

if TYPE_CHECKING:
    from imgproxy.parent import Blob

BRANCH = "imgproxy/image"
LAYERS = "imgproxy/layer"
DIGEST = "imgproxy.manifest-digest"  # in the metadata of the branch's commit
COMMIT = ("commit", "--orphan", "--no-bindings")

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
NOBODY = (1 << 32) - 2  # marks a directory that a layer has files in but does not contain

BAD_ARCHIVE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, zstd.ZstdError, EOFError)

CHUNK = 1 << 16
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


class FailedError(Exception):
    """A layer, or the repository, cannot be used."""


# --- ostree ---------------------------------------------------------------------------------


def lock(repo: Path) -> None:
    """Wait for other updaters: each would prune commits to which another has no ref yet."""
    repo.mkdir(parents=True, exist_ok=True)
    directory = os.open(repo, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another updater of {repo}", file=sys.stderr, flush=True)
        fcntl.flock(directory, fcntl.LOCK_EX)
    fcntl.fcntl(directory, fcntl.F_SETFD, 0)  # inherited: locked until the last ostree has ended


def start(repo: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start ostree.

    If the updater is killed, ostree is not: its input ends, and it ends soon. Its commit may be
    incomplete then, but has no ref, since only the updater creates refs. An ostree that is killed
    while it moves a commit into place, however, leaves a broken one. Therefore it has a process
    group of its own, so that Ctrl-C does not reach it.
    """
    command = ["ostree", f"--repo={repo}", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0, close_fds=False
    )


def finish(process: subprocess.Popen[bytes], data: bytes | None = None) -> str:
    """Wait for the end of ostree, and return its output. Raises `FailedError`."""
    output, errors = process.communicate(data)
    if process.returncode:
        lines = [f"ended with {process.returncode}", *errors.decode(errors="replace").splitlines()]
        raise FailedError(f"ostree: {lines[-1]}")
    return output.decode(errors="surrogateescape").rstrip("\n")


def ostree(repo: Path, *words: str, data: bytes | None = None) -> str:
    """Run ostree, and return its output. Raises `FailedError`."""
    return finish(start(repo, *words), data)


# --- a layer becomes a commit ----------------------------------------------------------------


class Member(tarfile.TarInfo):
    """A member of an archive, which must be complete."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        """Raise for a broken header, which `tarfile` would take for the archive's end."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(str(error)) from None
            raise


def directory(path: str, mode: int, uid: int, gid: int) -> tarfile.TarInfo:
    """Return a directory as a member."""
    member = tarfile.TarInfo(path.strip("/") or ".")
    member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, uid, gid
    return member


def uncompressed(layer: io.BufferedReader[Blob]) -> io.BufferedIOBase:
    """Decompress a layer according to its first bytes, as media types may be wrong."""
    magic = layer.peek(4)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=layer)
    return zstd.ZstdFile(layer) if magic.startswith(b"\x28\xb5\x2f\xfd") else layer


def pass_on(layer: io.BufferedReader[Blob], output: IO[bytes]) -> None:
    """Copy an archive, with a directory for every file, and without members that ostree refuses."""
    named = {""}
    with (
        tarfile.open(fileobj=uncompressed(layer), mode="r|", tarinfo=Member) as source,
        tarfile.open(fileobj=output, mode="w|", bufsize=CHUNK) as archive,
    ):
        archive.addfile(directory("", 0o755, NOBODY, NOBODY))
        for member in source:
            if member.isdev():  # a device or a FIFO, which the running system creates itself
                continue
            if re.search(r"\n| -> ", f"{member.name}\0{member.linkname}"):
                raise FailedError(
                    f"{member.name!r}: an ambiguous name in the output of `ostree ls`"
                )
            *parents, name = os.path.normpath(f"/{member.name.lstrip('/')}").split("/")
            for depth in range(len(parents)):
                above = "/".join(parents[: depth + 1])
                if above not in named:
                    named.add(above)
                    archive.addfile(directory(above, 0o755, NOBODY, NOBODY))
            if member.isdir():
                named.add("/".join([*parents, name]))
            content = source.extractfile(member) if member.isreg() else None
            if member.issparse():  # `content` has no holes any more
                headers = member.pax_headers.items()
                member.pax_headers = {k: v for k, v in headers if not k.startswith("GNU.sparse.")}
                member.type = tarfile.REGTYPE
            archive.addfile(member, content)
            # Otherwise all members would be kept in memory.
            source.members = archive.members = []  # type: ignore[attr-defined]


def read_on(layer: io.BufferedReader[Blob]) -> None:
    """Read to the end of the blob, which is verified there and not at the archive's end."""
    while layer.read(CHUNK):
        pass


def import_layer(repo: Path, blob: Blob) -> str:
    """Commit a layer while it is received; return the commit, which is verified then."""
    layer = io.BufferedReader(blob, CHUNK)
    process = start(repo, *COMMIT, "--tree=tar=/dev/stdin")
    assert process.stdin is not None  # noqa: S101  (it is a pipe)
    try:
        with suppress(BrokenPipeError):  # ostree has ended, and `finish` reports the reason
            pass_on(layer, process.stdin)
    except Exception as error:
        process.kill()  # safe, since it is still reading and has moved nothing into place
        process.communicate()
        if not isinstance(error, BAD_ARCHIVE):
            raise
        read_on(layer)  # raises if the blob is corrupt, which is the cause then
        raise FailedError(f"{blob.digest}: {error}") from None
    commit = finish(process)
    read_on(layer)
    return commit


# --- the layers become a tree ----------------------------------------------------------------


class Entry(NamedTuple):
    """The entry at a path: its kind, mode and owner, and the layer it is from."""

    is_directory: bool
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    layer: int = 0
    is_implied: bool = False


LINE = re.compile(r"([dl-])(\d{5}) (\d+) (\d+) +\d+ (/.*?)(?: -> .*)?")


def entries(repo: Path, ref: str, layer: int) -> dict[str, Entry]:
    """List a layer, each directory before its entries."""
    found = {}
    for line in ostree(repo, "ls", "-R", ref).split("\n"):
        match = LINE.fullmatch(line)
        if not match:
            raise FailedError(f"unexpected output of `ostree ls`: {line!r}")
        kind, mode, uid, gid, path = match.groups()
        owner = int(uid), int(gid)
        found[path] = Entry(kind == "d", int(mode, 8), *owner, layer, int(uid) == NOBODY)
    return found


def above(path: str) -> str:
    """Return the directory that the path is in."""
    return path.rpartition("/")[0] or "/"


def is_under(path: str, hidden: set[str]) -> bool:
    """Return whether the path, or a directory that it is in, is one of these."""
    while path != "/" and path not in hidden:
        path = above(path)
    return path != "/"


def stack(layers: list[dict[str, Entry]]) -> dict[str, Entry]:
    """Return the tree of all layers, applied in order: OCI image specification, layer.md."""
    tree: dict[str, Entry] = {}
    for layer in layers:
        hidden = set()
        for path, entry in layer.items():
            name = path.rpartition("/")[2]
            if name == OPAQUE:
                hidden |= {each for each in tree if each != "/" and above(each) == above(path)}
            elif name.startswith(WHITEOUT):
                hidden.add(os.path.join(above(path), name.removeprefix(WHITEOUT)))
            elif path in tree and not (entry.is_directory and tree[path].is_directory):
                if entry.is_implied:
                    raise FailedError(f"{path}: not a directory, but a later layer has files in it")
                hidden.add(path)
        tree = {path: entry for path, entry in tree.items() if not is_under(path, hidden)}
        for path, entry in layer.items():
            if entry.is_implied:  # then it is unchanged
                known = tree.get(path, Entry(is_directory=True))
                tree[path] = known._replace(layer=entry.layer, is_implied=True)
            elif not path.rpartition("/")[2].startswith(WHITEOUT):
                tree[path] = entry
    return tree


def merge(repo: Path, refs: list[str], *words: str) -> str:
    """Commit the tree of all layers."""
    layers = [entries(repo, ref, number) for number, ref in enumerate(refs)]
    tree = stack(layers)

    def is_left(path: str, entry: Entry) -> bool:
        last = tree.get(path, Entry(is_directory=False, layer=-1))
        return last.layer == entry.layer or (last.is_directory and entry.is_directory)

    trees = []
    for ref, layer in zip(refs, layers, strict=True):
        gone = {path for path, entry in layer.items() if not is_left(path, entry)}
        # ostree fails if a path in the list does not occur.
        skipped = "\n".join(path for path in gone if above(path) not in gone)
        data = skipped.encode(errors="surrogateescape")
        skip = (*COMMIT, f"--tree=ref={ref}", "--skip-list=/dev/stdin")
        trees.append(f"--tree=ref={ostree(repo, *skip, data=data) if gone else ref}")
    implied = io.BytesIO()
    with tarfile.open(fileobj=implied, mode="w") as archive:
        for path, entry in tree.items():
            if entry.is_implied:
                archive.addfile(directory(path, entry.mode, entry.uid, entry.gid))
    return ostree(repo, *COMMIT, *words, *trees, "--tree=tar=/dev/stdin", data=implied.getvalue())


# --- the whole --------------------------------------------------------------------------------


def update(repo: Path, child: parent.Child) -> None:
    """Fetch the missing layers of the image, and move the branch to it."""
    manifest = child.manifest()
    print(f"manifest {manifest.digest}")
    refs = [
        f"{LAYERS}/{layer.digest.algorithm}-{layer.digest.encoded}" for layer in manifest.layers
    ]
    here = set(ostree(repo, "refs", "--list", LAYERS).split())
    is_first = BRANCH not in ostree(repo, "refs", "--list", BRANCH).split()
    before = "none" if is_first else ostree(repo, "rev-parse", BRANCH)
    key = f"--print-metadata-key={DIGEST}"
    if is_first or ostree(repo, "show", key, before) != f"'{manifest.digest}'":
        layers = dict(zip(refs, manifest.layers, strict=True))
        missing = [ref for ref in layers if ref not in here]
        with child.blobs(layers[ref] for ref in missing) as blobs:  # requested ahead
            for ref, blob in zip(missing, blobs, strict=True):
                commit = import_layer(repo, blob)
                ostree(repo, "refs", commit, f"--create={ref}")
                print(f"layer {blob.digest} {blob.size} bytes", flush=True)
                here.add(ref)
        digest = f"--add-metadata-string={DIGEST}={manifest.digest}"
        commit = merge(repo, refs, f"--parent={before}", digest)
        ostree(repo, "refs", commit, f"--create={BRANCH}", "--force")
        print(f"commit {commit}")
    for ref in here.difference(refs):
        ostree(repo, "refs", "--delete", ref)
    # Commits are pruned first: an updater that is killed in between leaves no incomplete commit.
    # The previous image is kept.
    for part in (["--commit-only"], []):
        ostree(repo, "prune", "--refs-only", "--depth=1", *part)


def run(repo: Path, image: str, options: list[str]) -> None:
    """Update the repository from the image."""
    lock(repo)
    # bare-user preserves owners, modes and extended attributes as metadata, also without root.
    ostree(repo, "init", "--mode=bare-user")
    mode = ostree(repo, "config", "get", "core.mode")
    if mode not in {"bare", "bare-user"}:
        # bare-user-only would lose them; with archive, ostree does not end when its input does.
        raise FailedError(f"{repo} has the mode {mode}, expected bare-user or bare")
    cache = repo / "imgproxy-cache"
    with parent.start(image, f"--cache={cache}", *options) as child:
        try:
            update(repo, child)
        finally:
            print(*child.diagnostics, sep="\n", end="\n" * bool(child.diagnostics), file=sys.stderr)
    shutil.rmtree(cache, ignore_errors=True)  # every layer is a commit by now


def main() -> int:
    """Parse the command line, and run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C kills it at once, which is safe
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    match arguments:
        case [repo, image]:
            pass
        case _:
            sys.exit("usage: updater.py REPO IMAGE [-- OPTIONS OF IMGPROXY]")
    try:
        run(Path(repo), image, options)
    except (parent.ParentError, FailedError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return TRY_AGAIN if getattr(error, "retryable", False) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

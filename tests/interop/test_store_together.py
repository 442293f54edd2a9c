"""Many processes that change one store at the same time, and readers meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.commands import Done, run
from support.images import REF_NAME, Json, Layout, digest_of, named
from support.parent import INSECURE, LIMIT
from support.servers import require

from imgproxy.store import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COUNT = 8


def wanted(layout: Layout, entry: Json) -> dict[str, bytes]:
    """Return the content of an image, by digest. Raises `FileNotFoundError`."""
    document = layout.document(entry)
    parts = (entry, document["config"], *document["layers"])
    return {each["digest"]: layout.read(each["digest"]) for each in parts}


def entries(layout: Layout) -> list[Json]:
    found: list[Json] = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    return found


class Reader:
    """Reads all that is named, again and again."""

    def __init__(self, store: Layout) -> None:
        self._store = store
        self.wrong: list[str] = []
        self.rounds = 0

    def read(self) -> None:
        """Read everything once, and note what is torn or missing."""
        for entry in entries(self._store):
            try:
                found = wanted(self._store, entry)
            except FileNotFoundError as error:
                # a name may have gone, and its blobs with it, since the index was read
                if entry in entries(self._store):
                    self.wrong.append(f"{entry}: {error}")
                continue
            self.wrong += [digest for digest, each in found.items() if digest_of(each) != digest]
        self.rounds += 1


class Skopeo:
    """Reads an image by skopeo, again and again."""

    def __init__(self, store: Layout, name: str, directory: Path) -> None:
        program = require("skopeo")
        to = f"dir:{directory / 'read'}"
        self._command = [program, "--insecure-policy", "copy", f"oci:{store.path}:{name}", to]
        self.wrong: list[str] = []
        self.rounds = 0

    def read(self) -> None:
        """Read the image once, and note what skopeo says if it cannot."""
        done = subprocess.run(
            self._command, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        self.wrong += [done.stderr] * bool(done.returncode)
        self.rounds += 1


@contextmanager
def going_on(*reads: Callable[[], None]) -> Iterator[None]:
    """Call each function again and again during the block, and once more after it."""
    over = threading.Event()

    def loop(read: Callable[[], None]) -> None:
        while not over.is_set():
            read()
        read()

    with ThreadPoolExecutor(len(reads)) as pool:
        futures = [pool.submit(loop, each) for each in reads]
        try:
            yield
        finally:
            over.set()
    for each in futures:
        each.result()


@pytest.mark.slow
def test_no_name_is_lost_and_nobody_sees_a_torn_file(tmp_path: Path) -> None:
    """Pulls, tags and removals of as many processes, and `gc` without a grace period."""
    source, store = Layout(tmp_path / "source"), Layout(tmp_path / "store")
    images = [
        source.image(f"layer {n}".encode() * 100_000, b"shared" * 100_000) for n in range(COUNT)
    ]
    kept = source.image(b"kept" * 1000)
    source.save(*(named(image, f"n{n}") for n, image in enumerate(images)), named(kept, "kept"))
    at = f"oci:{store.path}"

    def pull(name: str, new: str) -> Done:
        return run("pull", INSECURE, f"oci:{source.path}:{name}", f"{at}:{new}")

    for name in ("kept", *(f"n{n}" for n in range(COUNT))):
        ref = name if name == "kept" else f"old-{name}"
        assert run("pull", INSECURE, f"oci:{source.path}:{name}", f"{at}:{ref}").status == 0

    tasks: list[Callable[[], Done]] = []
    for n in range(COUNT):
        # blobs that only the name has that is being removed, are pulled under another one
        tasks += [
            lambda n=n: pull(f"n{n}", f"new-{n}"),  # type: ignore[misc]
            lambda n=n: run("tag", f"{at}:kept", f"tag-{n}"),  # type: ignore[misc]
            lambda n=n: run("rm", f"{at}:old-n{n}"),  # type: ignore[misc]
        ]
        if n % 2:
            tasks.append(lambda: run("gc", at, "--grace=0"))
    reader, skopeo = Reader(store), Skopeo(store, "kept", tmp_path)
    with going_on(reader.read, skopeo.read), ThreadPoolExecutor(COUNT) as pool:
        done = [each.result() for each in [pool.submit(task) for task in tasks]]
    assert [each.stderr for each in done if each.status] == []
    assert (reader.wrong, skopeo.wrong) == ([], [])
    assert min(reader.rounds, skopeo.rounds) > 2
    names = {each["annotations"][REF_NAME]: each["digest"] for each in entries(store)}
    assert names == {
        "kept": kept["digest"],
        **{f"new-{n}": image["digest"] for n, image in enumerate(images)},
        **{f"tag-{n}": kept["digest"] for n in range(COUNT)},
    }
    assert run("gc", at, "--grace=0").status == 0
    there = {digest for entry in entries(store) for digest in wanted(store, entry)}
    assert {f"sha256:{f.name}" for f in store.path.glob("blobs/sha256/*")} == there
    assert run("verify", at).status == 0


@pytest.mark.slow
def test_a_pull_that_takes_long_neither_waits_for_gc_nor_loses_to_it(tmp_path: Path) -> None:
    """It relies on a blob that nothing names any more, and has its other one from a slow source."""
    source, store = Layout(tmp_path / "source"), Layout(tmp_path / "store")
    old, new = source.image(b"shared" * 999), source.image(b"shared" * 999, b"new" * 999)
    source.save(named(old, "old"), named(new, "new"))
    at = f"oci:{store.path}"
    assert run("pull", INSECURE, f"oci:{source.path}:old", f"{at}:old").status == 0
    assert run("rm", f"{at}:old").status == 0
    # Who has the lock of a blob is fetching it: the pull waits for us, and gc waits for neither.
    (_, layer) = source.layers(new)

    part = store.path / ".imgproxy/partial" / layer["digest"].replace(":", "-")
    lock = locks.try_lock(str(part), locks.EXCLUSIVE)
    assert lock is not None
    with ThreadPoolExecutor(1) as pool, lock:
        pulling = pool.submit(run, "pull", INSECURE, f"oci:{source.path}:new", f"{at}:new")
        manifest = store.file(new["digest"])
        while not (manifest.exists() and layer["digest"] in relied_on(store)):
            assert not pulling.done(), pulling.result().stderr
        done = run("gc", at, "--grace=0", "--format=json")
        assert done.status == 0
        gone = {old["digest"], store_config(source, old)}
        assert set(done.json()["blobs"]) == gone
        lock.close()
        assert pulling.result().status == 0
    assert run("verify", at, "--format=json").json()["blobs"] == 4
    assert set(wanted(store, new)) == {f"sha256:{f.name}" for f in store.path.glob("blobs/*/*")}


def relied_on(store: Layout) -> str:
    return "".join(each.read_text() for each in store.path.glob(".imgproxy/users/*"))


def store_config(layout: Layout, image: Json) -> str:
    digest: str = layout.document(image)["config"]["digest"]
    return digest

"""The experiments of the bench, each yielded while its image is staged.

- `version`, `usage`: the two shortest runs of the program, against the bare interpreter;
- `start-SOURCE`: spawn → first manifest, against the import of the libraries alone;
- `far-ACCESS`: the same from a registry over TLS at a round trip of 50 ms, with the counts of
  requests and connections, `anonymous` and with a `token`;
- `blob-SOURCE`: one large blob: throughput, processor time and peak memory; against `openssl dgst`
  of the same file, the least cost of verification, over TLS against `curl` into that; its
  processor time against a bare loop that receives, hashes and sends;
- `first-SOURCE`: the first byte of that blob, against that of a blob of 1 MiB;
- `pair-SOURCE`: two such blobs over two conversations at once, against one;
- `crowd-SOURCE`: one blob over eight conversations at once, against one;
- `size-SOURCE`: throughput and peak memory of smaller and larger blobs;
- `archive-KIND`: a Docker archive, plain or compressed, against the same image in a layout, and
  against programs that decompress and hash it;
- `layers-SOURCE`: the cost of a request, with many small blobs, one after the other; against the
  registry's own speed, where there is one.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import archives, loops
from .child import FAULTS, describe, run
from .contenders import (
    BARE,
    BARE_NAME,
    LIBRARIES,
    LIBRARIES_NAME,
    OPENSSL,
    OPENSSL_NAME,
    OURS,
    Contender,
    Imgproxy,
)
from .far import ROUND_TRIP
from .loops import CURL_NAME, LOOP_NAME
from .stage import MIB, REPOSITORY, Image, Stage
from .turns import Attempt, Experiment, Measure, Sample
from .wire import HttpParent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from support.images import Json

    from .far import Far

GIB = 1 << 30
USAGE = 2  # the exit status of a usage error
REGISTRY_NAME = "the registry itself"
SMALL = 4 << 10  # one of many layers
SOURCES = {"oci": "`oci:`", "http": "`docker://` over HTTP", "https": "`docker://` over TLS"}
PLAIN_SOURCES = ("oci", "http")  # growth needs no third
ACCESS = {"anonymous": False, "token": True}  # whether tokens are wanted
ALONE = f"{OURS}, one blob"
SHORT = f"{OURS}, of 1 MiB"
CROWD = 8
CROWD_SIZE = 256 * MIB  # for each of the crowd, at most
ROWS = [
    *("version", "usage"),
    *(f"{row}-{source}" for row in ("start", "blob", "first") for source in SOURCES),
    *(f"far-{access}" for access in ACCESS),
    *(f"{row}-{source}" for row in ("pair", "crowd") for source in PLAIN_SOURCES),
    *(f"{row}-{source}" for row in ("size", "layers") for source in PLAIN_SOURCES),
    *("archive-plain", "archive-gzip", "archive-zstd"),
]

LIFE = Measure("spawn → exit", lambda s: f"{s * 1000:.0f} ms", "less")
START = Measure("spawn → first manifest", lambda s: f"{s * 1000:.0f} ms", "less")
THROUGHPUT = Measure("throughput", lambda b: f"{b / 1e6:.0f} MB/s", "more")
CPU = Measure("processor time", lambda s: f"{s:.2f} s/GiB", "less")
PEAK = Measure("peak memory", lambda b: f"{b / 1e6:.1f} MB", "less")
FIRST = Measure("request → first byte", lambda s: f"{s * 1000:.1f} ms", "less")
CONNECTIONS = Measure("connections", lambda n: f"{n:.0f}", "less")
REQUESTS = Measure("requests", CONNECTIONS.show, "less")
ROUND_TRIPS = Measure("round trips", CONNECTIONS.show, "less")
TOTAL = Measure("throughput in all", THROUGHPUT.show, "more")
WHOLE = Measure("spawn → all layers", lambda s: f"{s:.2f} s", "less")
PIPED = Measure("spawn → all layers, beside a pipeline", WHOLE.show, "less")
RATE = Measure("one after the other", lambda n: f"{n:.0f} blobs/s", "more")


@dataclass(frozen=True)
class Plan:
    """The parameters of a run."""

    contenders: Sequence[Contender]
    limits: Collection[str]  # names of the limits that can be had
    size: int  # of the one large blob
    sizes: Sequence[int]  # of smaller and larger ones
    counts: Sequence[int]  # of layers
    archives: Sequence[int]  # sizes of archives
    only: Sequence[str]  # rows, or groups of them; none for all

    def wants(self, row: str) -> bool:
        return not self.only or any(belongs(row, group) for group in self.only)


def belongs(row: str, group: str) -> bool:
    """Return whether a row is chosen, by its name or by the part before the source."""
    return group in (row, row.partition("-")[0])


def experiments(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    """Yield the chosen experiments in the order of the table."""
    yield from _short_lives(plan)
    yield from _starts(plan, stage)
    yield from _far_starts(plan, stage)
    yield from _large_blob(plan, stage)
    yield from _first_bytes(plan, stage)
    yield from _at_once(plan, stage, "pair", 2, plan.size)
    yield from _at_once(plan, stage, "crowd", CROWD, min(plan.size, CROWD_SIZE))
    for size in plan.sizes:
        yield from _other_blob(plan, stage, size)
    for count in plan.counts:
        yield from _many_blobs(plan, stage, count)
    for size in plan.archives:
        yield from _archives(plan, stage, size)


def _ours(plan: Plan) -> list[Imgproxy]:
    """Return the program that is measured, without earlier ones; empty where it does not run."""
    return [
        contender
        for contender in plan.contenders
        if isinstance(contender, Imgproxy) and contender.name == OURS
    ]


def _short_lives(plan: Plan) -> Iterator[Experiment]:
    for row, option, status in [("version", "--version", 0), ("usage", "--no-such-option", USAGE)]:
        attempts: dict[str, Attempt] = {
            contender.name: partial(_life, (*contender.command, option), status)
            for contender in plan.contenders
            if isinstance(contender, Imgproxy)
        }
        attempts[BARE_NAME] = partial(_life, BARE, 0)
        if plan.wants(row):
            yield Experiment(row, f"`{option}`", (LIFE,), attempts, BARE_NAME)


def _starts(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    limits: dict[str, Attempt] = {}
    if LIBRARIES_NAME in plan.limits:
        limits[LIBRARIES_NAME] = _import
    for source, image in _staged(plan, stage, "start", [SMALL]):
        attempts = _attempts(plan, _start, image.references[source])
        row, subject = f"start-{source}", SOURCES[source]
        yield Experiment(row, subject, (START,), attempts | limits, LIBRARIES_NAME)


def _far_starts(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    wanted = {f"far-{access}": guarded for access, guarded in ACCESS.items()}
    wanted = {row: guarded for row, guarded in wanted.items() if plan.wants(row)}
    if not wanted:
        return
    try:
        with stage.image([SMALL]):
            for row, guarded in wanted.items():
                with stage.far(guarded=guarded) as (far, reference):
                    attempts: dict[str, Attempt] = {
                        contender.name: partial(_far_start, contender, far, reference)
                        for contender in plan.contenders
                    }
                    subject = f"TLS at a round trip of {ROUND_TRIP * 1000:.0f} ms"
                    subject += ", with a token" if guarded else ", anonymous"
                    measures = (START, ROUND_TRIPS, CONNECTIONS, REQUESTS)
                    yield Experiment(row, subject, measures, attempts)
    except FAULTS as error:
        stage.notes.append(f"Rows far-* are left out: {describe(error)}.")


def _large_blob(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "blob", [plan.size]):
        experiment = _blob_experiment(plan, "blob", source, image, (THROUGHPUT, CPU, PEAK))
        path, start = f"/v2/{REPOSITORY}/blobs/{image.layers[0]['digest']}", "/v2/"
        if source == "oci":
            whole, empty = loops.file_url(image.blob), loops.file_url(Path("/dev/null"))
        else:
            whole, empty = stage.url(source, path), stage.url(source, start)
        size, limit = image.layers[0]["size"], OPENSSL_NAME
        attempts = {**experiment.attempts, LOOP_NAME: partial(_loop, whole, empty, size)}
        if source == "https" and CURL_NAME in plan.limits and OPENSSL_NAME in plan.limits:
            limit = CURL_NAME
            attempts[CURL_NAME] = partial(_curl, whole, empty, size)
        yield replace(experiment, attempts=attempts, limit={THROUGHPUT: limit, CPU: LOOP_NAME})


def _first_bytes(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "first", [plan.size, MIB]):
        attempts = _attempts(plan, partial(_first_byte, 0), image.references[source])
        for contender in _ours(plan):
            attempts[SHORT] = partial(_first_byte, 1, contender, image.references[source])
        subject = f"{plan.size // MIB} MiB, {SOURCES[source]}"
        yield Experiment(f"first-{source}", subject, (FIRST,), attempts, SHORT)


def _at_once(plan: Plan, stage: Stage, row: str, count: int, size: int) -> Iterator[Experiment]:
    """Measure only imgproxy: a peer serves one conversation."""
    for source, image in _staged(plan, stage, row, [size] * (2 if row == "pair" else 1)):
        attempts: dict[str, Attempt] = {
            contender.name: partial(_together, contender, image.references[source], count)
            for contender in plan.contenders
            if isinstance(contender, Imgproxy)
        }
        for contender in _ours(plan):
            attempts[ALONE] = partial(_together, contender, image.references[source], 1)
        subject = f"{count} conversations at once, {size // MIB} MiB each, {SOURCES[source]}"
        yield Experiment(f"{row}-{source}", subject, (TOTAL, PEAK), attempts, ALONE)


def _other_blob(plan: Plan, stage: Stage, size: int) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "size", [size]):
        yield _blob_experiment(plan, "size", source, image, (THROUGHPUT, PEAK))


def _blob_experiment(
    plan: Plan, row: str, source: str, image: Image, measures: tuple[Measure, ...]
) -> Experiment:
    attempts = _attempts(plan, _blob, image.references[source])
    if OPENSSL_NAME in plan.limits:
        attempts[OPENSSL_NAME] = partial(_digest, image)
    subject = f"{image.layers[0]['size'] // MIB} MiB, {SOURCES[source]}"
    return Experiment(f"{row}-{source}", subject, measures, attempts, OPENSSL_NAME)


def _many_blobs(plan: Plan, stage: Stage, count: int) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "layers", [SMALL] * count):
        attempts = _attempts(plan, _blobs, image.references[source])
        if source != "oci":
            attempts[REGISTRY_NAME] = partial(_registry, stage, source, image)
        subject = f"{count} x {SMALL >> 10} KiB, {SOURCES[source]}"
        yield Experiment(f"layers-{source}", subject, (RATE,), attempts, REGISTRY_NAME)


def _archives(plan: Plan, stage: Stage, size: int) -> Iterator[Experiment]:
    kinds = [kind for kind in ("plain", *archives.COMPRESSORS) if plan.wants(f"archive-{kind}")]
    if not kinds:
        return
    try:
        with stage.folder(4 * size) as folder:
            references, _ = archives.stage(folder, size)
            for kind in kinds:
                yield _archive(plan, kind, references, size)
    except FAULTS as error:
        stage.notes.append(f"Rows archive-* of {size} bytes are left out: {describe(error)}.")


def _archive(plan: Plan, kind: str, references: Mapping[str, str], size: int) -> Experiment:
    attempts = _attempts(plan, _whole, references[kind])
    path = Path(references[kind].partition(":")[2])
    layout = f"{OURS}, the same layout"
    limits = {START: layout, WHOLE: layout}
    for contender in _ours(plan):
        attempts[layout] = partial(_whole, contender, references["oci"])
    if kind == "gzip":
        limits[WHOLE] = archives.ZLIB_NAME
        attempts[archives.ZLIB_NAME] = partial(_piped, WHOLE, archives.zlib_passes(path))
    if kind != "plain":
        program = {"gzip": "zcat", "zstd": "zstd -dc"}[kind]
        limits[PIPED] = f"{program} \\| sha256sum"
        attempts[limits[PIPED]] = partial(_piped, PIPED, archives.pipeline(path, program))
    measures = (START, WHOLE, PIPED, PEAK) if kind != "plain" else (START, WHOLE, PEAK)
    subject = f"{size // MIB} MiB, {kind}"
    return Experiment(f"archive-{kind}", subject, measures, attempts, limits)


def _staged(
    plan: Plan, stage: Stage, row: str, sizes: Sequence[int]
) -> Iterator[tuple[str, Image]]:
    """Stage an image, if a row of it is chosen; yield it once for each source."""
    rows = {source: f"{row}-{source}" for source in stage.sources}
    wanted = [source for source, name in rows.items() if name in ROWS and plan.wants(name)]
    if not wanted:
        return
    try:
        with stage.image(sizes) as image:
            yield from ((source, image) for source in wanted)
    except FAULTS as error:
        title = f"{len(sizes)} of {sizes[0]} bytes"
        stage.notes.append(f"Rows {row}-* with {title} are left out: {describe(error)}.")


def _attempts(
    plan: Plan, attempt: Callable[[Contender, str], Sample], reference: str
) -> dict[str, Attempt]:
    return {contender.name: partial(attempt, contender, reference) for contender in plan.contenders}


def _life(argv: Sequence[str], status: int) -> Sample:
    return {LIFE: run(argv, expected=status).wall}


def _import() -> Sample:
    return {START: run(LIBRARIES).wall}


def _start(contender: Contender, reference: str) -> Sample:
    begun = time.perf_counter()
    with contender.session(reference) as session:
        session.manifest()
        seconds = time.perf_counter() - begun
        session.quit()
    return {START: seconds}


def _far_start(contender: Contender, far: Far, reference: str) -> Sample:
    before, begun = far.counts(), time.perf_counter()
    with contender.session(reference, far.authority) as session:
        session.manifest()
        seconds, counts = time.perf_counter() - begun, far.counts().since(before)
        session.quit()
    return {
        START: seconds,
        ROUND_TRIPS: counts.round_trips,
        CONNECTIONS: counts.connections,
        REQUESTS: counts.requests,
    }


def _first_byte(at: int, contender: Contender, reference: str) -> Sample:
    with contender.session(reference) as session:
        layer = session.manifest()["layers"][at]
        begun = time.perf_counter()
        session.first_byte(layer)
        return {FIRST: time.perf_counter() - begun}


def _together(contender: Imgproxy, reference: str, count: int) -> Sample:
    """Read a blob over each conversation, at the same time."""
    # Threads may outlive the session, whose end ends them in any case.
    with (
        ThreadPoolExecutor(count) as pool,
        contender.crowd(reference, count) as (child, parents),
    ):
        layers = json.loads(parents[0].fetch("/manifest"))["layers"]
        shares = [(parent, layers[n % len(layers)]) for n, parent in enumerate(parents)]
        begun = time.perf_counter()
        running = [pool.submit(parent.blob, "", layer) for parent, layer in shares]
        for each in running:
            each.result()
        seconds = time.perf_counter() - begun
        peak = child.peak_memory()
        parents[0].quit()
        child.finish()
    return {TOTAL: sum(layer["size"] for _, layer in shares) / seconds, PEAK: peak}


def _loop(whole: str, empty: str, size: int) -> Sample:
    throughput, cpu = loops.timed(size, loops.loop(empty, 0), loops.loop(whole, size))
    return {THROUGHPUT: throughput, CPU: cpu / size * GIB}


def _curl(whole: str, empty: str, size: int) -> Sample:
    start, end = loops.piped_into_openssl(empty), loops.piped_into_openssl(whole)
    throughput, cpu = loops.timed(size, start, end)
    return {THROUGHPUT: throughput, CPU: cpu / size * GIB}


def _blob(contender: Contender, reference: str) -> Sample:
    """Time the blob alone: a start has rows of its own, and its processor time is subtracted."""
    with contender.session(reference) as session:
        session.manifest()
        start = session.quit()
    with contender.session(reference) as session:
        [layer] = session.manifest()["layers"]
        begun = time.perf_counter()
        session.blob(layer)
        seconds = time.perf_counter() - begun
        peak = session.child.peak_memory()
        whole = session.quit()
    size = layer["size"]
    cpu = (whole.cpu - start.cpu) / size * GIB
    return {THROUGHPUT: size / seconds, CPU: cpu, PEAK: peak}


def _whole(contender: Contender, reference: str) -> Sample:
    """Time the requests of an installer: the manifest, and all layers in order."""
    begun = time.perf_counter()
    with contender.session(reference) as session:
        layers = session.manifest()["layers"]
        manifest = time.perf_counter() - begun
        for layer in layers:
            session.blob(layer)
        whole = time.perf_counter() - begun
        peak = session.child.peak_memory()
        session.quit()
    return {START: manifest, WHOLE: whole, PIPED: whole, PEAK: peak}


def _piped(measure: Measure, argv: Sequence[str]) -> Sample:
    return {measure: run(argv).wall}


def _digest(image: Image) -> Sample:
    """Time the limit, without its start, too."""
    start = run([*OPENSSL, "/dev/null"])
    whole = run([*OPENSSL, str(image.blob)])
    size = image.layers[0]["size"]
    cpu = (whole.cpu - start.cpu) / size * GIB
    return {THROUGHPUT: size / (whole.wall - start.wall), CPU: cpu}


def _blobs(contender: Contender, reference: str) -> Sample:
    with contender.session(reference) as session:
        layers = session.manifest()["layers"]
        sample = _rate(layers, session.blob)
        session.quit()
    return sample


def _registry(stage: Stage, source: str, image: Image) -> Sample:
    """Time the limit: the same blobs directly from the registry."""
    with stage.connect(source) as sock:
        parent = HttpParent(sock)
        return _rate(image.layers, partial(parent.blob, f"/v2/{REPOSITORY}"))


def _rate(layers: Sequence[Json], read: Callable[[Json], None]) -> Sample:
    begun = time.perf_counter()
    for layer in layers:
        read(layer)
    return {RATE: len(layers) / (time.perf_counter() - begun)}

"""The experiments of the bench, each yielded while its image is staged.

- `version`, `usage`: the two shortest runs of the program, against the bare interpreter;
- `start-SOURCE`: spawn → first manifest, against the import of the libraries alone;
- `far-ACCESS`: the same from a registry over TLS at a round trip of 50 ms, with the counts of
  requests and connections, `anonymous` and with a `token`;
- `line-LAYERS`: all layers of an image from there, with a token and a redirect to another host, in
  every way that they may be asked for; `-slow` at 20 MB/s a connection;
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

- `pull-new`: a copy of an image of many layers, one of them large, in a layout of its own;
- `pull-present`: the same into a layout that has it;
- `pull-shared`: the same into a layout that has an older image, with most of the layers;
- `unpack-…`: the root file systems in `trees`, from a layout into a directory.

As a registry, beside others that verify nothing:

- `registry-N`: one large blob to N clients at once, from a server that has just started, and again:
  throughput, processor time and peak memory of the server; against one `openssl dgst`;
- `registry-head`: the head of a manifest by its tag, over one connection.

With imgproxy in skopeo's place, behind the same protocol as its peers:

- `initialize`: spawn → the answer to `Initialize`, against the bare interpreter;
- `pipe-SOURCE`: one large blob through a pipe, as in `blob-SOURCE`;
- `info-oci`: digest, size and media type of each of many layers, through a pipe;
- `pipes-SOURCE`: many small blobs, one after the other, each through a pipe of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import archives, loops, samples, trees, whole
from .child import FAULTS, describe
from .contenders import (
    BARE,
    BARE_NAME,
    LIBRARIES_NAME,
    OPENSSL_NAME,
    OURS,
    Contender,
    Imgproxy,
    Skopeo,
)
from .line import ROUND_TRIP
from .loops import CURL_NAME, LOOP_NAME
from .pulls import Pulls, pullers
from .registries import DISTRIBUTION, registries
from .samples import (
    COLD,
    CONNECTIONS,
    CPU,
    FIRST,
    HEADS,
    INFO,
    INITIALIZED,
    LIFE,
    PEAK,
    PIPED,
    RATE,
    REQUESTS,
    ROUND_TRIPS,
    SPENT,
    START,
    THROUGHPUT,
    TOTAL,
    WARM,
    WHOLE,
    WRITTEN,
)
from .stage import MIB, REPOSITORY, Image, Stage
from .turns import Attempt, Experiment, Measure, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

USAGE = 2  # the exit status of a usage error
REGISTRY_NAME = "the registry itself"
SMALL = 4 << 10  # one of many layers
SOURCES = {"oci": "`oci:`", "http": "`docker://` over HTTP", "https": "`docker://` over TLS"}
PLAIN_SOURCES = ("oci", "http")  # growth needs no third
ACCESS = {"anonymous": False, "token": True}  # whether tokens are wanted
RATE_OF_SLOW = 20e6  # bytes per second and connection
LINES = {  # how many layers of which size, and whether the line is slow as well
    "line-layers": (64, MIB, False),
    "line-small": (200, 20 << 10, False),
    "line-large": (8, 32 * MIB, False),
    "line-layers-slow": (64, MIB, True),
    "line-large-slow": (8, 32 * MIB, True),
}
QUICK_LINES = {"line-layers": (8, MIB, False)}
ALONE = f"{OURS}, one blob"
SHORT = f"{OURS}, of 1 MiB"
CROWD = 8
PULLED, SHARED = 64, 58  # layers of a pulled image, and of the older one
PULLS = {
    "new": ("", Pulls.new),
    "present": (", there already", Pulls.present),
    "shared": (f", {SHARED} of them there", Pulls.shared),
}
CLIENTS = {1: 100 * MIB, 8: 100 * MIB, 64: 100 * MIB, 200: 32 * MIB}  # for each
QUICK_CLIENTS = {8: 16 * MIB}
HEAD_COUNT = 500  # requests for the head of a manifest
PULLED_SIZE = 512 * MIB  # of the largest layer of a pull, at most
CROWD_SIZE = 256 * MIB  # for each of the crowd, at most
ROWS = [
    *("version", "usage"),
    *(f"{row}-{source}" for row in ("start", "blob", "first") for source in SOURCES),
    *(f"far-{access}" for access in ACCESS),
    *LINES,
    *(f"{row}-{source}" for row in ("pair", "crowd") for source in PLAIN_SOURCES),
    *(f"{row}-{source}" for row in ("size", "layers") for source in PLAIN_SOURCES),
    *("archive-plain", "archive-gzip", "archive-zstd"),
    *(f"pull-{kind}" for kind in PULLS),
    *(f"unpack-{name}" for name in trees.WORKS),
    *(f"registry-{count}" for count in CLIENTS),
    *("registry-head", "initialize", "info-oci"),
    *(f"{row}-{source}" for row in ("pipe", "pipes") for source in PLAIN_SOURCES),
]


@dataclass(frozen=True)
class Plan:
    """The parameters of a run."""

    contenders: Sequence[Contender]
    limits: Collection[str]  # names of the limits that can be had
    size: int  # of the one large blob
    sizes: Sequence[int]  # of smaller and larger ones
    counts: Sequence[int]  # of layers
    lines: Mapping[str, tuple[int, int, bool]]  # whole images from afar; see `LINES`
    archives: Sequence[int]  # sizes of archives
    clients: Mapping[int, int]  # counts of clients of a registry, with the size of the blob
    trees: Collection[str]  # what is unpacked; see `trees.WORKS`
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
    for row in plan.lines:
        yield from _whole_images(plan, stage, row)
    yield from _large_blob(plan, stage)
    yield from _first_bytes(plan, stage)
    yield from _at_once(plan, stage, "pair", 2, plan.size)
    yield from _at_once(plan, stage, "crowd", CROWD, min(plan.size, CROWD_SIZE))
    for size in plan.sizes:
        yield from _other_blob(plan, stage, size)
    for count in plan.counts:
        yield from _many_blobs(plan, stage, "layers", count)
    for size in plan.archives:
        yield from _archives(plan, stage, size)
    yield from _pulls(plan, stage)
    for name in plan.trees:
        yield from _unpacked(plan, stage, name)
    for count, size in plan.clients.items():
        yield from _registry(plan, stage, f"registry-{count}", size, count)
    yield from _registry(plan, stage, "registry-head", SMALL)
    yield from _in_place_of_skopeo(plan, stage)


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
            contender.name: partial(samples.life, (*contender.command, option), status)
            for contender in plan.contenders
            if isinstance(contender, Imgproxy)
        }
        attempts[BARE_NAME] = partial(samples.life, BARE, 0)
        if plan.wants(row):
            yield Experiment(row, f"`{option}`", (LIFE,), attempts, BARE_NAME)


def _starts(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    limits: dict[str, Attempt] = {}
    if LIBRARIES_NAME in plan.limits:
        limits[LIBRARIES_NAME] = samples.import_libraries
    for source, image in _staged(plan, stage, "start", [SMALL]):
        attempts = _attempts(plan, samples.start, image.references[source])
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
                        contender.name: partial(samples.far_start, contender, far, reference)
                        for contender in plan.contenders
                    }
                    subject = f"TLS at a round trip of {ROUND_TRIP * 1000:.0f} ms"
                    subject += ", with a token" if guarded else ", anonymous"
                    measures = (START, ROUND_TRIPS, CONNECTIONS, REQUESTS)
                    yield Experiment(row, subject, measures, attempts)
    except FAULTS as error:
        stage.notes.append(f"Rows far-* are left out: {describe(error)}.")


def _whole_images(plan: Plan, stage: Stage, row: str) -> Iterator[Experiment]:
    if not plan.wants(row):
        return
    count, size, is_slow = plan.lines[row]
    rate = RATE_OF_SLOW if is_slow else 0.0
    try:
        with (
            stage.folder(2 * count * size) as folder,
            stage.image([size] * count) as image,
            stage.far(guarded=True, blobs=image.layout, rate=rate) as (far, reference),
        ):
            attempts = whole.attempts(plan.contenders, far, reference, folder)
            subject = f"{count} x {size >> 10} KiB at a round trip of {ROUND_TRIP * 1000:.0f} ms"
            subject += ", 20 MB/s a connection" if is_slow else ""
            measures = (WHOLE, SPENT, PEAK, CONNECTIONS, REQUESTS)
            limits = {} if is_slow else {WHOLE: whole.LIMIT}
            yield Experiment(row, subject, measures, attempts, limits, whole.WAYS)
    except FAULTS as error:
        stage.notes.append(f"Row {row} is left out: {describe(error)}.")


def _large_blob(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "blob", [plan.size]):
        experiment = _blob_experiment(plan, "blob", source, image, (THROUGHPUT, CPU, PEAK))
        path, start = f"/v2/{REPOSITORY}/blobs/{image.layers[0]['digest']}", "/v2/"
        if source == "oci":
            whole, empty = loops.file_url(image.blob), loops.file_url(Path("/dev/null"))
        else:
            whole, empty = stage.url(source, path), stage.url(source, start)
        size, limit = image.layers[0]["size"], OPENSSL_NAME
        attempts = {
            **experiment.attempts,
            LOOP_NAME: partial(samples.bare_loop, whole, empty, size),
        }
        if source == "https" and CURL_NAME in plan.limits and OPENSSL_NAME in plan.limits:
            limit = CURL_NAME
            attempts[CURL_NAME] = partial(samples.curl, whole, empty, size)
        yield replace(experiment, attempts=attempts, limit={THROUGHPUT: limit, CPU: LOOP_NAME})


def _first_bytes(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "first", [plan.size, MIB]):
        attempts = _attempts(plan, partial(samples.first_byte, 0), image.references[source])
        for contender in _ours(plan):
            attempts[SHORT] = partial(samples.first_byte, 1, contender, image.references[source])
        subject = f"{plan.size // MIB} MiB, {SOURCES[source]}"
        yield Experiment(f"first-{source}", subject, (FIRST,), attempts, SHORT)


def _at_once(plan: Plan, stage: Stage, row: str, count: int, size: int) -> Iterator[Experiment]:
    """Measure only imgproxy: a peer serves one conversation."""
    for source, image in _staged(plan, stage, row, [size] * (2 if row == "pair" else 1)):
        attempts: dict[str, Attempt] = {
            contender.name: partial(samples.together, contender, image.references[source], count)
            for contender in plan.contenders
            if isinstance(contender, Imgproxy)
        }
        for contender in _ours(plan):
            attempts[ALONE] = partial(samples.together, contender, image.references[source], 1)
        subject = f"{count} conversations at once, {size // MIB} MiB each, {SOURCES[source]}"
        yield Experiment(f"{row}-{source}", subject, (TOTAL, PEAK), attempts, ALONE)


def _other_blob(plan: Plan, stage: Stage, size: int) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "size", [size]):
        yield _blob_experiment(plan, "size", source, image, (THROUGHPUT, PEAK))


def _blob_experiment(
    plan: Plan, row: str, source: str, image: Image, measures: tuple[Measure, ...]
) -> Experiment:
    attempts = _attempts(plan, samples.blob, image.references[source])
    if OPENSSL_NAME in plan.limits:
        attempts[OPENSSL_NAME] = partial(samples.digest, image)
    subject = f"{image.layers[0]['size'] // MIB} MiB, {SOURCES[source]}"
    return Experiment(f"{row}-{source}", subject, measures, attempts, OPENSSL_NAME)


def _many_blobs(plan: Plan, stage: Stage, row: str, count: int) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, row, [SMALL] * count):
        attempts = _attempts(plan, samples.blobs, image.references[source])
        if source != "oci":
            attempts[REGISTRY_NAME] = partial(samples.registry, stage, source, image)
        subject = f"{count} x {SMALL >> 10} KiB, {SOURCES[source]}"
        yield Experiment(f"{row}-{source}", subject, (RATE,), attempts, REGISTRY_NAME)


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
    attempts = _attempts(plan, samples.whole, references[kind])
    path = Path(references[kind].partition(":")[2])
    layout = f"{OURS}, the same layout"
    limits = {START: layout, WHOLE: layout}
    for contender in _ours(plan):
        attempts[layout] = partial(samples.whole, contender, references["oci"])
    if kind == "gzip":
        limits[WHOLE] = archives.ZLIB_NAME
        attempts[archives.ZLIB_NAME] = partial(samples.piped, WHOLE, archives.zlib_passes(path))
    if kind != "plain":
        program = {"gzip": "zcat", "zstd": "zstd -dc"}[kind]
        limits[PIPED] = f"{program} \\| sha256sum"
        attempts[limits[PIPED]] = partial(samples.piped, PIPED, archives.pipeline(path, program))
    measures = (START, WHOLE, PIPED, PEAK) if kind != "plain" else (START, WHOLE, PEAK)
    subject = f"{size // MIB} MiB, {kind}"
    return Experiment(f"archive-{kind}", subject, measures, attempts, limits)


def _pulls(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    kinds = [kind for kind in PULLS if plan.wants(f"pull-{kind}")]
    if not kinds or "http" not in stage.sources:
        return
    large = min(plan.size, PULLED_SIZE)
    sizes = [large, *[large // 512] * (PULLED - 1)]
    try:
        with stage.folder(8 * sum(sizes)) as folder, stage.image(sizes, older=SHARED) as image:
            for kind in kinds:
                subject, attempt = PULLS[kind]
                attempts: dict[str, Attempt] = {
                    puller.name: partial(
                        attempt, Pulls(puller, image.references["http"], folder, samples.written)
                    )
                    for puller in pullers(plan.contenders)
                }
                subject = f"{PULLED} layers, one of {large // MIB} MiB{subject}"
                yield Experiment(f"pull-{kind}", subject, (WRITTEN, PEAK), attempts)
    except FAULTS as error:
        stage.notes.append(f"Rows pull-* are left out: {describe(error)}.")


def _unpacked(plan: Plan, stage: Stage, name: str) -> Iterator[Experiment]:
    if not plan.wants(f"unpack-{name}"):
        return
    work, size = trees.WORKS[name], min(plan.size, trees.LARGE)
    try:
        with stage.folder(2 * size) as folder:
            layers = trees.stage(work, size, folder / "layout")
            remote = stage.push(folder / "layout").get("http")
            attempts: dict[str, Attempt] = {
                program: partial(trees.unpack, command, folder, samples.written)
                for program, command in trees.unpackers(
                    plan.contenders, folder / "layout", layers, remote
                )
            }
            yield Experiment(f"unpack-{name}", work.subject, (WRITTEN, PEAK), attempts, trees.TAR)
    except FAULTS as error:
        stage.notes.append(f"Row unpack-{name} is left out: {describe(error)}.")


def _registry(
    plan: Plan, stage: Stage, row: str, size: int, clients: int = 0
) -> Iterator[Experiment]:
    """Measure so many clients of registries, or where there are none, requests for heads."""
    if not plan.wants(row):
        return
    ours = [each for each in plan.contenders if isinstance(each, Imgproxy)]
    try:
        with stage.folder(size) as folder, stage.image([size]) as image:
            found = list(registries(ours, stage, folder))
            if not clients:
                attempts: dict[str, Attempt] = {
                    each.name: partial(samples.heads, each, image, HEAD_COUNT) for each in found
                }
                subject = "`HEAD` of a manifest by its tag"
                yield Experiment(row, subject, (HEADS,), attempts, DISTRIBUTION)
                return
            attempts = {each.name: partial(samples.clients, each, image, clients) for each in found}
            if OPENSSL_NAME in plan.limits:
                attempts[OPENSSL_NAME] = partial(samples.hashing, image)
            subject = f"{size // MIB} MiB to {clients} at once"
            yield Experiment(row, subject, (COLD, WARM, CPU, PEAK), attempts, OPENSSL_NAME)
    except FAULTS as error:
        stage.notes.append(f"Row {row} is left out: {describe(error)}.")


def _in_place_of_skopeo(plan: Plan, stage: Stage) -> Iterator[Experiment]:
    proxies = [
        contender.in_place_of_skopeo() if isinstance(contender, Imgproxy) else contender
        for contender in plan.contenders
    ]
    peers = [proxy for proxy in proxies if isinstance(proxy, Skopeo)]
    plan = replace(plan, contenders=peers)
    if plan.wants("initialize"):
        attempts: dict[str, Attempt] = {
            peer.name: partial(samples.initialize, peer) for peer in peers
        }
        attempts[BARE_NAME] = samples.bare_interpreter
        yield Experiment("initialize", "skopeo's protocol", (INITIALIZED,), attempts, BARE_NAME)
    for source, image in _staged(plan, stage, "pipe", [plan.size]):
        yield _blob_experiment(plan, "pipe", source, image, (THROUGHPUT, CPU, PEAK))
    for count in plan.counts[-1:]:
        yield from _layer_info(plan, peers, stage, count)
        yield from _many_blobs(plan, stage, "pipes", count)


def _layer_info(
    plan: Plan, peers: Sequence[Skopeo], stage: Stage, count: int
) -> Iterator[Experiment]:
    for source, image in _staged(plan, stage, "info", [SMALL] * count):
        attempts: dict[str, Attempt] = {
            peer.name: partial(samples.layer_info, count, peer, image.references[source])
            for peer in peers
        }
        yield Experiment(f"info-{source}", f"{count} layers, {SOURCES[source]}", (INFO,), attempts)


def _staged(
    plan: Plan, stage: Stage, row: str, sizes: Sequence[int]
) -> Iterator[tuple[str, Image]]:
    """Stage an image, if a row of it is chosen; yield it once for each source."""
    rows = {source: f"{row}-{source}" for source in stage.sources}
    wanted = [source for source, name in rows.items() if name in ROWS and plan.wants(name)]
    if not wanted:
        return
    try:
        with stage.image(sizes, pushed=wanted != ["oci"]) as image:
            yield from ((source, image) for source in wanted)
    except FAULTS as error:
        title = f"{len(sizes)} of {sizes[0]} bytes"
        stage.notes.append(f"Rows {row}-* with {title} are left out: {describe(error)}.")


def _attempts(
    plan: Plan, attempt: Callable[[Contender, str], Sample], reference: str
) -> dict[str, Attempt]:
    return {contender.name: partial(attempt, contender, reference) for contender in plan.contenders}

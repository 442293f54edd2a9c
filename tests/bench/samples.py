"""What one attempt of a contender measures."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from . import loops, registries
from .child import BenchError, Child, run
from .contenders import BARE, LIBRARIES, OPENSSL, Contender, Imgproxy, Skopeo
from .stage import GIB, REPOSITORY, Image, Stage
from .turns import Measure, Sample
from .wire import HttpParent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.images import Json

    from .far import Far
    from .registries import Registry

LIFE = Measure("spawn → exit", lambda s: f"{s * 1000:.0f} ms", "less")
START = Measure("spawn → first manifest", lambda s: f"{s * 1000:.0f} ms", "less")
THROUGHPUT = Measure("throughput", lambda b: f"{b / 1e6:.0f} MB/s", "more")
CPU = Measure("processor time", lambda s: f"{s:.2f} s/GiB", "less")
PEAK = Measure("peak memory", lambda b: f"{b / 1e6:.1f} MB", "less")
FIRST = Measure("request → first byte", lambda s: f"{s * 1000:.1f} ms", "less")
CONNECTIONS = Measure("connections", lambda n: f"{n:.0f}", "less")
REQUESTS = Measure("requests", CONNECTIONS.show, "less")
ROUND_TRIPS = Measure("round trips", CONNECTIONS.show, "less")
SPENT = Measure("processor time in all", lambda s: f"{s:.2f} s", "less")
TOTAL = Measure("throughput in all", THROUGHPUT.show, "more")
WHOLE = Measure("spawn → all layers", lambda s: f"{s:.2f} s", "less")
PIPED = Measure("spawn → all layers, beside a pipeline", WHOLE.show, "less")
RATE = Measure("one after the other", lambda n: f"{n:.0f} blobs/s", "more")
COLD = Measure("throughput in all, just started", THROUGHPUT.show, "more")
WARM = Measure("throughput in all, after that", THROUGHPUT.show, "more")
HEADS = Measure("one after the other", lambda n: f"{n:.0f} requests/s", "more")
INITIALIZED = Measure("spawn → initialized", LIFE.show, "less")
WRITTEN = Measure("spawn → exit, all written", WHOLE.show, "less")
INFO = Measure("`GetLayerInfoPiped`", lambda s: f"{s * 1000:.1f} ms", "less")


def life(argv: Sequence[str], status: int) -> Sample:
    return {LIFE: run(argv, expected=status).wall}


def import_libraries() -> Sample:
    return {START: run(LIBRARIES).wall}


def start(contender: Contender, reference: str) -> Sample:
    begun = time.perf_counter()
    with contender.session(reference) as session:
        session.manifest()
        seconds = time.perf_counter() - begun
        session.quit()
    return {START: seconds}


def far_start(contender: Contender, far: Far, reference: str) -> Sample:
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


def first_byte(at: int, contender: Contender, reference: str) -> Sample:
    with contender.session(reference) as session:
        layer = session.manifest()["layers"][at]
        begun = time.perf_counter()
        session.first_byte(layer)
        return {FIRST: time.perf_counter() - begun}


def together(contender: Imgproxy, reference: str, count: int) -> Sample:
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


def bare_loop(whole: str, empty: str, size: int) -> Sample:
    throughput, cpu = loops.timed(size, loops.loop(empty, 0), loops.loop(whole, size))
    return {THROUGHPUT: throughput, CPU: cpu / size * GIB}


def curl(whole: str, empty: str, size: int) -> Sample:
    start, end = loops.piped_into_openssl(empty), loops.piped_into_openssl(whole)
    throughput, cpu = loops.timed(size, start, end)
    return {THROUGHPUT: throughput, CPU: cpu / size * GIB}


def blob(contender: Contender, reference: str) -> Sample:
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


def whole(contender: Contender, reference: str) -> Sample:
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


def piped(measure: Measure, argv: Sequence[str]) -> Sample:
    return {measure: run(argv).wall}


def digest(image: Image) -> Sample:
    """Time the limit, without its start, too."""
    start = run([*OPENSSL, "/dev/null"])
    whole = run([*OPENSSL, str(image.blob)])
    size = image.layers[0]["size"]
    cpu = (whole.cpu - start.cpu) / size * GIB
    return {THROUGHPUT: size / (whole.wall - start.wall), CPU: cpu}


def blobs(contender: Contender, reference: str) -> Sample:
    with contender.session(reference) as session:
        layers = session.manifest()["layers"]
        sample = _rate(layers, session.blob)
        session.quit()
    return sample


def registry(stage: Stage, source: str, image: Image) -> Sample:
    """Time the limit: the same blobs directly from the registry."""
    with stage.connect(source) as sock:
        parent = HttpParent(sock)
        return _rate(image.layers, partial(parent.blob, f"/v2/{REPOSITORY}"))


def _rate(layers: Sequence[Json], read: Callable[[Json], None]) -> Sample:
    begun = time.perf_counter()
    for layer in layers:
        read(layer)
    return {RATE: len(layers) / (time.perf_counter() - begun)}


def clients(registry: Registry, image: Image, count: int) -> Sample:
    """Read a blob over so many connections at once from a new server, and again."""
    size = count * image.layers[0]["size"]
    with registry.serving(image) as (child, port):
        start = child.processor_time()
        cold, warm = (registries.read_at_once(port, image, count) for _ in range(2))
        cpu = (child.processor_time() - start) / (2 * size) * GIB
        return {COLD: size / cold, WARM: size / warm, CPU: cpu, PEAK: child.peak_memory()}


def hashing(image: Image) -> Sample:
    """Time the limit of all clients together: one program that hashes, on one processor."""
    taken = digest(image)
    return {COLD: taken[THROUGHPUT], WARM: taken[THROUGHPUT], CPU: taken[CPU]}


def heads(registry: Registry, image: Image, count: int) -> Sample:
    with registry.serving(image) as (_, port):
        return {HEADS: registries.ask_for_heads(port, count)}


def bare_interpreter() -> Sample:
    return {INITIALIZED: run(BARE).wall}


def initialize(peer: Skopeo) -> Sample:
    begun = time.perf_counter()
    with peer.proxy() as (child, parent):
        seconds = time.perf_counter() - begun
        parent.quit()
        child.finish()
    return {INITIALIZED: seconds}


def layer_info(count: int, peer: Skopeo, reference: str) -> Sample:
    """Time the request alone: clients have read the manifest before."""
    with peer.session(reference) as session:
        session.manifest()
        begun = time.perf_counter()
        layers = session.layer_info()
        seconds = time.perf_counter() - begun
        session.quit()
    if len(layers) != count:
        raise BenchError(f"GetLayerInfoPiped: {len(layers)} layers, expected {count}")
    return {INFO: seconds}


def written(argv: Sequence[str]) -> Sample:
    with Child(argv) as child:
        peak = child.watched_peak()
        usage = child.finish()
    return {WRITTEN: usage.wall, PEAK: peak}

"""Whole images from a distant registry, by every way that a parent may ask for them.

Each way is spawned, reads or copies all layers, and ends; what it made of connections and requests
is counted at the far end.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from .child import Child, Usage
from .contenders import BEFORE, OURS, Contender, Imgproxy, Skopeo, trusting
from .line import ROUND_TRIP
from .pulls import Puller, pullers
from .samples import CONNECTIONS, PEAK, REQUESTS, SPENT, WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from support.images import Json

    from .far import Far
    from .turns import Attempt, Sample
    from .wire import HttpParent

    Way = Callable[[Far, str], tuple[Usage, int]]

SOCKETS = 8
SEQUENTIAL = f"{OURS}, one after the other"
CROWD = f"{OURS}, {SOCKETS} sockets"
PIPES = f"{OURS}, in place of skopeo"
PULL = f"{OURS}, by pull"
WAYS = (OURS, SEQUENTIAL, CROWD, PIPES, PULL)

# Connection, TLS, the challenge; the same and a token; the manifest, the first blob's redirect;
# connection, TLS and blobs.
TRIPS = 11
LIMIT = f"{TRIPS} round trips"


def attempts(
    contenders: Sequence[Contender], far: Far, reference: str, folder: Path
) -> dict[str, Attempt]:
    """Return an attempt for each way of each contender, and the limit."""
    ways: dict[str, Way] = {}
    for contender in contenders:
        if isinstance(contender, Imgproxy):
            ways[contender.name] = partial(_pipelined, contender)
        if isinstance(contender, Imgproxy) and contender.name == OURS:
            ways[SEQUENTIAL] = partial(_one_by_one, contender)
            ways[CROWD] = partial(_crowd, contender)
            ways[PIPES] = partial(_one_by_one, contender.in_place_of_skopeo())
        elif isinstance(contender, Skopeo):
            ways[contender.name] = partial(_one_by_one, contender)
    ways |= dict(_pulls(contenders, folder))
    found: dict[str, Attempt] = {
        name: partial(_measured, way, far, reference) for name, way in ways.items()
    }
    return {**found, LIMIT: lambda: {WHOLE: TRIPS * ROUND_TRIP}}


def peers(contenders: Sequence[Contender]) -> list[str]:
    """Return the names of the columns that no other row has."""
    return [_title(each) for each in pullers(contenders) if each.name not in (OURS, BEFORE)]


def _measured(way: Way, far: Far, reference: str) -> Sample:
    before = far.counts()
    usage, peak = way(far, reference)
    counts = far.counts().since(before)
    return {
        WHOLE: usage.wall,
        SPENT: usage.cpu,
        PEAK: peak,
        CONNECTIONS: counts.connections,
        REQUESTS: counts.requests,
    }


def _pipelined(contender: Imgproxy, far: Far, reference: str) -> tuple[Usage, int]:
    return _read(contender, far, reference, 1, lambda parents, layers: parents[0].blobs(layers))


def _crowd(contender: Imgproxy, far: Far, reference: str) -> tuple[Usage, int]:
    return _read(contender, far, reference, SOCKETS, _read_in_threads)


def _read_in_threads(parents: Sequence[HttpParent], layers: Sequence[Json]) -> None:
    left = deque(layers)

    def read(parent: HttpParent) -> None:
        while left:
            parent.blob("", left.popleft())

    with ThreadPoolExecutor(len(parents)) as pool:
        for done in [pool.submit(read, parent) for parent in parents]:
            done.result()


def _read(
    contender: Imgproxy,
    far: Far,
    reference: str,
    sockets: int,
    read: Callable[[Sequence[HttpParent], Sequence[Json]], None],
) -> tuple[Usage, int]:
    with contender.crowd(reference, sockets, far.authority) as (child, parents):
        read(parents, json.loads(parents[0].fetch("/manifest"))["layers"])
        peak = child.peak_memory()
        parents[0].quit()
        return child.finish(), peak


def _one_by_one(contender: Contender, far: Far, reference: str) -> tuple[Usage, int]:
    with contender.session(reference, far.authority) as session:
        for layer in session.manifest()["layers"]:
            session.blob(layer)
        peak = session.child.peak_memory()
        return session.quit(), peak


def _pulls(contenders: Sequence[Contender], folder: Path) -> Iterator[tuple[str, Way]]:
    for puller in pullers(contenders):
        yield _title(puller), partial(_pull, puller, folder / "pulled")


def _title(puller: Puller) -> str:
    return PULL if puller.name == OURS else f"{puller.name} {puller.verb}"


def _pull(puller: Puller, layout: Path, far: Far, reference: str) -> tuple[Usage, int]:
    try:
        with Child(puller.words(reference, str(layout)), env=trusting(far.authority)) as child:
            peak = child.watched_peak()
            return child.finish(), peak
    finally:
        shutil.rmtree(layout, ignore_errors=True)

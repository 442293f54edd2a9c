"""What a registry has done, in numbers, for Prometheus.

They are counted as plain numbers, and made into text by Prometheus's library where they are asked
for. No label has a name or a digest in it: clients choose those, as many as they like.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from imgproxy.errors import DeniedError, Failure, InvalidError, NotFoundError, shortage
from imgproxy.frontends.registry_failures import WrongContentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from imgproxy.net.streams import Buffer
    from imgproxy.server.handler import Body, Handler, Opener, Reply, Request

_NAMED = re.compile(rb"/v2/.+/(manifests|blobs|referrers|tags)/[^/]+")
_FIXED = {
    b"/v2": "base",
    b"/v2/": "base",
    b"/v2/_catalog": "catalog",
    b"/healthz": "health",
    b"/metrics": "metrics",
}

_DEFECT = "INTERNAL", 500

# Codes of failures; a registry that is asked may have thought of its own.
_MOST_CODES = 64


class Metrics:
    """The numbers of a registry.

    `connections` returns how many are open, `bodies` are under way, `images` were given by a tag.
    """

    def __init__(self) -> None:
        self.connections: Callable[[], int] = lambda: 0
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and status
        self.failures: Counter[str] = Counter()  # by code
        self.verdicts: Counter[str] = Counter()
        self.sent_bytes = self.bodies = self.images = self.wrong_blobs = 0

    def judged(self, failure: Failure | None) -> None:
        """Count the verdict on an image that was opened, or could not be."""
        if failure is None or isinstance(failure, DeniedError):
            self.verdicts["rejected" if failure else "accepted"] += 1

    def failed(self, route: str, error: Exception) -> int:
        """Count the cause of a failure, and return the status that it has."""
        failure = error if isinstance(error, Failure) else shortage("", error)
        code, status = _DEFECT
        if failure is not None:
            code, status = failure.detail.get("code", failure.code), failure.status
        is_room = len(self.failures) < _MOST_CODES or code in self.failures
        self.failures[code if is_room else "OTHER"] += 1
        if route == "blobs" and isinstance(failure, InvalidError | WrongContentError):
            self.wrong_blobs += 1
        return status

    async def text(self) -> tuple[str, bytes]:
        """Return the numbers in Prometheus's format, and its media type.

        Raises `NotFoundError` where the library is missing.
        """
        try:
            library = await trio.to_thread.run_sync(_load)
        except ImportError as error:
            raise shortage("importing prometheus_client", error) or NotFoundError(
                "prometheus_client is needed for this: pip install 'oci-imgproxy[registry]'"
            ) from None
        registry = library.CollectorRegistry(auto_describe=False)
        registry.register(self)
        return library.CONTENT_TYPE_LATEST, library.generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers: `prometheus_client.registry.Collector`."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def counted(name: str, text: str, labels: list[str], values: Counter[str]) -> Metric:
            family = CounterMetricFamily(f"imgproxy_{name}", text, labels=labels)
            for key, value in sorted(values.items()):
                family.add_metric([key], value)
            return family

        requests = CounterMetricFamily(
            "imgproxy_requests", "Requests answered.", labels=["route", "status"]
        )
        for (route, status), value in sorted(self.requests.items()):
            requests.add_metric([route, str(status)], value)
        yield requests
        yield counted("failures", "Failures by their cause.", ["code"], self.failures)
        yield counted("verdicts", "Verdicts of the policy on images.", ["verdict"], self.verdicts)
        for name, text, number in (
            ("sent_bytes", "Bytes of bodies.", self.sent_bytes),
            ("images", "Images given by a tag.", self.images),
            ("wrong_blobs", "Replies that found a blob wrong.", self.wrong_blobs),
        ):
            yield CounterMetricFamily(f"imgproxy_{name}", text, value=number)
        yield GaugeMetricFamily("imgproxy_connections", "Open ones.", value=self.connections())
        yield GaugeMetricFamily("imgproxy_bodies", "Bodies under way.", value=self.bodies)


def _load() -> Any:  # noqa: ANN401  (a module)
    import prometheus_client
    import prometheus_client.core

    return prometheus_client


class Measured:
    """A `Handler` that counts what another one does, and what was refused before it."""

    def __init__(self, handler: Handler, metrics: Metrics) -> None:
        self._handler = handler
        self._metrics = metrics

    async def handle(self, request: Request) -> Reply:
        """Return the reply to a request. Raises `Failure`."""
        route = route_of(request.target)
        try:
            reply = await self._handler.handle(request)
        except Exception as error:
            self._metrics.requests[route, self._metrics.failed(route, error)] += 1
            raise
        body = reply.body
        if not reply.has_body(request):
            pass
        elif isinstance(body, bytes):
            self._metrics.sent_bytes += len(body)
        elif callable(body):  # whether there will be one is known when it is opened
            return reply._replace(body=partial(self._open, body, route, reply.status))
        else:
            reply = reply._replace(body=_MeasuredBody(body, route, self._metrics))
        self._metrics.requests[route, reply.status] += 1
        return reply

    def refused(self, failure: Failure) -> None:
        """Count what was refused before it was a request for a route."""
        self._metrics.requests["refused", self._metrics.failed("refused", failure)] += 1

    async def _open(self, opener: Opener, route: str, status: int) -> Body:
        try:
            body = await opener()
        except Exception as error:
            self._metrics.requests[route, self._metrics.failed(route, error)] += 1
            raise
        self._metrics.requests[route, status] += 1
        return _MeasuredBody(body, route, self._metrics)


class _MeasuredBody:
    """A body under way. See `handler.Body`."""

    def __init__(self, body: Body, route: str, metrics: Metrics) -> None:
        self._body = body
        self._route = route
        self._metrics = metrics
        metrics.bodies += 1
        self._is_open = True

    async def read(self) -> Buffer:
        try:
            piece = await self._body.read()
        except Exception as error:
            self._metrics.failed(self._route, error)
            raise
        self._metrics.sent_bytes += len(piece)
        return piece

    def close(self) -> None:
        self._body.close()
        self._metrics.bodies -= self._is_open
        self._is_open = False


def route_of(target: bytes) -> str:
    """Return which kind of request a target is for: one of few, whatever clients send."""
    path = target.partition(b"?")[0]
    match = _NAMED.fullmatch(path)
    return match[1].decode() if match else _FIXED.get(path, "other")

"""Networks and registries that break: what is put up with, what it costs, and what ends it.

The lines in between cut, reset and stall at chosen bytes, and count: nothing is to be fetched twice
but what a cut has lost. IMGPROXY_TEST_PULL_MIB and IMGPROXY_TEST_CUT_MIB make the long pull longer.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest
from support.effort import rounds
from support.filled import MIB, as_directory, noise
from support.images import OCI_MANIFEST, Layout
from support.networks import Cut, Line, line_to
from support.parent import peak_memory
from support.servers import (
    docker_registry,
    free_port,
    http_server,
    layout_as_registry,
    nginx,
    skopeo_copy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.conftest import Pull, Together
    from support.filled import Registry
    from support.home import Home
    from support.parent import Child
    from support.servers import Answering, Fate

PLAIN = "--tls-verify=false"
PULL = rounds("IMGPROXY_TEST_PULL_MIB", slow=64, quick=32) * MIB
CUT = int(os.environ.get("IMGPROXY_TEST_CUT_MIB", "5")) * MIB

# More than any head of a reply has.
HEAD = 1024


def ranges(line: Line) -> list[tuple[int, int]]:
    """Return what was asked for in parts; a range that is not closed fails."""
    bounds = [each.range.removeprefix("bytes=").split("-") for each in line.asked if each.range]
    return [(int(first), int(last)) for first, last in bounds]


def blob_of(child: Child, registry: Registry, tag: str = "large") -> bytes:
    (layer,) = registry.layers(tag)
    reply = child.client.get(f"/blobs/{layer['digest']}")
    assert reply.status == 200, reply.body
    assert reply.body == registry.layout.read(layer["digest"])
    return reply.body


# --- a long pull -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_long_pull_survives_cuts_and_stalls_and_fetches_nothing_twice(
    pull: Pull, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "layout")
    content = noise(PULL)
    descriptor = layout.image(content)
    (layer,) = layout.layers(descriptor)
    expected, count = hash(content), PULL // CUT
    del content
    cuts = [Cut(CUT, "stall" if n in {2, count - 2} else "end") for n in range(count)]
    with docker_registry(tmp_path / "data") as address, line_to(address) as line:
        source = as_directory(layout, descriptor, tmp_path / "source")
        skopeo_copy(source, f"docker://{address}/long/pull:latest", "--preserve-digests")
        child = pull(f"docker://{line.address}/long/pull", PLAIN, "--stall-timeout=1")
        assert child.client.get("/manifest").status == 200
        line.passed, line.cuts = 0, cuts
        before = peak_memory(child.pid)
        reply = child.client.get(f"/blobs/{layer['digest']}")
        assert reply.complete
        assert hash(reply.body) == expected
        grown = peak_memory(child.pid) - before
        assert child.finish() == 0
        assert child.stderr == ""
    assert line.broken == count
    offsets = ranges(line)
    assert len(offsets) == count
    assert [last for _, last in offsets] == [PULL - 1] * count
    assert offsets == sorted(set(offsets))
    assert line.passed <= PULL + HEAD * (count + 1), "nothing was fetched twice"
    assert grown < 24 * MIB


def test_a_blob_is_gone_on_with_after_every_kind_of_break(
    together: Together, registry: Registry
) -> None:
    def check(fate: Fate, pull: Pull, _: Home) -> None:
        with line_to(registry.address) as line:
            child = pull(registry.name(":large", line.address), PLAIN, "--stall-timeout=1")
            assert child.client.get("/manifest").status == 200
            line.cuts = [Cut(3 * MIB, fate), Cut(4 * MIB, fate)]
            blob_of(child, registry)
            assert child.finish() == 0
            # A reset drops what has not been read yet, so that there may be no progress in between.
            assert child.stderr == "" or (fate == "reset" and "tried twice" in child.stderr)
        assert line.broken == 2
        assert len(ranges(line)) == 2

    fates: dict[str, Fate] = {"end": "end", "reset": "reset", "stall": "stall"}
    together(fates, check)


@pytest.mark.slow
def test_retries_start_again_with_progress_and_end_without(registry: Registry, pull: Pull) -> None:
    """Four cuts with progress cost one retry each; behind the last of them nobody answers."""
    with line_to(registry.address) as line:
        child = pull(registry.name(":large", line.address), PLAIN, "--retries=1")
        assert child.client.get("/manifest").status == 200
        line.cuts = [*[Cut(2 * MIB, "end")] * 4, Cut(1, "end"), Cut(1, "end")]
        (layer,) = registry.layers("large")
        reply = child.client.get(f"/blobs/{layer['digest']}")
        assert reply.status == 200
        assert 7 * MIB < len(reply.body) <= 8 * MIB
        assert reply.ending == "end"
        assert child.finish() == 5
    assert line.broken == 5
    assert len(child.stderr.splitlines()) == 1
    assert layer["digest"] in child.stderr
    assert line.address in child.stderr


def test_a_manifest_that_breaks_off_is_fetched_again(
    together: Together, registry: Registry
) -> None:
    def check(after: int, pull: Pull, _: Home) -> None:
        with line_to(registry.address, Cut(after, "reset")) as line:
            child = pull(registry.name(":latest", line.address), PLAIN)
            assert child.client.get("/manifest").status == 200
            assert child.finish() == 0
            assert child.stderr == ""
        assert len(line.asked) == 2

    together({"in the status": 1, "in the head": 100, "in the body": 600}, check)


# --- servers that have no ranges -------------------------------------------------------------

RANGELESS = {
    "ignored": 'proxy_set_header Range ""; proxy_force_ranges off;',
    "refused": "if ($http_range) { return 416; }",
}


@pytest.mark.slow
def test_a_server_without_ranges_is_skipped_through(together: Together, registry: Registry) -> None:
    def check(directives: str, pull: Pull, home: Home) -> None:
        config = f"location / {{ {directives} proxy_pass http://{registry.address}; }}"
        with nginx(home.path / "nginx", config) as front, line_to(front) as line:
            child = pull(registry.name(":large", line.address), PLAIN)
            assert child.client.get("/manifest").status == 200
            line.cuts = [Cut(5 * MIB, "end")]
            blob_of(child, registry)
            assert child.finish() == 0
        assert line.broken == 1

    together(RANGELESS, check)


# --- redirects -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_redirect_is_a_fresh_one_after_each_break(
    registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    """The store's URLs are good for one request, as signed ones are good for some minutes."""
    store_config = layout_as_registry(registry.layout.path, OCI_MANIFEST)
    with (
        nginx(tmp_path / "store", store_config) as store,
        line_to(store, Cut(3 * MIB, "end"), Cut(4 * MIB, "reset")) as line,
    ):
        given: list[str] = []

        def get(request: Answering) -> None:
            host = line.address if "/blobs/" in request.path else registry.address
            given.append(f"{request.path}?signature={len(given)}")
            request.answer(307, b"", Location=f"http://{host}{given[-1]}")

        with http_server(get) as front:
            child = pull(registry.name(":large", front), PLAIN)
            blob_of(child, registry)
            assert child.finish() == 0
    used = [each.target for each in line.asked]
    assert used == [path for path in given if "/blobs/" in path]
    assert len(used) == 3
    assert [bool(each.range) for each in line.asked] == [False, True, True]


# --- answers that ask for patience -----------------------------------------------------------


@pytest.fixture
def limited(registry: Registry, tmp_path: Path) -> Iterator[str]:
    """Return the address of a registry that answers once a second, and else says 429."""
    config = f"""
        location / {{
            limit_req zone=all; limit_req_status 429; add_header Retry-After 1 always;
            proxy_pass http://{registry.address};
        }}
    """
    around = "limit_req_zone $server_port zone=all:1m rate=60r/m;"
    with nginx(tmp_path / "nginx", config, around=around) as address:
        yield address


@pytest.mark.slow
def test_a_rate_limit_is_waited_for(
    limited: str, registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    child = pull(registry.name(":latest", limited), PLAIN)
    layer, _ = registry.layers("latest")
    paths = ["/manifest", "/config", f"/blobs/{layer['digest']}"]
    for path in paths:
        assert child.client.get(path).status == 200
    assert child.finish() == 0
    log = (tmp_path / "nginx/access.log").read_text().splitlines()
    assert any(" 429 " in line for line in log)
    assert len(log) <= 2 * len(paths), "the server is asked when it said, and not before"


def test_a_rate_limit_without_retries_is_a_503(
    limited: str, registry: Registry, pull: Pull
) -> None:
    child = pull(registry.name(":latest", limited), PLAIN, "--retries=0")
    assert child.client.get("/manifest").status == 200
    reply = child.client.get("/config")
    assert (reply.status, reply.code) == (503, "TOOMANYREQUESTS")
    assert reply.error["detail"]["retryable"] is True
    assert limited in reply.message
    assert child.finish() == 0


def answering(
    registry: Registry, *answers: tuple[int, dict[str, str]]
) -> Callable[[Answering], None]:
    """Return answers in turn, and lead on to the registry when there are no more."""
    left = list(answers)

    def get(request: Answering) -> None:
        if left:
            status, fields = left.pop(0)
            request.answer(status, b"{}", **fields)
        else:
            request.answer(307, b"", Location=f"http://{registry.address}{request.path}")

    return get


def in_two_seconds() -> str:
    """Return a date in HTTP's form, which knows no fractions."""
    return formatdate(time.time() + 2, usegmt=True)


@pytest.mark.slow
def test_temporary_failures_are_tried_again(together: Together, registry: Registry) -> None:
    def check(status: int, pull: Pull, _: Home) -> None:
        with http_server(answering(registry, (status, {"Retry_After": "0"}))) as front:
            child = pull(registry.name(":latest", front), PLAIN, "--retries=1")
            reply = child.client.get("/manifest")
            assert reply.status == 200, reply.body
            assert child.finish() == 0
            assert child.stderr == ""

    together({str(status): status for status in (408, 429, 500, 502, 503, 504)}, check)


@pytest.mark.slow
def test_a_date_to_come_back_is_kept(registry: Registry, pull: Pull) -> None:
    with http_server(answering(registry, (429, {"Retry_After": in_two_seconds()}))) as front:
        child = pull(registry.name(":latest", front), PLAIN, "--retries=1")
        before = time.monotonic()
        assert child.client.get("/manifest").status == 200
        assert time.monotonic() - before > 0.9
        assert child.finish() == 0


def test_lasting_failures_are_not_tried_again(together: Together) -> None:
    def check(status: int, pull: Pull, _: Home) -> None:
        asked: list[str] = []

        def get(request: Answering) -> None:
            asked.append(request.path)
            request.answer(status, b"{}")

        with http_server(get) as front:
            child = pull(f"docker://{front}/some/image", PLAIN)
            reply = child.client.get("/manifest")
            assert reply.status in {403, 404, 502}
            assert reply.error["detail"]["retryable"] is False
            assert child.finish() == 0
        assert len(asked) == 1

    together({str(status): status for status in (400, 403, 404, 405, 410, 418, 501)}, check)


def test_a_rate_limit_that_is_too_long_to_wait_for_is_told_at_once(
    registry: Registry, pull: Pull
) -> None:
    with http_server(answering(registry, (429, {"Retry_After": "3600"}))) as front:
        child = pull(registry.name(":latest", front), PLAIN)
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (503, "TOOMANYREQUESTS")
        assert reply.error["detail"] == {"retryable": True, "retry_after": 3600}
        assert child.client.get("/manifest").status == 200
        assert child.finish() == 0


@pytest.mark.slow
def test_a_port_that_refuses_is_reported_while_it_is_waited_for(pull: Pull) -> None:
    child = pull(f"docker://127.0.0.1:{free_port()}/some/image", "--retries=2")
    assert child.client.get("/manifest").status == 504
    assert child.finish() == 0
    waited, failed = child.stderr.splitlines()
    assert "Connection refused: tried twice, the next time in" in waited
    assert "and at most 3 times" in waited
    assert "/manifest" in failed


def test_retries_are_counted(registry: Registry, pull: Pull) -> None:
    asked: list[str] = []

    def get(request: Answering) -> None:
        asked.append(request.path)
        request.answer(503, b"{}", Retry_After="0")

    with http_server(get) as front:
        child = pull(registry.name(":latest", front), PLAIN, "--retries=1")
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (503, "UNAVAILABLE")
        assert reply.error["detail"]["retryable"] is True
        assert child.finish() == 0
    assert len(asked) == 2


# --- registries that go and come -------------------------------------------------------------


@pytest.mark.slow
def test_a_registry_that_is_restarted_between_requests_is_waited_for(
    registry: Registry, pull: Pull
) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        with docker_registry(registry.directory, port=port):
            child = pull(registry.name(":large", address), PLAIN)
            assert child.client.get("/manifest").status == 200
        threading.Timer(
            0.3, lambda: stack.enter_context(docker_registry(registry.directory, port=port))
        ).start()
        blob_of(child, registry)
        assert child.finish() == 0
        assert child.stderr == ""


@pytest.mark.slow
def test_a_registry_that_is_restarted_in_mid_blob_is_gone_on_with(
    registry: Registry, pull: Pull
) -> None:
    """The line to the first stalls until that is gone and the second is there, on another line."""
    (layer,) = registry.layers("large")
    with ExitStack() as stack, line_to(registry.address) as line:
        with docker_registry(registry.directory) as first:
            line.target = first
            child = pull(registry.name(":large", line.address), PLAIN, "--stall-timeout=4")
            assert child.client.get("/manifest").status == 200
            line.cuts = [Cut(4 * MIB, "stall")]
            child.client.ask("GET", f"/blobs/{layer['digest']}")
            reply = child.client.head()
        line.target = stack.enter_context(docker_registry(registry.directory))
        reply.body = child.client.read(layer["size"])
        assert reply.body == registry.layout.read(layer["digest"])
        assert child.finish() == 0
        assert child.stderr == ""


def test_a_host_that_cannot_be_reached_is_a_504(together: Together) -> None:
    def check(host: str, pull: Pull, _: Home) -> None:
        child = pull(f"docker://{host}/some/image", "--retries=0")
        reply = child.client.get("/manifest")
        assert (reply.status, reply.code) == (504, "UNREACHABLE"), reply.body
        is_a_name = "registry.invalid" in host  # which nobody has, whereas a server may be started
        assert reply.error["detail"]["retryable"] is not is_a_name
        assert host in reply.message
        assert "(" not in reply.message, "no tuple of Python's"
        assert child.finish() == 0

    hosts = ["registry.invalid", "registry.invalid:5000", "[::1]:9", "127.0.0.1:9"]
    together({host: host for host in hosts}, check)


def test_a_parent_that_goes_while_a_retry_is_waited_for_is_not_waited_for(
    registry: Registry, pull: Pull
) -> None:
    with http_server(answering(registry, *[(429, {"Retry_After": "60"})] * 3)) as front:
        child = pull(registry.name(":latest", front), PLAIN, "--debug")
        child.client.ask("GET", "/manifest")
        while "429" not in child.stderr:
            time.sleep(0.01)
        child.hang_up()
        assert child.wait(3) == 0


def test_of_several_addresses_one_that_answers_is_enough(registry: Registry, pull: Pull) -> None:
    """A name of this host has one of either family, and the registry listens at one alone."""
    port = registry.address.partition(":")[2]
    child = pull(registry.name(":latest", f"localhost:{port}"), PLAIN, "--retries=0")
    assert child.client.get("/manifest").status == 200
    assert child.finish() == 0

"""Which module reads what the IMAGE argument names."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from images import Layout, named
from wires import Notes, real_time, refused

from imgproxy import system
from imgproxy.config.credentials import Credentials
from imgproxy.config.search import Host
from imgproxy.errors import ConfigurationError, DeniedError, Failure
from imgproxy.settings import Chosen, Settings
from imgproxy.transports import open_sources
from imgproxy.transports.access import Access
from imgproxy.transports.oci_layout import OciLayout
from imgproxy.transports.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgproxy.transports.source import Source

BAD_NAME = (400, "NAME_INVALID", False)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this host have no configuration; options may bring some along."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    host = Host({}, 1000, "", lambda _: False, lambda _: [])
    monkeypatch.setattr(system, "host", lambda: host)


def all_opened(image: str, access: Access = Access(), registries: str = "") -> list[Source]:  # noqa: B008  (a value)
    chosen = Chosen(registries=(registries.encode(), "registries.conf"))
    return open_sources(image, access, Settings(chosen, Notes()), Notes())


def opened(image: str, *, offline: bool = False) -> Source:
    (source,) = all_opened(image, Access(offline=offline))
    return source


def failure_of(image: str, *, offline: bool = False) -> Failure:
    with pytest.raises(Failure) as raised:
        opened(image, offline=offline)
    return raised.value


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("docker://registry.test/x", "docker://registry.test/x:latest"),
        ("docker://busybox", "docker://docker.io/library/busybox:latest"),
        ("registry.test/x:1", "docker://registry.test/x:1"),
        ("localhost:5000/x", "docker://localhost:5000/x:latest"),
    ],
)
def test_names_lead_to_registries(image: str, name: str) -> None:
    source = opened(image)
    assert isinstance(source, Registry)
    assert source.name == name
    source.close()


@pytest.mark.parametrize("image", ["docker://busybox", "registry.test/x:1", "busybox"])
def test_registries_are_not_asked_offline(image: str) -> None:
    failure = failure_of(image, offline=True)
    assert refused(failure) == (404, "MANIFEST_UNKNOWN", False)
    assert "--offline" in failure.message


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("prefix", ["oci:", ""])
@pytest.mark.parametrize("tail", [":a", ":@1"])
@real_time
async def test_paths_lead_to_layouts(
    prefix: str,
    tail: str,
    layout: Layout,
    offline: bool,  # noqa: FBT001  (a parameter)
) -> None:
    wanted = layout.image(b"wanted")
    layout.save(layout.image(b"other"), named(wanted, "a"))
    source = opened(f"{prefix}{layout.path}{tail}", offline=offline)
    assert isinstance(source, OciLayout)
    assert (await source.root()).raw == layout.read(wanted["digest"])


@pytest.mark.parametrize("path", ["./layout", "../here/layout"])
@real_time
async def test_relative_paths_begin_here(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    layout = Layout(tmp_path / "here/layout")
    wanted = layout.save_image(b"x")
    monkeypatch.chdir(tmp_path / "here")
    source = opened(path)
    monkeypatch.chdir("/")
    assert (await source.root()).raw == layout.read(wanted["digest"])


@pytest.mark.parametrize(
    "image",
    ["docker:x", "docker://UPPER/case", "oci:", "ftp://x", "sif:/x", "dir:/x", ""],
)
def test_names_that_mean_nothing_are_refused(image: str) -> None:
    assert refused(failure_of(image)) == BAD_NAME


def test_a_path_with_nothing_at_it_is_not_found(tmp_path: Path) -> None:
    failure = failure_of(f"{tmp_path}/nothing")
    assert refused(failure) == (404, "NOT_FOUND", False)
    assert failure.message == f"{tmp_path}/nothing: No such file or directory"


@pytest.mark.parametrize(
    ("make", "words"),
    [(os.mkdir, "a directory"), (os.mknod, "a regular file"), (os.mkfifo, "a FIFO")],
)
def test_a_path_with_something_else_at_it_is_not_read(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    make(place)
    failure = failure_of(str(place))
    assert refused(failure) == (415, "UNSUPPORTED", False)
    assert words in failure.message


def test_a_path_that_may_not_be_looked_at_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    failure = failure_of(f"{tmp_path}/x")
    monkeypatch.undo()
    assert refused(failure) == (403, "DENIED", False)


def test_an_index_that_is_a_dangling_link_makes_a_broken_layout(layout: Layout) -> None:
    """It is no other kind of place either; the message names the file."""
    (layout.path / "index.json").symlink_to("nowhere")
    assert isinstance(opened(str(layout.path)), OciLayout)


# --- short names --------------------------------------------------------------------------------

SHORT = """
unqualified-search-registries = ["one.test", "two.test"]
short-name-mode = "disabled"
[aliases]
alias = "three.test/x/alias"
"""


@pytest.mark.parametrize(
    ("image", "names"),
    [
        ("alias:1", ["docker://three.test/x/alias:1"]),
        ("os", ["docker://one.test/os:latest", "docker://two.test/os:latest"]),
        ("acme/os:1", ["docker://one.test/acme/os:1", "docker://two.test/acme/os:1"]),
        ("docker://os", ["docker://docker.io/library/os:latest"]),
    ],
)
def test_a_short_name_may_mean_several_places(image: str, names: list[str]) -> None:
    assert [source.name for source in all_opened(image, registries=SHORT)] == names


def test_a_short_name_that_means_nothing_is_told() -> None:
    failure = failure_of("os")
    assert not failure.retryable
    assert "os" in failure.message


# --- registries, put together -------------------------------------------------------------------

MIRRORED = """
[[registry]]
prefix = "registry.test"
location = "real.test/up"
insecure = true
[[registry.mirror]]
location = "mirror.test/down"
[[registry.mirror]]
location = "real.test/cache"
"""


def registry(access: Access = Access(), registries: str = MIRRORED) -> Registry:  # noqa: B008  (a value)
    (source,) = all_opened("registry.test/os:1", access, registries)
    assert isinstance(source, Registry)
    assert source.name == "docker://registry.test/os:1"
    return source


def test_the_configuration_says_where_an_image_is() -> None:
    places = [(each.name, each.place.insecure) for each in registry()._endpoints]
    assert places == [
        ("mirror.test/down/os", False),
        ("real.test/cache/os", False),
        ("real.test/up/os", True),
    ]


@pytest.mark.parametrize("verify", [True, False])
def test_an_option_about_tls_is_for_every_endpoint(verify: bool) -> None:  # noqa: FBT001  (a parameter)
    endpoints = registry(Access(tls_verify=verify))._endpoints
    assert [each.place.insecure for each in endpoints] == [not verify] * 3


def test_without_mirrors_the_primary_location_is_all() -> None:
    assert [each.name for each in registry(Access(mirrors=False))._endpoints] == ["real.test/up/os"]


def test_what_options_give_is_for_the_registry_that_the_name_leads_to() -> None:
    given = Credentials("u", "p", "", "--creds")
    for access in (Access(credentials=given), Access(registry_token="t")):
        assert [each._is_own for each in registry(access)._endpoints] == [False, True, True]
    tokens = [each._authorization for each in registry(Access(registry_token="t"))._endpoints]
    assert tokens == ["", "Bearer t", "Bearer t"]


def test_the_retries_are_those_of_the_option() -> None:
    assert registry(Access(retries=7)).retries == 7


def test_what_is_blocked_is_denied_before_anything_is_asked() -> None:
    with pytest.raises(DeniedError, match=r"blocked by .* of registries\.conf"):
        registry(registries='[[registry]]\nlocation = "registry.test"\nblocked = true\n')


def test_a_broken_configuration_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"registries\.conf"):
        registry(registries="= 1")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
@real_time
async def test_proxies_are_those_of_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "socks5://proxy.test")
    with pytest.raises(ConfigurationError, match=f"{variable} names a SOCKS proxy"):
        await registry().root()

"""Which transport is chosen for an IMAGE argument."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.archives import Member, of_directory, pack, saved_from, skopeo, write_dir
from support.images import Layout, digest_of, named
from support.streams import Notes, real_time, refused

from imgproxy.config import sideload_pattern
from imgproxy.errors import (
    Failure,
    NotFoundError,
)
from imgproxy.host.configuration import Configuration, Overrides
from imgproxy.transports import open_sources
from imgproxy.transports.local.dir_format import ImageDirectory
from imgproxy.transports.local.docker_archive import DockerArchive
from imgproxy.transports.local.oci_layout import OciLayout
from imgproxy.transports.registry.network import Network
from imgproxy.transports.registry.options import NetworkOptions
from imgproxy.transports.registry.registry_image import RegistryImage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from imgproxy.config.sideload_pattern import Pattern
    from imgproxy.transports.source import Source

BAD_NAME = (400, "NAME_INVALID", False)


pytestmark = pytest.mark.usefixtures("nothing_configured")


async def all_opened(
    image: str,
    options: NetworkOptions = NetworkOptions(),  # noqa: B008  (a value)
    registries: str = "",
    sideload: Sequence[Pattern] = (),
) -> list[Source]:
    return await open_sources(image, network(options, registries), sideload)


def network(options: NetworkOptions, registries: str = "") -> Network:
    chosen = Overrides(registries=(registries.encode(), "registries.conf"))
    return Network(options, Configuration(chosen, Notes()), Notes())


async def opened(image: str, *, offline: bool = False) -> Source:
    (source,) = await all_opened(image, NetworkOptions(offline=offline))
    return source


async def failure_of(image: str, *, offline: bool = False) -> Failure:
    with pytest.raises(Failure) as raised:
        await opened(image, offline=offline)
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
@real_time
async def test_names_lead_to_registries(image: str, name: str) -> None:
    source = await opened(image)
    assert isinstance(source, RegistryImage)
    assert source.name == name
    source.close()


@pytest.mark.parametrize("image", ["docker://busybox", "registry.test/x:1", "alias", "os"])
@real_time
async def test_registries_are_not_asked_offline(image: str) -> None:
    with pytest.raises(Failure) as raised:
        await all_opened(image, NetworkOptions(offline=True), SHORT)
    assert refused(raised.value) == (404, "MANIFEST_UNKNOWN", False)
    assert raised.value.message.endswith("in a registry, and --offline forbids asking there")


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
    source = await opened(f"{prefix}{layout.path}{tail}", offline=offline)
    assert isinstance(source, OciLayout)
    assert (await source.root()).raw == layout.read(wanted["digest"])


KINDS: dict[str, type[Source]] = {
    "oci-archive": OciLayout,
    "docker-archive": DockerArchive,
    "dir": ImageDirectory,
}


def write(kind: str, layout: Layout, path: Path) -> bytes:
    """Write an image to a path in one of the formats; return its manifest if that keeps it."""
    descriptor = layout.save_image(pack([Member("a", b"content")]))
    if kind == "dir":
        write_dir(path, layout, descriptor)
    elif kind == "oci-archive":
        path.write_bytes(pack(of_directory(layout.path)))
    else:
        path.write_bytes(pack(skopeo(saved_from(layout, descriptor, "os:1"))))
        return b""
    return layout.read(descriptor["digest"])


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@real_time
async def test_files_and_directories_are_what_they_are_called_or_hold(
    kind: str,
    layout: Layout,
    tmp_path: Path,
    is_named: bool,  # noqa: FBT001  (a parameter)
) -> None:
    path = tmp_path / "place"
    manifest = write(kind, layout, path)
    source = await opened(f"{kind}:{path}" if is_named else str(path), offline=True)
    assert isinstance(source, KINDS[kind])
    assert source.identity.transport == kind
    assert source.name == f"{kind}:{path}"
    assert (await source.root()).raw.startswith(manifest or b'{"schemaVersion":2,')
    source.close()


@real_time
async def test_policies_know_a_layout_by_its_real_path(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layout.path)
    layout.save()
    for image in (f"oci:{tmp_path}/link/../link/:a", f"{tmp_path}/link/../link/:a"):
        source = await opened(image)
        assert source.name == f"oci:{tmp_path}/link/../link/:a"
        assert source.identity.transport == "oci"
        assert source.identity.scopes[:2] == [str(layout.path), str(tmp_path)]


@pytest.mark.parametrize("path", ["./layout", "../here/layout"])
@real_time
async def test_relative_paths_begin_here(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    layout = Layout(tmp_path / "here/layout")
    wanted = layout.save_image(b"x")
    monkeypatch.chdir(tmp_path / "here")
    source = await opened(path)
    monkeypatch.chdir("/")
    assert (await source.root()).raw == layout.read(wanted["digest"])


@pytest.mark.parametrize(
    "image",
    [
        *("docker:x", "docker://UPPER/case", "oci:", "ftp://x", "sif:/x", ""),
        *("dir:", "oci-archive:", "docker-archive:/x:UPPER/case", "oci-archive:/x:@x"),
    ],
)
@real_time
async def test_names_that_mean_nothing_are_refused(image: str) -> None:
    assert refused(await failure_of(image)) == BAD_NAME


@real_time
async def test_a_path_with_nothing_at_it_is_not_found(tmp_path: Path) -> None:
    failure = await failure_of(f"{tmp_path}/nothing")
    assert refused(failure) == (404, "NOT_FOUND", False)
    assert failure.message == f"{tmp_path}/nothing: No such file or directory"


@pytest.mark.parametrize(
    ("make", "words"),
    [(os.mkdir, "a directory"), (os.mknod, "not a tar archive"), (os.mkfifo, "a FIFO")],
)
@real_time
async def test_a_path_with_something_else_at_it_is_not_read(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    make(place)
    failure = await failure_of(str(place))
    assert refused(failure) == (415, "UNSUPPORTED", False)
    assert words in failure.message


def failing_at(place: str, number: int) -> Callable[..., os.stat_result]:
    """Return an `os.stat` that fails at one path; who runs the tests may have every right."""
    real = os.stat

    def fake(path: Any, **named: Any) -> os.stat_result:  # noqa: ANN401  (what os.stat takes)
        if path == place:
            raise OSError(number, os.strerror(number))
        return real(path, **named)

    return fake


@real_time
async def test_a_path_that_may_not_be_looked_at_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "stat", failing_at(f"{tmp_path}/x", errno.EACCES))
    failure = await failure_of(f"{tmp_path}/x")
    assert refused(failure) == (403, "DENIED", False)


@real_time
async def test_an_index_that_is_a_dangling_link_makes_a_broken_layout(layout: Layout) -> None:
    """It is not of another kind either; the message names the file."""
    (layout.path / "index.json").symlink_to("nowhere")
    assert isinstance(await opened(str(layout.path)), OciLayout)


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
@real_time
async def test_a_short_name_may_mean_several_places(image: str, names: list[str]) -> None:
    assert [source.name for source in await all_opened(image, registries=SHORT)] == names


@pytest.mark.parametrize("offline", [True, False])
@real_time
async def test_a_short_name_that_means_nothing_is_told(offline: bool) -> None:  # noqa: FBT001  (a parameter)
    failure = await failure_of("os", offline=offline)
    assert not failure.retryable
    assert "os" in failure.message


# --- sideloading --------------------------------------------------------------------------------


async def sideloaded_or_not(
    image: str, *texts: str, registries: str = "", offline: bool = True
) -> list[Source]:
    patterns = list(map(sideload_pattern.parse, texts))
    return await all_opened(image, NetworkOptions(offline=offline), registries, patterns)


async def sideloaded(image: str, *texts: str, registries: str = "") -> str:
    """Return the name of the only source for an image."""
    (source,) = await sideloaded_or_not(image, *texts, registries=registries)
    source.close()
    return source.name


def layout_at(path: Path) -> Layout:
    layout = Layout(path)
    layout.save_image(str(path).encode())
    return layout


@real_time
async def test_the_first_path_that_exists_is_where_the_image_is(tmp_path: Path) -> None:
    layout_at(tmp_path / "two/acme/os/1")
    layout_at(tmp_path / "three/os-1")
    patterns = [
        f"{tmp_path}/one/<name>/<ref>",
        f"{tmp_path}/two/<name>/<ref>",
        f"{tmp_path}/three/<basename>-<ref>",
    ]
    for image in ("docker://quay.io/acme/os:1", "quay.io/acme/os:1"):
        assert await sideloaded(image, *patterns) == (
            f"docker://quay.io/acme/os:1 from oci:{tmp_path}/two/acme/os/1"
        )
    assert (await sideloaded("quay.io/acme/os:1", *patterns[::-1])).endswith("/three/os-1")


@real_time
async def test_the_digest_s_path_stands_before_the_tag_s(tmp_path: Path) -> None:
    digest = digest_of(b"x")
    layout_at(tmp_path / "os-1")
    layout_at(tmp_path / f"os-{digest}")
    image = f"quay.io/os:1@{digest}"
    text = f"{tmp_path}/<basename>-<ref>"
    assert (await sideloaded(image, text)).endswith(f" from oci:{tmp_path}/os-{digest}")
    (tmp_path / f"os-{digest}").rename(tmp_path / "gone")
    assert (await sideloaded(image, text)).endswith(f" from oci:{tmp_path}/os-1")


@real_time
async def test_an_earlier_pattern_by_tag_stands_before_a_later_one_by_digest(
    tmp_path: Path,
) -> None:
    digest = digest_of(b"x")
    layout_at(tmp_path / "a-os-1")
    layout_at(tmp_path / f"b-os-{digest}")
    texts = [f"{tmp_path}/{each}-<name>-<ref>" for each in "ab"]
    assert (await sideloaded(f"quay.io/os:1@{digest}", *texts)).endswith("/a-os-1")


@real_time
async def test_each_name_that_a_short_one_may_mean_is_sought_before_any_registry(
    tmp_path: Path,
) -> None:
    layout_at(tmp_path / "two.test/os/latest")
    text = f"{tmp_path}/<registry>/<name>/<ref>"
    assert await sideloaded("os", text, registries=SHORT) == (
        f"docker://two.test/os:latest from oci:{tmp_path}/two.test/os/latest"
    )


@real_time
async def test_where_nothing_lies_a_registry_is_next(tmp_path: Path) -> None:
    sources = await sideloaded_or_not("quay.io/os:1", f"{tmp_path}/<name>/<ref>", offline=False)
    assert [type(each) for each in sources] == [RegistryImage]


@real_time
async def test_where_nothing_lies_offline_the_paths_are_told(tmp_path: Path) -> None:
    digest = digest_of(b"x")
    text = f"{tmp_path}/\x1b<name>-<ref>"
    with pytest.raises(NotFoundError) as raised:
        await sideloaded(f"quay.io/os:1@{digest}", text, text)
    assert refused(raised.value) == (404, "MANIFEST_UNKNOWN", False)
    assert raised.value.message == (
        f"quay.io/os:1@{digest}: there is nothing at {tmp_path}/ os-{digest}, {tmp_path}/ os-1,"
        " and --offline forbids asking a registry"
    )


@real_time
async def test_a_path_too_long_for_the_system_is_a_path_with_nothing_at_it(tmp_path: Path) -> None:
    layout_at(tmp_path / "os-1.2")
    text = f"{tmp_path}/<name>-<ref>"
    assert (await sideloaded("quay.io/os:1.2", text + "-<ref>" * 100, text)).endswith("/os-1.2")


NO_ANSWERS = {
    errno.EACCES: (403, "DENIED", False),
    errno.ELOOP: (422, "PATH_INVALID", False),
    errno.EIO: (503, "UNAVAILABLE", True),
}


@pytest.mark.parametrize("number", NO_ANSWERS, ids=errno.errorcode.get)
@real_time
async def test_a_path_that_cannot_be_looked_at_is_answered_and_not_skipped(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout_at(tmp_path / "b/os-1")
    monkeypatch.setattr(os, "stat", failing_at(f"{tmp_path}/a/os-1", number))
    with pytest.raises(Failure) as raised:
        await sideloaded("quay.io/os:1", *(f"{tmp_path}/{each}/<name>-<ref>" for each in "ab"))
    assert refused(raised.value) == NO_ANSWERS[number]
    assert raised.value.message == f"{tmp_path}/a/os-1: {os.strerror(number)}"


@real_time
async def test_what_lies_there_and_is_no_image_is_answered_and_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "os-1").mkdir()
    layout_at(tmp_path / "b/os-1")
    with pytest.raises(Failure) as raised:
        await sideloaded("quay.io/os:1", *(f"{tmp_path}/{each}<name>-<ref>" for each in ("", "b/")))
    assert refused(raised.value) == (415, "UNSUPPORTED", False)


@pytest.mark.parametrize("image", ["oci:{0}/os-1", "{0}/os-1"])
@real_time
async def test_what_is_named_by_its_path_is_not_sought_elsewhere(
    image: str, tmp_path: Path
) -> None:
    layout_at(tmp_path / "os-1")
    name = await sideloaded(image.format(tmp_path), f"{tmp_path}/<name>-<ref>")
    assert name == f"oci:{tmp_path}/os-1"

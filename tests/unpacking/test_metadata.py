"""What unpacked files are given of what layers say, and what of that is lost."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from support.unpacking import IS_ROOT, directory, entry, link, symlink, unpack

from imgproxy.errors import InvalidError
from imgproxy.specs.oci import tar_layers
from imgproxy.store.files import DestinationError
from imgproxy.unpacking import ownership
from imgproxy.unpacking.metadata import Metadata
from imgproxy.unpacking.ownership import RECORD

if TYPE_CHECKING:
    from pathlib import Path

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root may do this")

CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)


def new(way: str = "me", *, is_privileged: bool = False) -> tuple[Metadata, list[str]]:
    warnings: list[str] = []
    return Metadata(ownership.parse(way), warnings.append, is_privileged=is_privileged), warnings


def member(kind: str = "file", **fields: object) -> tar_layers.Member:
    plain = tar_layers.Member(
        *(0, b"name", "file", 0, b"", 0o644, 0, 0, 0, {}, (0, 0), None),
    )
    return plain._replace(kind=kind, **fields)  # type: ignore[arg-type]


def test_attributes_are_those_of_the_member() -> None:
    metadata, _ = new("keep")
    said = member(mode=0o4755, uid=5, gid=7, mtime=9, xattrs={b"user.b": b"1", b"user.a": b"2"})
    wanted = ((5, 7), 0o4755, ((b"user.a", b"2"), (b"user.b", b"1")), 9)
    assert metadata.of(said) == wanted
    assert metadata.of(member("symlink", uid=5)).mode is None


@pytest.mark.parametrize(
    ("mtime", "expected"),
    [
        (-(2**63), -(2**63)),
        (-(2**63) - 1, 0),
        (15_032_385_535 * 10**9, 15_032_385_535 * 10**9),
        (15_032_385_535 * 10**9 + 1, 0),
    ],
)
def test_times_that_no_file_can_have_are_none(mtime: int, expected: int) -> None:
    assert new()[0].of(member(mtime=mtime)).modified == expected


@pytest.mark.parametrize(
    "name",
    [
        *(b"security.selinux", b"security.ima", b"security.evm", b"system.nfs4_acl"),
        *(b"trusted.overlay.opaque", b"trusted.x", b"user.overlay.redirect"),
        *(b"user.rootlesscontainers", b"user.containers.override_stat"),
    ],
)
def test_what_a_layer_may_not_say_is_not_set(name: bytes) -> None:
    for way in ("keep", "record"):
        metadata, warnings = new(way, is_privileged=True)
        assert metadata.of(member(xattrs={name: b"x"})).xattrs == ()
        assert warnings == []


def test_capabilities_are_root_s_to_give() -> None:
    said = member(xattrs={b"security.capability": CAPABILITY})
    assert new(is_privileged=True)[0].of(said).xattrs == ((b"security.capability", CAPABILITY),)
    metadata, warnings = new()
    assert metadata.of(said).xattrs == metadata.of(said).xattrs == ()
    assert metadata.lost == {"capabilities": 2}
    assert warnings == ["name: only root can give capabilities to files"]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "character"])
def test_links_and_the_like_have_no_attributes_of_users(kind: str) -> None:
    said = member(kind, xattrs={b"user.a": b"1", b"security.x": b"2"})
    assert new()[0].of(said).xattrs == ((b"security.x", b"2"),)


def test_owners_are_recorded_on_files_and_directories_alone() -> None:
    metadata, warnings = new("record")
    for kind in ("file", "directory"):
        assert metadata.of(member(kind, uid=5)).xattrs == ((RECORD, b"\x08\x05"),)
        assert metadata.of(member(kind)).xattrs == ()
    for kind in ("symlink", "fifo"):
        assert metadata.of(member(kind, uid=5)).xattrs == ()
    assert metadata.lost == {"owners": 2}
    assert len(warnings) == 1


def test_what_cannot_be_set_is_counted_by_kind_and_told_once() -> None:
    metadata, warnings = new("record")
    for number in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
        metadata.note(b"f", [(b"user.a", OSError(number, "no")), (RECORD, OSError(number, "no"))])
    assert metadata.lost == {"xattrs": 3, "owners": 3}
    assert warnings == [
        "f: user.a cannot be set here: Operation not supported",
        "f: user.rootlesscontainers cannot be set here: Operation not supported",
    ]
    with pytest.raises(OSError, match=r"user\.a cannot be set: No space left on device"):
        metadata.note(b"f", [(b"user.a", OSError(errno.ENOSPC, "full"))])


# --- on files -----------------------------------------------------------------------------------


@pytest.fixture
def at(tmp_path: Path) -> Path:
    try:
        os.setxattr(tmp_path, "user.probe", b"1")
    except OSError:
        pytest.skip("this file system has no extended attributes of users")
    return tmp_path / "tree"


def xattrs(path: Path) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def test_attributes_of_users_are_set_and_those_of_replaced_directories_gone(at: Path) -> None:
    lower = directory("d", xattrs={"user.old": b"1"}) + entry("f", xattrs={"user.f": b"\0=\n"})
    unpack(at, lower, directory("d", xattrs={"user.new": b"2"}))
    assert xattrs(at / "d") == {"user.new": b"2"}
    assert xattrs(at / "f") == {"user.f": b"\0=\n"}


def test_what_means_nothing_to_the_system_is_the_layer_s_fault(at: Path) -> None:
    message = "f: user. cannot be set to that: Invalid argument"
    with pytest.raises(InvalidError, match=message):
        unpack(at, entry("f", xattrs={"user.": b"1"}))
    with pytest.raises(InvalidError, match=r"user\. cannot be set"):
        unpack(at, directory(".", xattrs={"user.": b"1"}))
    assert not at.exists()


def test_records_of_owners_can_be_read_back(at: Path) -> None:
    layer = entry("f", uid=5, gid=7) + directory("d", uid=6) + entry("r") + symlink("l", "f", uid=9)
    done = unpack(at, layer, owner="record")
    assert xattrs(at / "f") == {"user.rootlesscontainers": b"\x08\x05\x10\x07"}
    assert xattrs(at / "d") == {"user.rootlesscontainers": b"\x08\x06"}
    assert xattrs(at / "r") == {}
    assert done.lost == {"owners": 1}


@needs_root
def test_capabilities_and_setuid_outlive_the_owner(at: Path) -> None:
    layer = entry("f", b"x", mode=0o6755, uid=5, xattrs={"security.capability": CAPABILITY})
    unpack(at, layer + link("h", "f"), owner="keep")
    assert xattrs(at / "h") == {"security.capability": CAPABILITY}
    assert (at / "f").stat().st_mode & 0o7777 == 0o6755


@needs_root
def test_what_has_no_room_in_the_file_system_is_an_error(at: Path) -> None:
    layer = entry("f", xattrs={f"user.{n}": bytes(60_000) for n in range(3)})
    try:
        unpack(at, layer)
    except DestinationError as error:
        assert "No space left" in error.message  # noqa: PT017
        assert not at.exists()
    else:
        assert len(xattrs(at / "f")) == 3

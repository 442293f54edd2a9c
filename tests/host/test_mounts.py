"""Which file systems may hang, by tables of mounts as the kernel writes them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from imgproxy.host import mounts
from imgproxy.host.mounts import Mounts, WouldWaitError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"


def table(*lines: str) -> Mounts:
    return Mounts("\n".join([ROOT, *lines, ""]))


def mount(number: int, point: str, kind: str, on: int = 27, *, root: str = "/") -> str:
    """Return a line; the minor number of the device is that of the mount."""
    return f"{number} {on} 0:{number} {root} {point} rw,nosuid shared:7 master:1 - {kind} it rw"


def links(**targets: str) -> Callable[[str], str]:
    """Return a `readlink` that knows these, with `_` for a slash, and fails as the system does."""
    known = {name.replace("_", "/"): target for name, target in targets.items()}

    def readlink(path: str) -> str:
        if path in known:
            return known[path]
        number = errno.ENOENT if path.endswith("nothing") else errno.EINVAL
        raise OSError(number, os.strerror(number))

    return readlink


NO_LINKS = links()


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "fuse.sshfs", "fuseblk", "fuse.bindfs"),
        *("9p", "ceph", "autofs", "afs", "lustre", "gpfs", "virtiofs", "glusterfs", "gfs2", "coda"),
        *("ext5", "EXT4", "", "ecryptfs"),
    ],
)
def test_what_waits_for_a_server_or_is_unknown_may_hang(kind: str) -> None:
    found = table(mount(40, "/srv", kind))
    assert found.find("/srv/images", NO_LINKS) == os.makedev(0, 40)
    assert found.find("/srv", NO_LINKS) == os.makedev(0, 40)
    assert found.find("/srvx", NO_LINKS) is None
    assert found.find("/", NO_LINKS) is None


@pytest.mark.parametrize("kind", sorted(mounts.LOCAL))
def test_what_this_host_answers_itself_does_not_hang(kind: str) -> None:
    found = table(mount(40, "/srv", kind), mount(41, "/mnt", "nfs4"))
    assert found.find("/srv/images", NO_LINKS) is None


def test_no_link_is_read_where_nothing_may_hang() -> None:
    def readlink(path: str) -> str:
        raise AssertionError(path)

    assert table(mount(40, "/srv", "xfs")).find("/srv/images", readlink) is None


def test_nothing_is_touched_on_what_may_hang() -> None:
    touched = []

    def readlink(path: str) -> str:
        touched.append(path)
        return NO_LINKS(path)

    assert table(mount(40, "/a/b", "nfs")).find("/a/b/c/d", readlink) == os.makedev(0, 40)
    assert touched == ["/a"]


NFS, OTHER = os.makedev(0, 40), os.makedev(0, 41)

# The table, a path, and the device that it may hang on.
TABLES: dict[str, tuple[list[str], str, int | None]] = {
    "a space": ([mount(40, r"/my\040images", "nfs")], "/my images/x", NFS),
    "a tab, a line, a backslash": ([mount(40, r"/a\011\012\134", "nfs")], "/a\t\n\\/x", NFS),
    "digits behind a backslash": ([mount(40, r"/a\134040", "nfs")], r"/a\040/x", NFS),
    "the longest prefix": ([mount(40, "/a", "xfs"), mount(41, "/a/b", "nfs", 40)], "/a/b/c", OTHER),
    "beside the longest prefix": (
        [mount(40, "/a", "xfs"), mount(41, "/a/b", "nfs", 40)],
        "/a/bc",
        None,
    ),
    "below what may hang": ([mount(40, "/a", "nfs"), mount(41, "/a/b", "xfs", 40)], "/a/b/c", NFS),
    "over the same place": ([mount(40, "/a", "xfs"), mount(41, "/a", "nfs", 40)], "/a/x", OTHER),
    "local over the same place": (
        [mount(40, "/a", "autofs"), mount(41, "/a", "xfs", 40)],
        "/a/x",
        None,
    ),
    "the last of two on one": ([mount(40, "/a", "nfs"), mount(41, "/a", "xfs")], "/a/x", None),
    "hidden by a later one": (
        [mount(40, "/a/b", "nfs"), mount(41, "/a", "tmpfs")],
        "/a/b/x",
        None,
    ),
    "a bind mount": ([mount(40, "/here", "nfs4", root="/exported/images")], "/here/x", NFS),
    "a bind mount of what is deleted": (
        [mount(40, "/here", "xfs", root="/gone//deleted"), mount(41, "/a", "nfs")],
        "/here/x",
        None,
    ),
    "a file as a mount": ([mount(40, "/etc/policy.json", "9p")], "/etc/policy.json", NFS),
    "in the order of the kernel": (
        [mount(41, "/a/b", "nfs", 40), mount(40, "/a", "xfs")],
        "/a/b",
        OTHER,
    ),
    "a root over the first one": (["28 27 0:28 / / rw - nfs it rw"], "/x", os.makedev(0, 28)),
    "dots": ([mount(40, "/a", "nfs")], "/b/./..//a/x", NFS),
    "dots out of it": ([mount(40, "/a", "nfs")], "/b/../c", None),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_path_is_on_the_mount_that_the_system_finds(case: str) -> None:
    lines, path, wanted = TABLES[case]
    assert table(*lines).find(path, NO_LINKS) == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/absolute/x", NFS),
        ("/relative", NFS),
        ("/d/up/x", NFS),
        ("/twice", NFS),
        ("/loop", None),
        ("/nothing/x", None),
        ("/local/x", None),
        ("/out/x", None),
    ],
)
def test_links_are_followed(path: str, wanted: int | None) -> None:
    readlink = links(
        _absolute="/srv/images",
        _relative="srv",
        _d_up="../srv",
        _twice="/absolute",
        _loop="loop",
        _local="/d",
        _out="/d/../../d",
    )
    assert table(mount(40, "/srv", "nfs")).find(path, readlink) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "41 40 0:41 / /srv rw - xfs it rw\n"],
    ids=["no table", "a root that is not listed"],
)
def test_what_is_not_in_the_table_may_hang(text: str) -> None:
    """A process in a changed root sees no mount for it."""
    assert Mounts(text).find("/home", NO_LINKS) is not None


def test_a_first_root_is_mounted_on_itself() -> None:
    text = "1 1 0:2 / / rw - rootfs rootfs rw\n2 1 0:3 / /srv rw - nfs it rw\n"
    assert Mounts(text).find("/home", NO_LINKS) is None
    assert Mounts(text).find("/srv", NO_LINKS) is not None


def test_a_relative_path_begins_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = table(mount(40, str(tmp_path).replace(" ", r"\040") + "/it", "nfs"))
    assert found.find("it/x") == NFS
    assert found.find("other") is None


@pytest.mark.parametrize("path", ["\0", "/a\0b", "x" * 300, "/x" * 3000])
def test_a_path_that_cannot_be_leads_nowhere(path: str) -> None:
    assert table(mount(40, "/srv", "nfs")).find(path) is None


def test_the_table_of_this_process_is_read_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, clock = [f"{ROOT}\n", f"{ROOT}\n{mount(40, '/srv', 'nfs')}\n"], [100.0]
    monkeypatch.setattr(mounts, "_last", None)
    monkeypatch.setattr(mounts, "_read", lambda: texts.pop(0))
    monkeypatch.setattr(mounts.time, "monotonic", lambda: clock[0])
    assert [mounts.may_hang("/srv") for _ in range(3)] == [None] * 3
    clock[0] += 1.5
    assert mounts.may_hang("/home", "/srv/x") == NFS
    assert mounts.may_hang("/home") is None


def test_the_kernel_writes_such_a_table() -> None:
    assert mounts.may_hang("/proc/self/mountinfo") is None


def test_without_a_table_everything_may_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_TABLE", "/nowhere")
    monkeypatch.setattr(mounts, "_last", None)
    assert mounts.may_hang("/home") is not None


def test_a_function_is_not_called_where_it_could_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "may_hang", lambda path: 40 if path == "/srv" else None)
    assert mounts.ask(len, "/home") == 5
    with pytest.raises(WouldWaitError) as raised:
        mounts.ask(len, "/srv")
    asked = raised.value
    assert (asked.device, asked.function, asked.path) == (40, len, "/srv")
    answers: mounts.Answers = {(len, "/srv"): (7, None)}
    assert mounts.call_with(answers, mounts.ask, len, "/srv") == 7
    answers = {(len, "/srv"): (None, OSError("it"))}
    with pytest.raises(OSError, match="it"):
        mounts.call_with(answers, mounts.ask, len, "/srv")
    with pytest.raises(WouldWaitError):
        mounts.ask(len, "/srv")


def test_what_has_no_disk_is_known_by_its_device() -> None:
    found = table(
        mount(40, "/dev/shm", "tmpfs"),  # noqa: S108  (a mount)
        mount(41, "/srv", "nfs"),
        mount(42, "/mnt", "xfs"),
        mount(43, "/early", "ramfs"),
    )
    assert found.in_memory == {os.makedev(0, 40), os.makedev(0, 43)}


def test_this_host_says_which_files_are_in_memory() -> None:
    assert not mounts.is_in_memory(os.stat("/proc").st_dev)

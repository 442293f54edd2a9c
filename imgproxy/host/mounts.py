"""The file systems that may hang, by /proc/self/mountinfo: proc_pid_mountinfo(5).

Network file systems and those of a program (FUSE) wait for a server, which may never answer. The
table of mounts is read without touching them, and a path is followed in it name by name, so that
a link is read only where the system answers.
"""

from __future__ import annotations

import errno
import os
import re
import time

TYPE_CHECKING = False  # `typing` would be imported before the event loop for this alone
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

# What answers without a server: on disks of this host, in memory, or made by the kernel. Any other
# kind may hang, one that is not known here too.
LOCAL = frozenset(
    {
        *("bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "hfsplus"),
        *("iso9660", "jffs2", "jfs", "minix", "msdos", "nilfs2", "ntfs3", "overlay", "reiserfs"),
        *("cramfs", "romfs", "squashfs", "ubifs", "udf", "ufs", "vfat", "xfs", "zfs", "zonefs"),
        *("devtmpfs", "hugetlbfs", "ramfs", "rootfs", "tmpfs"),
        *("binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "cpuset", "debugfs"),
        *("devpts", "efivarfs", "fusectl", "mqueue", "nsfs", "proc", "pstore", "resctrl"),
        *("securityfs", "selinuxfs", "smackfs", "sysfs", "tracefs"),
    }
)

# What has no disk that a reader could wait for.
IN_MEMORY = frozenset({"ramfs", "rootfs", "tmpfs"})

_TABLE = "/proc/self/mountinfo"
_ESCAPED = re.compile(r"\\([0-7]{3})")

# Links in a row; the system has the same limit (path_resolution(7)).
_MAX_LINKS = 40

# Seconds for which the table is used; a mount that is made later is known after that.
_FRESH = 1.0


class Mount:
    """A mount: its `number` in the table, its `device` as in `st_dev`, whether it may hang."""

    __slots__ = ("device", "may_hang", "number")

    def __init__(self, number: int, device: int, *, may_hang: bool) -> None:
        self.number = number
        self.device = device
        self.may_hang = may_hang


# Where the table has no mount: below the root of a process that may not see what that is on.
_UNLISTED = Mount(-1, 0, may_hang=True)


class Mounts:
    """The mounts in the text of a table."""

    def __init__(self, text: str) -> None:
        lines = [line.partition(" - ") for line in text.splitlines()]
        entries = [(begin.split(" "), end.partition(" ")[0]) for begin, _, end in lines]
        listed = {fields[0] for fields, _ in entries}
        self._mounted: dict[tuple[int, str], Mount] = {}
        self.in_memory: set[int] = set()  # devices
        for (number, parent, device, _, point, *_), kind in entries:
            is_top = parent == number or parent not in listed
            on = _UNLISTED.number if is_top else int(parent)
            mount = Mount(int(number), _device(device), may_hang=kind not in LOCAL)
            self._mounted[on, _unescaped(point)] = mount
            if kind in IN_MEMORY:
                self.in_memory.add(mount.device)
        self._targets: dict[str, str] = {}
        self._may_hang = self._at("").may_hang or any(
            each.may_hang for each in self._mounted.values()
        )

    def find(self, path: str, readlink: Callable[[str], str] = os.readlink) -> int | None:
        """Return the device of the first mount on the way to `path` that may hang, None without.

        A link is followed also if it is the last name of the path.
        """
        if not self._may_hang:
            return None
        try:
            return self._find(os.path.join(os.getcwd(), path), readlink)
        except (OSError, ValueError):
            return None  # the path leads nowhere, which the system reports at once

    def _find(self, path: str, readlink: Callable[[str], str]) -> int | None:
        mount = self._at("")
        left, here, links = path.split("/")[::-1], "", 0
        while left and not mount.may_hang:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                here = here.rpartition("/")[0]
                continue
            there = f"{here}/{name}"
            mount = self._at(there)
            target = "" if mount.may_hang else self._target(there, readlink)
            if not target:
                here = there
                continue
            links += 1
            if links > _MAX_LINKS:
                return None
            if target.startswith("/"):
                here = ""
            left += target.split("/")[::-1]
        return mount.device if mount.may_hang else None

    def _target(self, path: str, readlink: Callable[[str], str]) -> str:
        """Return where a link leads, nothing for what is not a link. Raises `OSError`.

        It is kept, so that the directories of many files are looked at once.
        """
        if path not in self._targets:
            try:
                self._targets[path] = readlink(path)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._targets[path] = ""
        return self._targets[path]

    def _at(self, path: str) -> Mount:
        """Return the mount on which a path without links is."""
        mount, point = self._top(_UNLISTED, "/"), ""
        for name in path.split("/")[1:]:
            point += f"/{name}"
            mount = self._top(mount, point)
        return mount

    def _top(self, mount: Mount, point: str) -> Mount:
        """Return what is mounted at a point of a mount: the last of several, or itself."""
        while (upper := self._mounted.get((mount.number, point))) is not None:
            mount = upper
        return mount


def _device(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def may_hang(*paths: str) -> int | None:
    """Return the device of a file system that may hang and is on the way to one of the paths.

    It is None where there is none, so that a call with these paths can be made at once.
    """
    mounts = _current()
    found = (mounts.find(path) for path in paths)
    return next((device for device in found if device is not None), None)


def is_in_memory(device: int) -> bool:
    """Return whether the files with this `st_dev` are on no disk."""
    return device in _current().in_memory


_last: tuple[float, Mounts] | None = None


def _current() -> Mounts:
    global _last  # noqa: PLW0603  (the process has one table)
    now = time.monotonic()
    if _last is None or now - _last[0] > _FRESH:
        _last = now, Mounts(_read())
    return _last[1]


def _read() -> str:
    """Return the table; without one, every path may hang."""
    try:
        fd = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return os.fsdecode(b"".join(parts))
    finally:
        os.close(fd)


# --- functions that look at many paths ------------------------------------------------------------


class WouldWaitError(Exception):
    """`function` was not called with `path`, because the file system `device` may hang."""

    def __init__(self, device: int, function: Callable[[str], Any], path: str) -> None:
        super().__init__(f"{path} is on a file system that may hang")
        self.device = device
        self.function = function
        self.path = path


# What functions returned for paths, or raised.
Answers = dict[tuple["Callable[[str], Any]", str], tuple["Any", "Exception | None"]]

_answers: Answers = {}


def ask(function: Callable[[str], T], path: str) -> T:
    """Return `function(path)`. Raises `WouldWaitError` where it may hang and is not known yet."""
    device = may_hang(path)
    if device is None:
        return function(path)
    if (function, path) not in _answers:
        raise WouldWaitError(device, function, path)
    value, error = _answers[function, path]
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]  # it is of the type that the function returns


def call_with(answers: Answers, function: Callable[..., T], *arguments: object) -> T:
    """Call a function for which `ask` knows these answers; see `blocking_calls.settle`."""
    global _answers  # noqa: PLW0603  (functions without arguments of their own need it)
    before, _answers = _answers, answers
    try:
        return function(*arguments)
    finally:
        _answers = before

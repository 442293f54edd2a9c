"""The environment of the process: variables, platform, inherited descriptors, files it names.

No other module reads environment variables or opens configuration files; all others are passed
values.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys

from imgproxy.errors import ConfigurationError, ShortageError, UsageError, clean, shortage
from imgproxy.host import mounts

TYPE_CHECKING = False  # `typing` would take a fifth of the time of a usage error
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from io import FileIO
    from typing import IO, TypeVar

    from imgproxy.config.search_paths import Host
    from imgproxy.specs.oci.platform import Platform

    T = TypeVar("T")

_COUNT = re.compile(r"[0-9]{1,9}")

# Go's names of operating systems, where Python's differ.
_OPERATING_SYSTEMS = {"win32": "windows", "cygwin": "windows"}

# The part of /proc/cpuinfo for one processor; the kernel is slow to produce that of hundreds.
_ONE_CPU = 8192

# Policies are written by hand; the largest that distributions ship have a few kilobytes.
_MAX_CONFIGURATION = 4 * 1024 * 1024

# Seconds, for each option that names a file or a directory; most commands have one at most.
_PATIENCE = 1.0


def host_platform() -> Platform:
    """Return the platform of this host, with the microarchitecture level of its processor."""
    from imgproxy.specs.oci import platform as platforms

    machine = os.uname().machine
    flags = _cpu_flags() if machine == "x86_64" else ()
    return platforms.of_host(_OPERATING_SYSTEMS.get(sys.platform, sys.platform), machine, flags)


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as it may, and return how many: getrlimit(2)."""
    import resource

    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            limit = hard
        except (OSError, ValueError):  # more than the system has come to allow
            pass
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _cpu_flags() -> Collection[str]:
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            text = file.read(_ONE_CPU).decode("ascii", "replace")
    except OSError as error:
        if shortage("reading /proc/cpuinfo", error):
            raise  # another image would be chosen than at other times
        return ()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def take_listen_fds() -> list[int]:
    """Return the descriptors that systemd passed, sd_listen_fds(3), and unset the variables.

    Raises `UsageError` where the variables are for this process but malformed.
    """
    pid = os.environ.pop("LISTEN_PID", None)
    count = os.environ.pop("LISTEN_FDS", None)
    os.environ.pop("LISTEN_FDNAMES", None)
    if count is None or pid != str(os.getpid()):
        return []
    if not _COUNT.fullmatch(count) or int(count) > os.sysconf("SC_OPEN_MAX"):
        raise UsageError(f'LISTEN_FDS="{clean(count)}" is not a number of descriptors')
    return list(range(3, 3 + int(count)))


def read_option_file(option: str, path: str) -> bytes | None:
    """Return the content of a file that an option names; its path is opened once and as it is.

    It is None where the file system does not answer in time: the file is read when it is needed.
    Raises `UsageError` where it cannot be read.
    """
    return _in_time(_read_option_file, option, path)


def _read_option_file(option: str, path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # a pipe too, for the shell's <(…)
            return _content(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _unusable(f"{option} {clean(path)}", error, reason) from None


def check_option_directory(option: str, path: str) -> None:
    """Raise `UsageError` where a directory that an option names cannot be read.

    One on a file system that does not answer in time is not checked.
    """
    _in_time(_list_option_directory, option, path)


def _list_option_directory(option: str, path: str) -> None:
    try:
        os.listdir(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise _unusable(f"{option} {clean(path)}", error, reason) from None


def _unusable(what: str, error: Exception, reason: object) -> Exception:
    return shortage(what, error) or UsageError(f"{what}: {reason}")


def _in_time(function: Callable[[str, str], T], option: str, path: str) -> T | None:
    """Return `function(option, path)`, or None if its file system hangs.

    Nobody notices yet that the parent has ended, so that the wait is short. Raises `UsageError`.
    """
    if mounts.may_hang(path) is None:
        return function(option, path)
    import threading

    answers: list[tuple[T | None, Exception | None]] = []

    def call() -> None:
        try:
            answers.append((function(option, path), None))
        except (UsageError, ShortageError) as error:
            answers.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    value, error = answers[0] if answers else (None, None)
    if error is not None:
        raise error
    return value


def read_file(path: str) -> bytes:
    """Return the content of a configuration file.

    Raises `OSError`, `ValueError` for one that is too large or a FIFO, and `WouldWaitError`.
    """
    return mounts.ask(read_at_once, path)


def read_at_once(path: str) -> bytes:
    """Return the content of a configuration file, however long its file system takes.

    Raises `OSError`, and `ValueError` as `read_file` does.
    """
    with open(path, "rb", buffering=0, opener=_open_nonblocking) as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise ValueError("a FIFO, and not a file")
        return _content(file)


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _content(file: FileIO) -> bytes:
    content = bytearray()
    while chunk := file.read(_MAX_CONFIGURATION + 1 - len(content)):
        content += chunk
    if len(content) > _MAX_CONFIGURATION:
        raise ValueError(f"more than {_MAX_CONFIGURATION} bytes")
    return bytes(content)


def host() -> Host:
    """Return what decides where configuration files are: variables, user, and what exists.

    What looks at paths raises `WouldWaitError`.
    """
    from imgproxy.config.search_paths import Host

    home = os.environ.get("HOME") or ""
    return Host(os.environ, os.getuid(), home, _exists, _names, _directories)


def _exists(path: str) -> bool:
    return mounts.ask(os.path.lexists, path)


def _names(directory: str) -> list[str]:
    return [
        name
        for name, is_link in mounts.ask(_list, directory)
        if not (is_link and mounts.ask(os.path.isdir, f"{directory}/{name}"))
    ]


def _list(directory: str) -> list[tuple[str, bool]]:
    """Return the names in a directory but for its subdirectories, and whether each is a link."""
    try:
        with os.scandir(directory) as entries:
            return [
                (entry.name, entry.is_symlink())
                for entry in entries
                if not entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        what = f"reading {clean(directory)}"
        raise shortage(what, error) or ConfigurationError(
            f"{what}: {error.strerror}", file=directory
        ) from None


def _directories(directory: str) -> list[str]:
    return mounts.ask(_list_directories, directory)


def _list_directories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def is_pipe(fd: int) -> bool:
    """Return whether an inherited descriptor is a pipe or socket, readable only once.

    Raises `OSError` for one that is closed, or no other program's business: this program's own, and
    the sockets that it serves, are never inherited by others.
    """
    if not os.get_inheritable(fd):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def inherited_descriptor(path: str) -> int | None:
    """Return the descriptor behind a path such as /dev/stdin, None for any other path."""
    match = re.fullmatch(r"(?:/dev/stdin|(?:/dev|/proc/self)/fd/([0-9]{1,9}))", path)
    return None if match is None else int(match[1] or 0)


def temporary_directory() -> str:
    """Return where large temporary files belong: file-hierarchy(7)."""
    return os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108


def temporary_file() -> IO[bytes]:
    """Open a file without a name for what is large. Raises `OSError`."""
    import tempfile

    return tempfile.TemporaryFile(buffering=0, dir=temporary_directory())


def environment() -> Mapping[str, str]:
    """Return the environment variables, of which `net` uses those that name proxies."""
    return os.environ


_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISREG, "a regular file"),
)


def kind_of(mode: int) -> str:
    """Return the type of a file, from `st_mode`, as a message names it."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a file of unknown kind")


def status_of(fd: int) -> os.stat_result:
    """Return the status of an inherited descriptor. Raises `UsageError` for a closed one."""
    try:
        return os.fstat(fd)
    except (OSError, OverflowError):
        raise UsageError(
            f"descriptor {fd} is closed; the program that starts imgproxy must let it inherit the"
            " descriptor"
        ) from None

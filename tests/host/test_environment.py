"""The host: environment and configuration paths."""

from __future__ import annotations

import io
import os
import resource
import socket
import stat
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from imgproxy.errors import ConfigurationError, ShortageError, UsageError, shortage
from imgproxy.host import environment
from imgproxy.specs.oci.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


VARIABLES = ("HOME", "XDG_CONFIG_HOME")

# Seconds; nothing here waits that long when it works.
LIMIT = 10.0


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return the fixture to set variables, with those unset that matter here."""
    for name in (*VARIABLES, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# --- the platform -----------------------------------------------------------------------------


def on_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: bytes | OSError, name: str = "linux"
) -> Platform:
    """Return the platform of a host with this uname(2) and /proc/cpuinfo."""

    def open_cpuinfo(path: str, mode: str, buffering: int) -> io.BytesIO:
        assert (path, mode, buffering) == ("/proc/cpuinfo", "rb", 0)
        if isinstance(cpuinfo, OSError):
            raise cpuinfo
        return io.BytesIO(cpuinfo)

    uname = os.uname_result(("Linux", "host", "6.1", "#1", machine))
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(environment, "open", open_cpuinfo, raising=False)
    monkeypatch.setattr(sys, "platform", name)
    return environment.host_platform()


V2 = b"processor\t: 0\nflags\t\t: fpu cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3\nbugs\t: \n\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "name", "platform"),
    [
        pytest.param("x86_64", V2, "linux", Platform("linux", "amd64", "v2"), id="level-2"),
        pytest.param(
            "x86_64",
            V2.replace(b"popcnt", b"") + V2,
            "linux",
            Platform("linux", "amd64"),
            id="the-first-processor-counts",
        ),
        pytest.param("x86_64", b"", "linux", Platform("linux", "amd64"), id="no-flags"),
        pytest.param("x86_64", b"\xff\n" + V2, "linux", Platform("linux", "amd64", "v2"), id="odd"),
        pytest.param(
            "x86_64", PermissionError(), "linux", Platform("linux", "amd64"), id="no-cpuinfo"
        ),
        pytest.param("aarch64", V2, "linux", Platform("linux", "arm64"), id="arm64"),
        pytest.param("armv7l", V2, "linux", Platform("linux", "arm", "v7"), id="arm"),
        pytest.param("arm64", V2, "darwin", Platform("darwin", "arm64"), id="darwin"),
        pytest.param("x86_64", b"", "cygwin", Platform("windows", "amd64"), id="windows"),
    ],
)
def test_the_host_s_platform_has_the_level_of_its_processor(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    cpuinfo: bytes | OSError,
    name: str,
    platform: Platform,
) -> None:
    assert on_machine(monkeypatch, machine, cpuinfo, name) == platform


# --- systemd's descriptors, sd_listen_fds(3) --------------------------------------------------


@pytest.mark.parametrize(
    ("pid", "count", "fds"),
    [
        (0, "1", [3]),
        (0, "3", [3, 4, 5]),
        (0, "0", []),
        (1, "1", []),  # they are another process's
        (None, "1", []),
        (0, None, []),
        (None, None, []),
        (1, "unreadable", []),
    ],
)
def test_descriptors_are_taken_where_they_are_for_this_process(
    environ: pytest.MonkeyPatch, pid: int | None, count: str | None, fds: list[int]
) -> None:
    if pid is not None:
        environ.setenv("LISTEN_PID", str(os.getpid() + pid))
    if count is not None:
        environ.setenv("LISTEN_FDS", count)
    environ.setenv("LISTEN_FDNAMES", "a:b")
    assert environment.take_listen_fds() == fds
    assert not [name for name in os.environ if name.startswith("LISTEN_")]


@pytest.mark.parametrize(
    "count",
    [
        "",
        "-1",
        "+1",
        "1.0",
        "x\x1b[31m",
        pytest.param("9" * 30, id="many"),
        pytest.param("9" * 5000, id="more-than-an-int-takes"),
    ],
)
def test_a_malformed_number_of_descriptors_is_a_usage_error(
    environ: pytest.MonkeyPatch, count: str
) -> None:
    environ.setenv("LISTEN_PID", str(os.getpid()))
    environ.setenv("LISTEN_FDS", count)
    with pytest.raises(UsageError, match=r'^LISTEN_FDS=".*" is not a number of desc') as caught:
        environment.take_listen_fds()
    assert str(caught.value).isprintable()


# --- files that options name ------------------------------------------------------------------


def test_a_file_that_an_option_names_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert environment.read_option_file("--policy", str(file)) == b"content"


def test_a_pipe_is_as_good_as_a_file() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"content")
    os.close(writing)
    try:
        assert environment.read_option_file("--policy", f"/dev/fd/{reading}") == b"content"
    finally:
        os.close(reading)


def test_a_fifo_that_an_option_names_is_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=fifo.write_bytes, args=(b"content",), daemon=True)
    thread.start()
    assert environment.read_option_file("--policy", str(fifo)) == b"content"
    thread.join(LIMIT)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nowhere/file", "/nowhere/file: No such file or directory"),
        ("", ": No such file or directory"),
        ("/", "/: Is a directory"),
        ("/dev/null/x", "/dev/null/x: Not a directory"),
        ("/dev/zero", "/dev/zero: more than 4194304 bytes"),
        ("/nowhere/\x1b[31m", "/nowhere/ [31m: No such file or directory"),
        ("a\0b", "a b: embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(path: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        environment.read_option_file("--policy", path)
    assert str(caught.value) == f"--policy {reason}"


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have the system refuse this process any more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


READS: dict[str, Callable[[str], object]] = {
    "a file of an option": lambda path: environment.read_option_file("--policy", f"{path}/file"),
    "a directory of an option": lambda path: environment.check_option_directory("--x", path),
    "a directory": lambda path: environment.host().names(path),
    "the processor": lambda _: environment._cpu_flags(),
}


@pytest.mark.parametrize("what", READS)
def test_what_cannot_be_read_for_want_of_descriptors_is_a_shortage(
    what: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with no_descriptors(), pytest.raises((ShortageError, OSError)) as raised:
        READS[what](str(tmp_path))
    assert shortage("", raised.value) is not None
    READS[what](str(tmp_path))


# --- configuration ----------------------------------------------------------------------------


def test_a_file_of_the_configuration_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * 1024 * 1024))
    assert environment.read_file(str(file)) == bytes(4 * 1024 * 1024)
    with pytest.raises(ValueError, match=r"^more than 4194304 bytes$"):
        environment.read_file("/dev/zero")
    with pytest.raises(FileNotFoundError):
        environment.read_file(f"{file}.missing")


def test_a_file_of_the_configuration_that_has_to_be_waited_for_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    refusals: list[str] = []

    def read() -> None:
        with pytest.raises(ValueError, match="FIFO") as caught:
            environment.read_file(str(fifo))
        refusals.append(str(caught.value))

    for flags in (None, os.O_RDWR):  # without a writer, and with one that writes nothing
        with ExitStack() as stack:
            if flags is not None:
                stack.callback(os.close, os.open(fifo, flags))
            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            thread.join(LIMIT)
            assert not thread.is_alive()
    assert refusals == ["a FIFO, and not a file"] * 2


def test_a_file_of_the_configuration_may_be_the_null_device() -> None:
    assert environment.read_file(os.devnull) == b""


@pytest.mark.parametrize("home", ["/home/u", "", None])
def test_the_host_is_described_by_its_environment(
    environ: pytest.MonkeyPatch, home: str | None
) -> None:
    environ.delenv("HOME", raising=False)
    if home is not None:
        environ.setenv("HOME", home)
    environ.setenv("XDG_CONFIG_HOME", "/xdg")
    host = environment.host()
    assert (host.uid, host.home) == (os.getuid(), home or "")
    assert host.environment["XDG_CONFIG_HOME"] == "/xdg"
    assert environment.environment()["XDG_CONFIG_HOME"] == "/xdg"


def test_what_exists_is_what_has_a_name(tmp_path: Path) -> None:
    """A dangling link is a broken configuration, not a missing one."""
    (tmp_path / "link").symlink_to("nowhere")
    assert environment.host().exists(str(tmp_path / "link"))
    assert not environment.host().exists(str(tmp_path / "missing"))


def test_the_directories_in_one_are_listed_and_none_where_that_is_not_possible(
    tmp_path: Path,
) -> None:
    (tmp_path / "quay.io").mkdir()
    (tmp_path / "link").symlink_to("quay.io")
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    directories = environment.host().directories
    assert sorted(directories(str(tmp_path))) == ["link", "quay.io"]
    for path in ("missing", "file", "dangling", "x" * 300):
        assert list(directories(str(tmp_path / path))) == []


def test_a_directory_s_names_are_those_of_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "b.conf").touch()
    (tmp_path / "link.conf").symlink_to("nowhere")
    (tmp_path / "directory.conf").mkdir()
    names = environment.host().names
    assert sorted(names(str(tmp_path))) == ["b.conf", "link.conf"]
    assert list(names(str(tmp_path / "missing"))) == []
    assert list(names(str(tmp_path / "b.conf"))) == []


def test_a_directory_that_cannot_be_listed_is_not_passed_over(tmp_path: Path) -> None:
    directory = tmp_path / "link"
    directory.symlink_to(directory)
    with pytest.raises(ConfigurationError) as caught:
        environment.host().names(str(directory))
    assert caught.value.message == f"reading {directory}: Too many levels of symbolic links"
    assert caught.value.detail == {"file": str(directory)}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nowhere/certs", "/nowhere/certs: No such file or directory"),
        ("/dev/null", "/dev/null: Not a directory"),
        ("a\0b", "a b: not a path"),
    ],
)
def test_a_directory_that_cannot_be_read_is_a_usage_error(path: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        environment.check_option_directory("--cert-dir", path)
    assert str(caught.value) == f"--cert-dir {reason}"


def test_a_directory_that_can_be_read_is_none(tmp_path: Path) -> None:
    environment.check_option_directory("--cert-dir", str(tmp_path))


# --- what files are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (stat.S_IFDIR | 0o755, "a directory"),
        (stat.S_IFIFO, "a FIFO"),
        (stat.S_IFSOCK, "a socket"),
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFBLK, "a block device"),
        (stat.S_IFREG | 0o4755, "a regular file"),
        (0o600, "a file of unknown kind"),
    ],
)
def test_a_file_s_mode_has_words(mode: int, words: str) -> None:
    assert environment.kind_of(mode) == words


# --- what comes through an inherited descriptor, and where it is kept --------------------------


def test_what_can_be_read_only_once_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    ours, theirs = socket.socketpair()
    with ExitStack() as stack:
        for each in (ours, theirs):
            stack.enter_context(each)
        pipe = os.pipe()
        fifo = os.open(tmp_path / "fifo", os.O_RDWR)
        file = os.open(tmp_path / "file", os.O_RDONLY)
        null = os.open(os.devnull, os.O_RDONLY)
        directory = os.open(tmp_path, os.O_RDONLY)
        for fd in (*pipe, fifo, file, null, directory):
            stack.callback(os.close, fd)
        every = (*pipe, fifo, file, null, directory, ours.fileno())
        for fd in every:  # what this process has made is not for reading from
            with pytest.raises(OSError, match="Bad file descriptor"):
                environment.is_pipe(fd)
            os.set_inheritable(fd, True)  # noqa: FBT003  (the name says it)
        assert [environment.is_pipe(fd) for fd in (pipe[0], fifo, ours.fileno())] == [True] * 3
        assert [environment.is_pipe(fd) for fd in (file, null, directory)] == [False] * 3


def test_a_descriptor_that_is_closed_is_no_pipe_and_no_file() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        environment.is_pipe(9999)


@pytest.mark.parametrize("variable", ["TMPDIR", None])
def test_a_temporary_file_has_no_name_and_is_where_large_files_may_be(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    with environment.temporary_file() as file:
        assert os.fstat(file.fileno()).st_nlink == 0
        assert list(tmp_path.iterdir()) == []
        at = os.readlink(f"/proc/self/fd/{file.fileno()}")
        assert at.startswith(f"{tmp_path}/" if variable else "/var/tmp/")  # noqa: S108  (where it must be)
        assert not os.get_inheritable(file.fileno())
        file.write(b"content")
        file.seek(0)
        assert file.read() == b"content"


def test_a_place_for_temporary_files_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        environment.temporary_file()


@pytest.mark.parametrize(
    ("path", "fd"),
    [
        ("/dev/stdin", 0),
        ("/dev/fd/0", 0),
        ("/dev/fd/3", 3),
        ("/proc/self/fd/12", 12),
        ("/dev/fd/007", 7),
        ("/dev/fd/999999999", 999_999_999),
        ("/dev/fd/1000000000", None),
        ("/dev/fd/", None),
        ("/dev/fd/-1", None),
        ("/dev/fd/\uff13", None),
        ("/dev/fd/3/x", None),
        ("/dev/stdout", None),
        ("dev/stdin", None),
        ("/proc/1/fd/3", None),
        ("/dev/stdin\n", None),
        ("", None),
    ],
)
def test_some_paths_stand_for_inherited_descriptors(path: str, fd: int | None) -> None:
    assert environment.inherited_descriptor(path) == fd

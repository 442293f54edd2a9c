"""From the command line to the exit status, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from support.parent import COMMAND, LIMIT, environment

from imgproxy import __version__


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input="",
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env=environment(),
    )


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--version", "os"], ["--debug", "--version"]]
)
def test_the_version_goes_to_standard_output(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"imgproxy {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_goes_to_standard_output(option: str) -> None:
    done = run(option)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: imgproxy ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param([], "the following arguments are required: IMAGE", id="no-image"),
        pytest.param(["--unheard-of", "os"], "unknown option", id="unknown-option"),
        pytest.param(
            ["--retries=a\nb\x1b[31m", "os"], 'argument --retries: "a b [31m"', id="controls"
        ),
        pytest.param(
            [os.fsdecode(b"--retries=\xff"), "os"], 'argument --retries: " "', id="no-text"
        ),
        pytest.param(["--sockfd", "99", "os"], "descriptor 99 is closed", id="closed-descriptor"),
        pytest.param(
            ["--sideload", "/<nam>", "os"],
            'argument --sideload: "/<nam>": column 2: "<nam>" is none of <ref>, <name>',
            id="pattern",
        ),
        pytest.param(
            ["oci-archive:/dev/stdin:tag"],
            "the image cannot be read from /dev/stdin: requests are",
            id="image-and-requests-through-one-descriptor",
        ),
        pytest.param(
            ["--policy", "/nowhere", "os"],
            "--policy /nowhere: No such file or directory",
            id="unreadable-file",
        ),
        pytest.param(
            ["--creds", "u:hunter2", "--policy", "/hunter2", "os"],
            "--policy /***: No such file or directory",
            id="secret-of-another-option",
        ),
        pytest.param(
            ["--cert-dir", "/nowhere", "os"],
            "--cert-dir /nowhere: No such file or directory",
            id="unreadable-directory",
        ),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments: list[str], complaint: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"imgproxy: {complaint}")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    assert done.stderr[:-1].isprintable()


def test_a_usage_error_without_standard_error_is_dropped() -> None:
    shell = '"$@" 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *COMMAND, "--unheard-of", "os"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=LIMIT,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize(
    ("shared", "told"),
    [("stdin stdout stderr", b""), ("stdout stderr", b""), ("stdin stdout", b"imgproxy: ")],
    ids=["super-server", "output-and-error", "error-apart"],
)
def test_a_usage_error_is_not_written_where_http_is_expected(shared: str, told: bytes) -> None:
    """Super-servers make one socket of all three streams."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        streams = dict.fromkeys(shared.split(), theirs.fileno())
        process = subprocess.Popen(
            [*COMMAND, "--unheard-of", "os"],
            **{"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams},  # type: ignore[call-overload]
            env=environment(),
        )
        theirs.close()
        _, apart = process.communicate(timeout=LIMIT)
        assert process.returncode == 2
        assert ours.recv(4096) == b""
        assert (apart or b"").startswith(told)


@pytest.mark.parametrize(("options", "told"), [([], 1), (["-W", "always"], 2)])
def test_warnings_of_libraries_are_not_written_where_http_is_expected(
    options: list[str], told: int
) -> None:
    script = """if True:
        import sys, warnings
        from imgproxy.__main__ import main
        sys.argv[1:] = ["--sockfd=99", "os"]
        main()
        warnings.warn_explicit("advice", UserWarning, "file", 1)
    """
    done = subprocess.run(
        [sys.executable, *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
        env=environment(),
    )
    lines = done.stderr.splitlines()
    assert (done.stdout, len(lines)) == ("", told)
    assert lines[0].startswith("imgproxy: descriptor 99 is closed")


def run_as_service(shift: int, count: str) -> subprocess.CompletedProcess[str]:
    """Run on an empty pipe, with LISTEN_PID the process's own number plus what is given."""
    script = f'export LISTEN_PID=$(($$ + {shift})); exec "$@"'
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, "os"],
        input="",
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env=environment(LISTEN_FDS=count),
    )


@pytest.mark.parametrize(
    ("shift", "count", "status", "message"),
    [
        (
            0,
            "1",
            2,
            "imgproxy: descriptor 3 is closed; the program that starts imgproxy must let it inherit"
            " the descriptor\n",
        ),
        (0, "x", 2, 'imgproxy: LISTEN_FDS="x" is not a number of descriptors\n'),
        (0, "0", 0, ""),
        (1, "1", 0, ""),
    ],
    ids=["one", "malformed", "none", "of-another-process"],
)
def test_standard_streams_are_served_where_systemd_gives_no_descriptors(
    shift: int, count: str, status: int, message: str
) -> None:
    done = run_as_service(shift, count)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)

"""The units in systemd/: well-formed, hardened, and no harder than the program can bear.

There is no service manager here (`test_systemd_machine.py` boots one). systemd-socket-activate does
its part with the command lines of the units, systemd-analyze reads the units, and strace tells what
the program does of that which they forbid.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import traced
from support.damage import flip
from support.images import Layout, named
from support.parent import COMMAND, LIMIT, ROOT, Child, Client, environment, eventually, listens
from support.servers import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Keep, Sample
    from support.filled import Registry
    from support.home import Home

UNITS = ROOT / "systemd"
REGISTRY = "imgproxy-registry.service"
SOCKETS = sorted(path.name for path in UNITS.glob("*.socket"))
EVERY_SERVICE = sorted(path.name for path in UNITS.glob("*.service"))
SERVICES = [name for name in EVERY_SERVICE if name != REGISTRY]  # those of one image

# In tenths, of systemd's own scale from 0 to 10; below 2 is what it calls "OK" or "SAFE".
EXPOSURE = {"imgproxy-offline@.service": 10, REGISTRY: 10}
MOST_EXPOSURE = 15

_CALL = re.compile(r"^\d+ +(\w+)\((.*)", re.MULTILINE)


def configuration(unit: str) -> dict[str, list[str]]:
    """Return what a unit says, by key; values given twice add up."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def command_of(unit: str, image: str, *options: str) -> list[str]:
    """Return the unit's command line as the manager would, with the program that is tested."""
    (line,) = configuration(unit)["ExecStart"]
    program, *words = shlex.split(line)
    assert program == "imgproxy"
    assert words[-3:] == ["$OPTIONS", "--", "${IMAGE}"]
    return [*COMMAND, *words[:-3], *options, "--", image]


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require("systemd-analyze"), "--no-pager", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Return a copy of the units, whose command exists."""
    copy = tmp_path / "units"
    shutil.copytree(UNITS, copy)
    program = tmp_path / "imgproxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for file in copy.glob("*.service"):
        file.write_text(file.read_text().replace("ExecStart=imgproxy ", f"ExecStart={program} "))
    return copy


def instance(unit: str) -> str:
    return unit.replace("@.", "@sample.")


@pytest.mark.parametrize("unit", [*EVERY_SERVICE, *SOCKETS])
def test_a_unit_is_well_formed(unit: str, units: Path) -> None:
    result = analyze("verify", "--man=no", "--recursive-errors=one", units / instance(unit))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_a_unit_that_is_not_well_formed_would_be_found(units: Path) -> None:
    file = units / "imgproxy@.service"
    file.write_text(file.read_text() + "NoSuchSetting=yes\n")
    assert "NoSuchSetting" in analyze("verify", "--man=no", units / instance(file.name)).stderr


@pytest.mark.parametrize("unit", EVERY_SERVICE)
def test_a_service_is_hardly_exposed(unit: str, units: Path) -> None:
    threshold = EXPOSURE.get(unit, MOST_EXPOSURE)
    result = analyze(
        "security", "--offline=true", f"--threshold={threshold}", units / instance(unit)
    )
    assert result.returncode == 0, result.stdout
    assert "Overall exposure" in result.stdout


def test_each_service_has_its_socket_and_the_same_protection() -> None:
    prefixes = {each.partition(".")[0].rstrip("@") for each in EVERY_SERVICE}
    assert prefixes == {each.partition(".")[0].rstrip("@") for each in SOCKETS}
    own = {"Description", "ExecStart", "Documentation", "RestrictAddressFamilies", "Requires"}
    own |= {"After", "Wants", "EnvironmentFile", "PrivateNetwork", "IPAddressDeny", "CollectMode"}
    own |= {"StandardInput", "StandardOutput", "StandardError"}
    own |= {"TimeoutStopSec", "Restart", "LimitNOFILE", "ProcSubset"}
    common = [
        {key: value for key, value in configuration(unit).items() if key not in own}
        for unit in EVERY_SERVICE
    ]
    assert common[0]["NoNewPrivileges"] == ["yes"]
    assert all(each == common[0] for each in common)


def test_the_offline_service_has_no_network() -> None:
    offline = configuration("imgproxy-offline@.service")
    assert offline["PrivateNetwork"] == ["yes"]
    assert offline["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert "--offline" in offline["ExecStart"][0]


# --- the command lines, started as the manager does ----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("unit", SERVICES)
def test_a_parent_is_served_by_each(unit: str, sample: Sample, keep: Keep, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    activator = keep(Child(activate(unit, path, sample.name)))
    assert eventually(lambda: listens(path))
    url = ("--unix-socket", str(path), "http://image/manifest")
    for _ in range(2):
        assert curl(*url) == sample.manifest
    client = activator.connect(str(path))
    assert client.quit().status == 200
    assert client.ending() == "end"
    if "inetd" in unit:  # the socket's own process goes on
        assert curl(*url) == sample.manifest
        activator.stop()
    else:
        assert activator.wait() == 0


def activate(unit: str, path: Path, image: str) -> list[str]:
    """Return a command that listens like the socket of a service, and hands over as it wants it."""
    said = configuration(unit)
    inetd = ["--accept", "--inetd"] if said.get("StandardInput") == ["socket"] else []
    socket = "imgproxy-inetd.socket" if inetd else unit.replace(".service", ".socket")
    assert configuration(socket).get("Accept", ["no"]) == ["yes" if inetd else "no"]
    return [
        require("systemd-socket-activate"),
        f"--listen={path}",
        *inetd,
        f"--setenv=PYTHONPATH={environment()['PYTHONPATH']}",
        *command_of(unit, image, "--insecure-policy"),
    ]


def curl(*arguments: str) -> bytes:
    words = [require("curl"), "--silent", "--show-error", "--fail", "--max-time", "10", *arguments]
    return subprocess.run(words, capture_output=True, check=True, env=environment()).stdout


def test_diagnostics_never_enter_an_inetd_stream(
    layout: Layout, keep: Keep, tmp_path: Path
) -> None:
    content = bytes(3 << 20)
    layer = layout.layers(layout.save_image(content))[0]
    flip(layout.file(layer["digest"]), 2 << 20)
    path = tmp_path / "socket"
    activator = keep(Child(activate("imgproxy-inetd@.service", path, f"oci:{layout.path}")))
    assert eventually(lambda: listens(path))
    client: Client = activator.connect(str(path))
    reply = client.get(f"/blobs/{layer['digest']}")
    assert (reply.status, reply.ending) == (200, "end")
    assert content.startswith(reply.body[: 2 << 20])
    assert len(reply.body) < len(content)
    assert eventually(lambda: "DIGEST_INVALID" in activator.stderr)
    activator.stop()


# --- what is forbidden, and what the program does ------------------------------------------------


@pytest.fixture(scope="module")
def groups() -> dict[str, list[str]]:
    """Return what each of systemd's groups of system calls has in it, groups among them."""
    result = analyze("syscall-filter")
    found: dict[str, list[str]] = {}
    name = ""
    for line in result.stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = []
        elif line.startswith("    ") and "#" not in line:
            found[name].append(line.strip())
    assert "@system-service" in found, result.stderr
    return found


def members(name: str, groups: dict[str, list[str]]) -> Iterator[str]:
    if name.startswith("@"):
        for each in groups[name]:
            yield from members(each, groups)
    else:
        yield name


def allowed(unit: str, groups: dict[str, list[str]]) -> set[str]:
    calls: set[str] = set()
    for words in configuration(unit)["SystemCallFilter"]:
        named = {call for name in words.removeprefix("~").split() for call in members(name, groups)}
        calls = calls - named if words.startswith("~") else calls | named
    return calls


def trace(file: Path, home: Home, *arguments: str) -> tuple[str, Child]:
    """Run the program under strace on standard input; give what it did, when it has ended."""
    requests = b"GET /manifest HTTP/1.1\r\nHost: x\r\n\r\nGET /config HTTP/1.1\r\nHost: x\r\n\r\n"
    stdin = file.with_suffix(".requests")
    stdin.write_bytes(requests)
    with stdin.open("rb") as source:
        child = Child(
            [traced.strace(), "-f", "-qq", "-e", "signal=none", "-o", str(file), *arguments],
            stdin=source,
            env=home.environment(PYTHONDONTWRITEBYTECODE="1", COVERAGE_PROCESS_START=None),
        )
    return file.read_text() if child.wait(4 * LIMIT) == 0 else "", child


@pytest.mark.slow
@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_may_do_what_the_program_does(
    unit: str,
    groups: dict[str, list[str]],
    layout: Layout,
    registry: Registry,
    home: Home,
    tmp_path: Path,
) -> None:
    if "--offline" in configuration(unit)["ExecStart"][0]:
        layout.save_image(bytes(3 << 20))
        image = f"oci:{layout.path}"
    else:
        image = registry.name(":large").replace("127.0.0.1", "localhost")  # resolved by name
    command = command_of(unit, image, "--insecure-policy", "--tls-verify=false")
    text, child = trace(tmp_path / "trace", home, *command)
    assert child.stdout.count("HTTP/1.1 200 OK") == 2, child.stderr
    child.close()
    calls = _CALL.findall(text)
    assert {name for name, _ in calls} <= allowed(unit, groups)
    (families,) = configuration(unit)["RestrictAddressFamilies"]
    opened = {words.partition(",")[0] for name, words in calls if name in {"socket", "socketpair"}}
    assert opened <= set(families.split())
    # MemoryDenyWriteExecute
    mapped = [words for name, words in calls if name in {"mmap", "mprotect", "pkey_mprotect"}]
    assert mapped
    assert not [words for words in mapped if "PROT_WRITE|PROT_EXEC" in words]
    assert not [words for name, words in calls if name == "mprotect" and "PROT_EXEC" in words]


# --- the registry ---------------------------------------------------------------------------------


def drop_in() -> str:
    """Return the drop-in file for upstreams that stands in the comments of the registry's unit."""
    text = (UNITS / REGISTRY).read_text()
    _, _, text = text.partition("#   [Service]\n")
    lines = itertools.takewhile(lambda line: line.startswith("#   "), text.splitlines())
    return "\n".join(["[Service]", *(line.removeprefix("#   ") for line in lines), ""])


def test_the_registry_with_upstreams_is_hardly_exposed(units: Path) -> None:
    directory = units / f"{REGISTRY}.d"
    directory.mkdir()
    (directory / "upstream.conf").write_text(drop_in())
    assert "PrivateNetwork=no" in drop_in()
    result = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", units / REGISTRY)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_the_registry_may_do_what_it_does(
    groups: dict[str, list[str]], home: Home, tmp_path: Path
) -> None:
    """It is started with its sockets, in a network that has no way out, and pulled from."""
    layout = Layout(tmp_path / "images")
    image = layout.image(bytes(3 << 20))
    layout.save(named(image, "registry.example/app:1"))
    trace_file = tmp_path / "trace"
    (line,) = configuration(REGISTRY)["ExecStart"]
    assert line == "imgproxy registry $OPTIONS"
    options = ["registry", "--images", str(layout.path), "--insecure-policy"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        strace = [traced.strace(), "-f", "-qq", "-e", "signal=none", "-o", str(trace_file)]
        child = Child(
            [*strace, *COMMAND, *options, f"--sockfd={listener.fileno()}"],
            pass_fds=[listener.fileno()],
            env=home.environment(PYTHONDONTWRITEBYTECODE="1", COVERAGE_PROCESS_START=None),
        )
    try:
        url = f"http://127.0.0.1:{port}/v2/registry.example/app"
        manifest = curl(f"{url}/manifests/1")
        assert manifest == layout.read(image["digest"])
        assert len(curl(f"{url}/blobs/{layout.layers(image)[0]['digest']}")) == 3 << 20
        assert b"imgproxy_requests_total" in curl(f"http://127.0.0.1:{port}/metrics")
        traced_pid = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
        os.kill(int(traced_pid), signal.SIGTERM)
        assert child.wait(4 * LIMIT) == -signal.SIGTERM
    finally:
        child.close()
    calls = _CALL.findall(trace_file.read_text())
    # What a process may have is set by the unit, and being refused it is not the end.
    assert {name for name, _ in calls} - {"prlimit64", "setrlimit"} <= allowed(REGISTRY, groups)
    opened = {words.partition(",")[0] for name, words in calls if name in {"socket", "socketpair"}}
    assert opened <= {"AF_UNIX"}
    mapped = [words for name, words in calls if name in {"mmap", "mprotect", "pkey_mprotect"}]
    assert not [words for words in mapped if "PROT_WRITE|PROT_EXEC" in words]

"""The units in systemd/ under a real service manager, in a machine that was booted for them.

The program is installed in it as the README says for all users, and the units as the guide says.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from interop.test_systemd import EVERY_SERVICE, MOST_EXPOSURE, REGISTRY, drop_in
from support import machines
from support.filled import MIB, noise
from support.images import Layout, digest_of, named
from support.parent import Client, Incomplete, eventually
from support.protected_doors import curl
from support.registry_clients import ANYTHING, run
from support.registry_doors import NAME, blob, manifest
from support.servers import certificates, docker_registry, require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.filled import Registry
    from support.home import Home
    from support.images import Json
    from support.machines import Machine

pytestmark = pytest.mark.slow

SOCKET = REGISTRY.replace(".service", ".socket")
PORT = 5000
UNIX = "/run/imgproxy/registry.sock"

# No socket's buffers hold it: the program still sends it while it is not read.
LARGE = noise(24 * MIB)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    directory = tmp_path_factory.mktemp("images")
    directory.chmod(0o755)
    return Layout(directory / "layout")


@pytest.fixture(scope="module")
def app(layout: Layout) -> Json:
    image = layout.image(b"a small layer", LARGE)
    layout.save(named(image, f"{NAME}:1"))
    return image


@pytest.fixture(scope="module")
def machine(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    wheels = machines.wheels(tmp_path_factory.mktemp("wheels"))
    with machines.running({"/srv/images": layout.path.parent, "/srv/wheels": wheels}) as machine:
        pip = "/opt/imgproxy/bin/pip"
        machine.run("/usr/bin/python3", "-m", "venv", "/opt/imgproxy")
        offline = ("--quiet", "--no-index", "--find-links=/srv/wheels")
        machine.run(pip, "install", *offline, "oci-imgproxy[signatures,registry]")
        machine.run("ln", "-s", "/opt/imgproxy/bin/imgproxy", "/usr/local/bin/")
        units = "/opt/imgproxy/share/doc/imgproxy/systemd"
        machine.run("sh", "-c", f"cp {units}/* /etc/systemd/system/")
        machine.write("/etc/containers/policy.json", json.dumps(ANYTHING))
        yield machine


@contextmanager
def started(
    machine: Machine, socket_unit: str, configuration: str, options: str, dropped: str = ""
) -> Iterator[None]:
    """Let a socket listen for the block, with a configuration and a drop-in file for its service.

    The service does not run before somebody connects.
    """
    machine.write(f"/etc/imgproxy/{configuration}.conf", options)
    directory = machine.root / f"etc/systemd/system/{REGISTRY}.d"
    if dropped:
        machine.write(f"/etc/systemd/system/{REGISTRY}.d/test.conf", dropped)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", socket_unit)
    try:
        yield
    finally:
        services = socket_unit.replace(".socket", "@*" * ("inetd" in socket_unit) + ".service")
        machine.run("systemctl", "stop", socket_unit, services)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def registry_of(machine: Machine, options: str, dropped: str = "") -> Iterator[None]:
    """Let the registry's sockets listen for the block."""
    with started(machine, SOCKET, "registry", f"OPTIONS={options}\n", dropped):
        assert machine.property(REGISTRY, "ActiveState") == "inactive"
        yield
        said = machine.journal(REGISTRY)
        assert "Traceback" not in said, said


@contextmanager
def connected(machine: Machine, path: str = UNIX) -> Iterator[Client]:
    """Connect to a Unix socket in the machine for the block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(f"{machine.root}{path}")
        yield Client(connection)


def pull(machine: Machine, name: str, home: Home) -> list[bytes]:
    """Pull an image with skopeo, in the machine's network; return the manifest and the layers."""
    shutil.rmtree(home.path / "to", ignore_errors=True)
    home.path.mkdir(exist_ok=True)
    options = ("--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false")
    source = f"docker://127.0.0.1:{PORT}/{name}"
    pulled = run([*machine.network, require("skopeo"), *options, source, "dir:to"], home)
    assert pulled.status == 0, (pulled.output, machine.journal(REGISTRY))
    content = (home.path / "to/manifest.json").read_bytes()
    layers = [each["digest"].partition(":")[2] for each in json.loads(content)["layers"]]
    return [content, *((home.path / "to" / each).read_bytes() for each in layers)]


# Of every kind of file system: what belongs to root, and what all users may write to.
PLACES = ("/", "/etc", "/opt/imgproxy", "/srv", "/usr", "/var", "/var/cache", "/run", "/run/lock")
PLACES += ("/dev", "/dev/shm", "/dev/mqueue", "/sys")  # noqa: S108


def assert_writes_nowhere(machine: Machine, service: str, *, but: str = "") -> None:
    """Assert that a service that runs has written nothing, and could not, but to one place.

    Where it is, not even root could.
    """
    pid = machine.property(service, "MainPID")
    user = re.findall(r"^Uid:\t(\d+)", machine.run("cat", f"/proc/{pid}/status"), re.MULTILINE)[0]
    assert user != "0"
    written = machine.run("find", "/", *PLACES[6:-1], "-xdev", "-user", user).splitlines()
    kept = but.replace("/var/cache", "/var/cache/private")  # where the link of DynamicUser leads
    assert [each for each in written if not f"{each}/".startswith(f"{kept}/")] == []
    assert bool(written) == bool(but)

    def touch(directory: str) -> str:
        return machine.ask("nsenter", f"--target={pid}", "--mount", "touch", f"{directory}/x")[1]

    assert [each for each in PLACES if "Read-only file system" not in touch(each)] == []
    assert not but or touch(but) == ""


def assert_is_hardly_exposed(machine: Machine, service: str) -> None:
    machine.run(
        "systemd-analyze", "--no-pager", "security", f"--threshold={MOST_EXPOSURE}", service
    )


# --- one image ------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [each for each in EVERY_SERVICE if each != REGISTRY])
def test_the_first_connection_starts_a_service(
    service: str, machine: Machine, layout: Layout, app: Json
) -> None:
    name = "inetd" if "inetd" in service else "sample"
    unit = service.replace("@.", "@sample.")
    options = f"IMAGE=oci:/srv/images/layout:{NAME}:1\nOPTIONS=--platform=linux/amd64\n"
    listening = "imgproxy-inetd.socket" if name == "inetd" else unit.replace("service", "socket")

    def active() -> list[str]:
        pattern = service.replace("@.", "@*.")
        listed = machine.run("systemctl", "list-units", "--plain", "--no-legend", pattern)
        return [line.split()[0] for line in listed.splitlines()]

    path = f"/run/imgproxy/{name}.sock"
    with started(machine, listening, name, options):
        assert active() == []
        for _ in range(2):  # the second is served by the same process, or by another with inetd
            with connected(machine, path) as client:
                assert client.get("/manifest").body == layout.read(app["digest"])
                assert client.get(f"/blobs/{digest_of(LARGE)}").body == LARGE
                (running,) = active()
                assert_is_hardly_exposed(machine, running)
                assert_writes_nowhere(machine, running)
            assert name != "inetd" or eventually(lambda: active() == [])
        with connected(machine, path) as client:
            assert client.quit().status == 200
        assert eventually(lambda: active() == [])
        with connected(machine, path) as client:
            assert client.get("/manifest").status == 200


# --- the registry ---------------------------------------------------------------------------------


def test_the_registry_is_started_stopped_and_started_again(
    machine: Machine, layout: Layout, app: Json, home: Home
) -> None:
    wanted = [layout.read(app["digest"]), b"a small layer", LARGE]
    with registry_of(machine, "--images /srv/images"):
        for _ in range(2):
            assert pull(machine, f"{NAME}:1", home) == wanted
            with connected(machine) as client:
                assert client.get(manifest(NAME, "1")).body == wanted[0]
            assert_is_hardly_exposed(machine, REGISTRY)
            assert_writes_nowhere(machine, REGISTRY)
            machine.run("systemctl", "stop", REGISTRY)
            assert machine.property(REGISTRY, "ActiveState") == "inactive"
            assert machine.property(REGISTRY, "Result") == "success"


@pytest.mark.parametrize("by", ["restart", "kill"])
def test_a_restart_in_mid_pull(machine: Machine, by: str) -> None:
    """A restart waits for the reply under way; a kill ends it short. The next pull is whole."""
    layer = blob(NAME, digest_of(LARGE))
    with registry_of(machine, "--images /srv/images"):
        with connected(machine) as client:
            assert client.get(manifest(NAME, "1")).status == 200
            client.ask("GET", layer)
            assert client.head().status == 200
            begun = client.read(MIB)
            process = machine.property(REGISTRY, "MainPID")
            if by == "restart":
                machine.run("systemctl", "--no-block", "restart", REGISTRY)
                state = ("ActiveState", "deactivating")
                assert eventually(lambda: machine.property(REGISTRY, state[0]) == state[1])
                assert begun + client.read(len(LARGE) - MIB) == LARGE
            else:
                machine.run("systemctl", "kill", "--signal=KILL", REGISTRY)
                with pytest.raises(Incomplete) as stop:
                    client.read(len(LARGE) - MIB)
                assert LARGE.startswith(begun + stop.value.part)
        with connected(machine) as client:
            assert client.get(manifest(NAME, "1")).status == 200
            assert client.get(layer).body == LARGE
        assert machine.property(REGISTRY, "MainPID") not in {process, "0"}


def test_upstreams_and_a_cache_that_alone_is_written_to(
    machine: Machine, registry: Registry, home: Home
) -> None:
    wanted = [registry.layout.read(registry.images["large"]["digest"]), noise(12 * MIB)]
    with docker_registry(registry.directory, around=machine.network) as address:
        name = f"127.0.0.1:{address.rpartition(':')[2]}"
        options = f"--upstream {name} --default-registry {name} --tls-verify=false"
        options += " --no-creds --cache /var/cache/imgproxy --retries 0"
        with registry_of(machine, options, drop_in()):
            assert pull(machine, "images/all:large", home) == wanted
            assert_is_hardly_exposed(machine, REGISTRY)
            assert_writes_nowhere(machine, REGISTRY, but="/var/cache/imgproxy")
    with registry_of(machine, options, drop_in()):
        assert pull(machine, "images/all:large", home) == wanted, "it is kept"


def test_certificates_that_a_group_may_read_are_rotated(machine: Machine, tmp_path: Path) -> None:
    files = [certificates(tmp_path / each) for each in ("one", "two")]
    machine.run("groupadd", "--force", "--system", "imgproxy-keys")

    def place(number: int) -> None:
        for name, content in (("key", files[number].key), ("pem", files[number].certificate)):
            path = f"/etc/imgproxy/tls.{name}"
            machine.write(f"{path}.new", content.read_bytes(), 0o640)
            machine.run("chgrp", "imgproxy-keys", f"{path}.new")
            machine.run("mv", f"{path}.new", path)

    def asked(number: int) -> int:
        return fetch(machine.network, "--cacert", files[number].authority)

    place(0)
    options = (
        "--images /srv/images --tls-cert /etc/imgproxy/tls.pem --tls-key /etc/imgproxy/tls.key"
    )
    with registry_of(machine, options, "[Service]\nSupplementaryGroups=imgproxy-keys\n"):
        assert (asked(0), asked(1)) == (200, 0), machine.journal(REGISTRY)
        place(1)
        assert eventually(lambda: asked(1) == 200), machine.journal(REGISTRY)
        assert asked(0) == 0


def fetch(network: Sequence[str], *options: str | Path) -> int:
    """Return the status of the registry's answer to curl over TLS, 0 if there is none."""
    return curl(f"https://localhost:{PORT}/v2/", *options, around=network).status

"""A file system that hangs stops only those who wait for what is on it: no end, no `/quit`.

What hangs is a real one, of FUSE, whose server does not answer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.archives import DIALECTS, pack, saved, write_dir, write_registry_tree
from support.hanging import HangingMount, hanging_mount
from support.home import Home
from support.images import Layout
from support.parent import INSECURE, eventually
from support.sigstores import Signer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Serve
    from support.filled import Registry
    from support.parent import Child

# The contract says within one second; a loaded machine gets four more.
SECOND = 5.0

# For the program to start and to ask for what hangs.
WHILE = 1.0

ACCEPT = '{"default": [{"type": "insecureAcceptAnything"}]}'
PLATFORM = "--platform=linux/amd64"


class Case(NamedTuple):
    """A command line, and what else the program is given; `status` is that of the manifest."""

    image: str
    options: tuple[str, ...] = ()
    policy: str | None = INSECURE
    env: dict[str, str] = {}  # noqa: RUF012  (which nobody changes)
    status: int = 200


class Scene(NamedTuple):
    """The file system that hangs, a directory that does not, and a registry."""

    mount: HangingMount
    local: Path
    registry: Registry

    def layout(self, *, here: bool = False) -> Layout:
        layout = Layout((self.local if here else self.mount.content) / "layout")
        layout.save_image(b"a layer")
        return layout

    def on_mount(self, name: str, content: str | bytes) -> str:
        """Write a file, and return its path on the file system that hangs."""
        Home(self.mount.content).write(name, content)
        return f"{self.mount.path}/{name}"


def in_layout(scene: Scene) -> Case:
    scene.layout()
    return Case(f"oci:{scene.mount.path}/layout")


def in_layout_by_path(scene: Scene) -> Case:
    scene.layout()
    return Case(f"{scene.mount.path}/layout")


def in_linked_layout(scene: Scene) -> Case:
    scene.layout()
    (scene.local / "link").symlink_to(scene.mount.path / "layout")
    return Case(f"oci:{scene.local}/link")


def in_layout_with_linked_blobs(scene: Scene) -> Case:
    """Put the blobs elsewhere; the directory itself answers."""
    layout = scene.layout(here=True)
    (layout.path / "blobs").rename(scene.mount.content / "blobs")
    (layout.path / "blobs").symlink_to(scene.mount.path / "blobs")
    return Case(f"oci:{layout.path}")


def in_archive(scene: Scene) -> Case:
    content = pack(DIALECTS["nix layered"](saved(b"a layer")))
    return Case(f"docker-archive:{scene.on_mount('image.tar', content)}")


def in_archive_by_path(scene: Scene) -> Case:
    content = pack(DIALECTS["nix layered"](saved(b"a layer")))
    return Case(scene.on_mount("image.tar", content))


def in_directory(scene: Scene) -> Case:
    layout = Layout(scene.local / "layout")
    write_dir(scene.mount.content / "dir", layout, layout.save_image(b"a layer"))
    return Case(f"dir:{scene.mount.path}/dir")


def sideloaded_tree(scene: Scene) -> Case:
    layout = Layout(scene.local / "layout")
    descriptor = layout.save_image(b"a layer")
    write_registry_tree(scene.mount.content, "team/os", "1", layout, descriptor)
    pattern = f"--sideload={scene.mount.path}/<name>/manifests/<ref>"
    return Case("docker://registry.example/team/os:1", (pattern, "--offline"))


def policy_by_option(scene: Scene) -> Case:
    policy = scene.on_mount("policy.json", ACCEPT)
    return Case(f"oci:{scene.layout(here=True).path}", ("--policy", policy), None)


def policy_by_variable(scene: Scene) -> Case:
    env = {"CONTAINERS_POLICY_JSON": scene.on_mount("policy.json", ACCEPT)}
    return Case(f"oci:{scene.layout(here=True).path}", policy=None, env=env)


def policy_of_user(scene: Scene) -> Case:
    scene.on_mount(".config/containers/policy.json", ACCEPT)
    env = {"HOME": str(scene.mount.path)}
    return Case(f"oci:{scene.layout(here=True).path}", policy=None, env=env)


def key_of_policy(scene: Scene) -> Case:
    key = scene.on_mount("key.pub", Signer().pem)
    policy = f'{{"default": [{{"type": "sigstoreSigned", "keyPath": "{key}"}}]}}'
    path = Home(scene.local).write("policy.json", policy)
    image = f"oci:{scene.layout(here=True).path}"
    return Case(image, ("--policy", str(path)), None, status=403)


def in_registry(scene: Scene, *options: str, **env: str) -> Case:
    return Case(scene.registry.name(":latest"), ("--tls-verify=false", *options), env=env)


def registries_by_option(scene: Scene) -> Case:
    path = scene.on_mount("registries.conf", "")
    return in_registry(scene, f"--registries-conf={path}")


def registries_of_user(scene: Scene) -> Case:
    scene.on_mount(".config/containers/registries.conf.d/1.conf", "")
    return in_registry(scene, HOME=str(scene.mount.path))


def certificates_by_option(scene: Scene) -> Case:
    """Name a directory, whose files are for TLS, which is tried before plain HTTP."""
    scene.on_mount("certs/x", "")
    return in_registry(scene, f"--cert-dir={scene.mount.path}/certs")


def certificates_by_link(scene: Scene) -> Case:
    directory = scene.local / "certs"
    directory.mkdir()
    (directory / "x.crt").symlink_to(scene.on_mount("x.crt", ""))
    return in_registry(scene, f"--cert-dir={directory}")._replace(status=500)


CASES: dict[str, Callable[[Scene], Case]] = {
    "a layout": in_layout,
    "a layout by its path": in_layout_by_path,
    "a layout by a link": in_linked_layout,
    "blobs of a layout by a link": in_layout_with_linked_blobs,
    "an archive": in_archive,
    "an archive by its path": in_archive_by_path,
    "a dir:": in_directory,
    "a sideloaded tree": sideloaded_tree,
    "--registries-conf": registries_by_option,
    "the user's registries.conf": registries_of_user,
    "--cert-dir": certificates_by_option,
    "a certificate by a link": certificates_by_link,
    "a key of the policy": key_of_policy,
    "the user's policy": policy_of_user,
    "the policy of a variable": policy_by_variable,
    "--policy": policy_by_option,
}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[HangingMount]:
    with hanging_mount(tmp_path / "hanging") as mount:
        yield mount


@pytest.fixture
def waiting(
    mount: HangingMount, tmp_path: Path, registry: Registry, serve: Serve
) -> Callable[[str], tuple[Child, Case]]:
    """Start the program, and wait until a request has to wait for what hangs."""

    def start(name: str) -> tuple[Child, Case]:
        local = tmp_path / "local"
        local.mkdir()
        case = CASES[name](Scene(mount, local, registry))
        env = Home(tmp_path / "home").environment(**case.env)
        mount.hang()
        child = serve(
            *(case.image, PLATFORM, *case.options), sockets=2, policy=case.policy, env=env
        )
        child.client.ask("GET", "/manifest")
        assert child.client.silent_for(WHILE), "nothing hangs"
        return child, case

    return start


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_program_ends_with_its_parent_whatever_hangs(name: str, waiting: Any) -> None:  # noqa: ANN401
    child, _ = waiting(name)
    child.hang_up()
    assert child.wait(SECOND) == 0
    assert child.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_quit_is_answered_whatever_hangs(name: str, waiting: Any, mount: HangingMount) -> None:  # noqa: ANN401
    """The reply under way is finished as soon as the file system answers again."""
    child, case = waiting(name)
    assert child.clients[1].quit().status == 200
    mount.go_on()
    assert child.client.reply().status == case.status
    assert child.wait() == 0


@pytest.mark.slow
def test_a_reply_that_hangs_in_the_middle_ends_with_the_parent(
    mount: HangingMount, serve: Serve
) -> None:
    """The file is open by then, and to close it waits for the server as well."""
    layout = Layout(mount.content / "layout")
    (layer,) = layout.layers(layout.save_image(os.urandom(16 << 20)))
    child = serve(f"oci:{mount.path}/layout")
    child.client.ask("GET", f"/blobs/{layer['digest']}")
    assert child.client.head().status == 200
    mount.hang()
    while not child.client.silent_for(WHILE):
        pass  # what had been read already
    child.hang_up()
    assert child.wait(SECOND) == 0
    assert child.stderr == ""


def test_an_option_that_names_no_file_is_a_usage_error_also_where_it_could_hang(
    mount: HangingMount, serve: Serve
) -> None:
    for _ in range(10):  # an answer that a loaded machine gives late is not waited for
        child = serve("oci:/nowhere", "--policy", f"{mount.path}/nothing", policy=None)
        child.hang_up()
        if child.wait() != 0:
            break
    assert child.process.returncode == 2
    assert f"--policy {mount.path}/nothing: No such file or directory" in child.stderr


@pytest.mark.slow
def test_threads_end_when_the_file_system_answers_again(mount: HangingMount, serve: Serve) -> None:
    layout = Layout(mount.content / "layout")
    layout.save_image(b"a layer")
    child = serve(f"oci:{mount.path}/layout", sockets=4)
    mount.hang()
    for client in child.clients[:3]:
        client.ask("GET", "/manifest")
    assert child.clients[0].silent_for(WHILE)
    for client in child.clients[:3]:
        client.close()
    mount.go_on()
    assert child.clients[3].get("/manifest").status == 200

    def opened() -> list[str]:
        directory = f"/proc/{child.pid}/fd"
        return [each for each in map(os.readlink, _entries(directory)) if str(mount.path) in each]

    assert eventually(lambda: opened() == [])
    assert child.finish() == 0


def _entries(directory: str) -> list[str]:
    return [f"{directory}/{name}" for name in os.listdir(directory)]

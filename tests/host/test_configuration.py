"""The configuration: which files are read, in which order, and how broken ones are reported."""

from __future__ import annotations

import sys
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from support.streams import Notes

from imgproxy.config.certs import Certificates
from imgproxy.config.registries_d import Section
from imgproxy.config.search_paths import Host
from imgproxy.config.short_names import resolve
from imgproxy.errors import ConfigurationError, DeniedError, ShortageError
from imgproxy.host import environment
from imgproxy.host.configuration import Configuration, Overrides

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ACCEPT = b'{"default":[{"type":"insecureAcceptAnything"}]}'
HOME = {"HOME": "/home/u"}
XDG = {"HOME": "/home/u", "XDG_CONFIG_HOME": "/xdg"}


class Files:
    """A host with these files only, which records those that were read.

    What stands in place of content may be an exception.
    """

    def __init__(self, contents: dict[str, bytes | Exception], **variables: str) -> None:
        self.contents = contents
        self.variables = variables
        self.read: list[str] = []
        self.notes = Notes()

    def read_file(self, path: str) -> bytes:
        self.read.append(path)
        content = self.contents.get(path, FileNotFoundError(2, "No such file or directory"))
        if isinstance(content, Exception):
            raise content
        return content

    def exists(self, path: str) -> bool:
        return any(each == path or each.startswith(f"{path}/") for each in self.contents)

    def names(self, directory: str) -> list[str]:
        rests = [each.removeprefix(f"{directory}/") for each in self.contents]
        return [
            rest
            for rest, path in zip(rests, self.contents, strict=True)
            if rest != path and "/" not in rest
        ]

    def host(self) -> Host:
        home = self.variables.get("HOME") or ""
        return Host(self.variables, 1000, home, self.exists, self.names)


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Configuration]:
    """Return the configuration of a host."""

    def configuration(files: Files, **chosen: Any) -> Configuration:  # noqa: ANN401  (of each option its own)
        monkeypatch.setattr(environment, "host", files.host)
        monkeypatch.setattr(environment, "read_file", files.read_file)
        return Configuration(Overrides(**chosen), files.notes)

    return configuration


def test_nothing_is_read_before_it_is_needed(configure: Callable[..., Configuration]) -> None:
    files = Files({"/etc/containers/policy.json": b"{}"}, **XDG)
    configure(files)
    assert files.read == []


# --- the policy ---------------------------------------------------------------------------------

USER, OF_XDG, ETC, SHARE = (
    f"{directory}/containers/policy.json"
    for directory in ("/home/u/.config", "/xdg", "/etc", "/usr/share")
)


@pytest.mark.parametrize(
    ("variables", "present", "source"),
    [
        # classic: the user's, then the system's
        pytest.param(HOME, [USER, ETC], USER, id="user"),
        pytest.param(HOME, [ETC], ETC, id="system"),
        pytest.param({}, [USER, ETC], ETC, id="no-home"),
        pytest.param({"HOME": ""}, [ETC], ETC, id="empty-home"),
        # new: $XDG_CONFIG_HOME before, /usr/share after
        pytest.param(XDG, [OF_XDG, USER, ETC, SHARE], OF_XDG, id="xdg"),
        pytest.param(XDG, [USER, ETC], USER, id="xdg-of-a-classic-host"),
        pytest.param({"XDG_CONFIG_HOME": "/xdg"}, [OF_XDG], OF_XDG, id="xdg-without-a-home"),
        pytest.param({"XDG_CONFIG_HOME": ""}, [ETC], ETC, id="empty-xdg"),
        pytest.param(HOME, [ETC, SHARE], ETC, id="system-before-vendor"),
        pytest.param(HOME, [SHARE], SHARE, id="vendor"),
        # new: the variable decides alone
        pytest.param(
            {**XDG, "CONTAINERS_POLICY_JSON": "/own.json"},
            ["/own.json", OF_XDG, USER, ETC, SHARE],
            "/own.json",
            id="variable",
        ),
        pytest.param({**HOME, "CONTAINERS_POLICY_JSON": ""}, [USER], USER, id="empty-variable"),
    ],
)
def test_the_policy_is_the_first_that_exists(
    configure: Callable[..., Configuration],
    variables: dict[str, str],
    present: list[str],
    source: str,
) -> None:
    files = Files(dict.fromkeys(present, ACCEPT), **variables)
    assert configure(files).policy().source == source
    assert files.read == [source]


def test_keys_that_match_no_image_are_told_once(configure: Callable[..., Configuration]) -> None:
    """The policy is read for each image; the line is for the one who wrote it."""
    text = (
        b'{"default":[{"type":"reject"}],"transports":{"docker":{"quay.io/":[{"type":"reject"}]}}}'
    )
    files = Files({ETC: text})
    configuration = configure(files)
    for _ in range(3):
        assert configuration.policy().source == ETC
    assert files.notes.failures == [
        f'warning: {ETC}: transports.docker.quay.io/: matches no image; write "quay.io"'
    ]


@pytest.mark.parametrize(
    ("variables", "searched"),
    [({}, [ETC, SHARE]), (HOME, [USER, ETC, SHARE]), (XDG, [OF_XDG, ETC, SHARE, USER])],
    ids=["no-home", "home", "xdg"],
)
def test_no_policy_is_no_image_and_the_ways_out_are_told(
    configure: Callable[..., Configuration], variables: dict[str, str], searched: list[str]
) -> None:
    with pytest.raises(DeniedError) as caught:
        configure(Files({}, **variables)).policy()
    assert caught.value.message == (
        f"there is no policy.json, so no image may be used (searched: {', '.join(searched)});"
        " name one with --policy, or accept any image with --insecure-policy"
    )


def test_an_option_stands_in_place_of_the_policy(configure: Callable[..., Configuration]) -> None:
    files = Files({ETC: b"broken"})
    assert configure(files, policy=(ACCEPT, "own")).policy().source == "own"
    assert files.read == []


def test_a_broken_policy_is_not_passed_over(configure: Callable[..., Configuration]) -> None:
    with pytest.raises(ConfigurationError, match=f"^the policy {ETC}: default: expected"):
        configure(Files({ETC: b"{}", SHARE: b"{}"})).policy()


def test_a_policy_that_the_variable_names_must_exist(
    configure: Callable[..., Configuration],
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure(Files({ETC: ACCEPT}, CONTAINERS_POLICY_JSON="/own.json")).policy()
    assert caught.value.message == "reading the policy in /own.json: No such file or directory"
    assert caught.value.detail == {"file": "/own.json"}


# --- files that cannot be read ------------------------------------------------------------------

UNREADABLE = {
    "dangling": (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
    "denied": (PermissionError(13, "Permission denied"), "Permission denied"),
    "a directory": (IsADirectoryError(21, "Is a directory"), "Is a directory"),
    "too large": (ValueError("more than 4194304 bytes"), "more than 4194304 bytes"),
    "a loop": (OSError(40, "Too many levels of symbolic links"), "Too many levels of symbolic"),
}
REGISTRIES = "/etc/containers/registries.conf"
DROP_IN = "/etc/containers/registries.conf.d/a.conf"
ALIASES = "/home/u/.cache/containers/short-name-aliases.conf"
DOCKER = "/home/u/.docker/config.json"

READERS: dict[str, tuple[str, Callable[[Configuration], object]]] = {
    "policy": (ETC, lambda configuration: configuration.policy()),
    "registries": (REGISTRIES, lambda configuration: configuration.registries),
    "drop-in": (DROP_IN, lambda configuration: configuration.registries),
    "aliases": (ALIASES, lambda configuration: configuration.short_names),
    "credentials": (DOCKER, lambda configuration: configuration.auth_files()),
}


@pytest.mark.parametrize("what", READERS)
def test_a_file_that_cannot_be_read_for_want_of_descriptors_is_not_broken(
    configure: Callable[..., Configuration], what: str
) -> None:
    path, read = READERS[what]
    files = Files({path: OSError(24, "Too many open files")}, **HOME)
    configuration = configure(files)
    with pytest.raises(ShortageError) as caught:
        read(configuration)
    assert f" in {path}: Too many open files" in caught.value.message
    files.contents[path] = ACCEPT if what == "policy" else b"{}" if what == "credentials" else b""
    read(configuration)


@pytest.mark.parametrize(
    ("what", "why"),
    [each for each in product(READERS, UNREADABLE) if each != ("credentials", "dangling")],
)
def test_a_file_that_is_there_and_cannot_be_read_is_not_passed_over(
    configure: Callable[..., Configuration], what: str, why: str
) -> None:
    """Files of credentials are searched for by opening them, so that a dangling link is none."""
    path, read = READERS[what]
    error, reason = UNREADABLE[why]
    with pytest.raises(ConfigurationError) as caught:
        read(configure(Files({path: error}, **HOME)))
    assert caught.value.message.startswith("reading ")
    assert f" in {path}: {reason}" in caught.value.message
    assert caught.value.detail == {"file": path}


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def directory(path: Path) -> None:
    path.mkdir()


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(4 * 1024 * 1024 + 1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (link_to_nothing, "No such file or directory"),
        (link_to_itself, "Too many levels of symbolic links"),
        (directory, "Is a directory"),
        (too_large, "more than 4194304 bytes"),
    ],
)
def test_a_real_policy_that_cannot_be_read_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make: Callable[[Path], None],
    reason: str,
) -> None:
    path = tmp_path / ".config/containers/policy.json"
    path.parent.mkdir(parents=True)
    make(path)
    for name in ("XDG_CONFIG_HOME", "CONTAINERS_POLICY_JSON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        Configuration(Overrides(), Notes()).policy()
    assert caught.value.message == f"reading the policy in {path}: {reason}"
    assert caught.value.detail == {"file": str(path)}


def test_a_link_to_a_policy_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(ACCEPT)
    path = tmp_path / "containers/policy.json"
    path.parent.mkdir()
    path.symlink_to(real)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("CONTAINERS_POLICY_JSON", raising=False)
    assert Configuration(Overrides(), Notes()).policy().source == str(path)


# --- registries.conf ----------------------------------------------------------------------------


def table(location: str) -> bytes:
    return f'[[registry]]\nprefix = "a.test"\nlocation = "{location}"\n'.encode()


def test_without_files_nothing_is_configured(configure: Callable[..., Configuration]) -> None:
    found = configure(Files({}, **HOME)).registries
    assert (found.registries, found.credential_helpers) == ((), ("containers-auth.json",))


def test_later_files_win_and_all_are_read_once(configure: Callable[..., Configuration]) -> None:
    files = Files({REGISTRIES: table("main.test"), DROP_IN: table("drop-in.test")}, **HOME)
    configuration = configure(files)
    for _ in range(2):
        (found,) = configuration.registries.registries
        assert found.location == "drop-in.test"
    assert files.read == [REGISTRIES, DROP_IN]


def test_an_option_stands_in_place_of_the_main_file_alone(
    configure: Callable[..., Configuration],
) -> None:
    files = Files({REGISTRIES: b"broken", DROP_IN: table("drop-in.test")}, **HOME)
    own = table("own.test") + b'[[registry]]\nlocation = "b.test"\n'
    configuration = configure(files, registries=(own, "/dev/fd/9"))
    assert {each.location for each in configuration.registries.registries} == {
        "drop-in.test",
        "b.test",
    }
    assert files.read == [DROP_IN]


@pytest.mark.parametrize("news", [True, False])
def test_an_option_may_have_the_old_format_as_far_as_the_main_file_may(
    configure: Callable[..., Configuration], *, news: bool
) -> None:
    """On hosts of the new generation that is an error."""
    files = Files({"/usr/share/containers/registries.conf": b""} if news else {}, **HOME)
    configuration = configure(
        files, registries=(b'[registries.block]\nregistries=["x.test"]', "own")
    )
    if news:
        with pytest.raises(ConfigurationError, match="own"):
            _ = configuration.registries
    else:
        (found,) = configuration.registries.registries
        assert (found.prefix, found.blocked) == ("x.test", True)


def test_what_has_no_effect_is_told_once(configure: Callable[..., Configuration]) -> None:
    files = Files({REGISTRIES: b"unheard-of = 1\n"}, **HOME)
    configuration = configure(files)
    for _ in range(2):
        _ = configuration.registries
    assert len(files.notes.failures) == 1
    assert files.notes.failures[0].startswith(f"warning: {REGISTRIES}: ")
    assert "unheard-of" in files.notes.failures[0]


def test_a_broken_drop_in_is_told_with_its_path(configure: Callable[..., Configuration]) -> None:
    with pytest.raises(ConfigurationError, match=DROP_IN):
        _ = configure(Files({DROP_IN: b"= 1"}, **HOME)).registries


SEARCH = b'unqualified-search-registries = ["s.test"]\n[aliases]\nx = "main.test/x"\n'


def test_the_host_s_own_aliases_come_first(configure: Callable[..., Configuration]) -> None:
    files = Files({REGISTRIES: SEARCH, ALIASES: b'[aliases]\nx = "own.test/x"\n'}, **HOME)
    configuration = configure(files)
    assert list(map(str, resolve("x", configuration.short_names))) == ["own.test/x:latest"]
    assert list(map(str, resolve("y", configuration.short_names))) == ["s.test/y:latest"]


def test_aliases_are_read_for_short_names_alone(configure: Callable[..., Configuration]) -> None:
    files = Files({ALIASES: b"broken"}, **HOME)
    _ = configure(files).registries
    assert files.read == []


def test_without_the_host_s_own_aliases_those_of_the_configuration_count(
    configure: Callable[..., Configuration],
) -> None:
    configuration = configure(Files({REGISTRIES: SEARCH}, **HOME))
    assert list(map(str, resolve("x", configuration.short_names))) == ["main.test/x:latest"]


# --- credentials --------------------------------------------------------------------------------

RUN = "/run/containers/1000/auth.json"
LEGACY = "/home/u/.dockercfg"
LOGIN = b'{"auths":{"a.test":{"auth":"dTpw"}}}'


def test_files_of_credentials_are_those_that_are_there(
    configure: Callable[..., Configuration],
) -> None:
    files = Files({RUN: LOGIN, DOCKER: LOGIN, LEGACY: b'{"a.test":{"auth":"dTpw"}}'}, **HOME)
    found = configure(files).auth_files()
    assert [(each.path, each.legacy) for each in found] == [
        (RUN, False),
        (DOCKER, False),
        (LEGACY, True),
    ]


def test_a_path_through_a_file_leads_nowhere(configure: Callable[..., Configuration]) -> None:
    files = Files({DOCKER: NotADirectoryError(20, "Not a directory"), RUN: LOGIN}, **HOME)
    assert [each.path for each in configure(files).auth_files()] == [RUN]


def test_a_file_of_credentials_that_was_asked_for_must_exist(
    configure: Callable[..., Configuration],
) -> None:
    files = Files({RUN: LOGIN}, REGISTRY_AUTH_FILE="/own.json", **HOME)
    with pytest.raises(ConfigurationError) as caught:
        configure(files).auth_files()
    assert caught.value.message == "reading credentials in /own.json: No such file or directory"


def test_an_option_is_the_only_file_of_credentials(configure: Callable[..., Configuration]) -> None:
    files = Files({RUN: b"broken"}, REGISTRY_AUTH_FILE="/own.json", **HOME)
    found = configure(files, auth=(LOGIN, "/dev/fd/9")).auth_files()
    assert [each.path for each in found] == ["/dev/fd/9"]
    assert files.read == []


def test_a_broken_file_of_credentials_is_an_error(configure: Callable[..., Configuration]) -> None:
    with pytest.raises(ConfigurationError, match=RUN):
        configure(Files({RUN: b"", DOCKER: LOGIN}, **HOME)).auth_files()


# --- certificates -------------------------------------------------------------------------------

CERTS = "/etc/containers/certs.d/a.test:5000"


def test_certificates_are_found_by_the_registry_s_name(
    configure: Callable[..., Configuration],
) -> None:
    files = Files({f"{CERTS}/{name}": b"" for name in ("ca.crt", "me.cert", "me.key")}, **HOME)
    configuration = configure(files)
    assert configuration.certificates("a.test:5000") == Certificates(
        (f"{CERTS}/ca.crt",), ((f"{CERTS}/me.cert", f"{CERTS}/me.key"),)
    )
    for other in ("a.test", "a.test:50", "b.test"):
        assert configuration.certificates(other) == Certificates()


def test_an_option_names_the_certificates_of_every_host(
    configure: Callable[..., Configuration],
) -> None:
    configuration = configure(Files({"/own/x.crt": b"", f"{CERTS}/ca.crt": b""}), cert_dir="/own")
    for host in ("a.test:5000", "b.test"):
        assert configuration.certificates(host) == Certificates(("/own/x.crt",))


def test_half_of_a_certificate_is_an_error(configure: Callable[..., Configuration]) -> None:
    with pytest.raises(ConfigurationError, match=r"me\.cert without me\.key"):
        configure(Files({f"{CERTS}/me.cert": b""})).certificates("a.test:5000")


# --- where signatures are -----------------------------------------------------------------------

SIGNATURES_D = "/etc/containers/registries.d"


def test_where_signatures_are_is_said_by_all_files_together(
    configure: Callable[..., Configuration],
) -> None:
    files = Files(
        {
            f"{SIGNATURES_D}/a.yaml": b"default-docker: {lookaside: 'file:///a'}\nmore: 1\n",
            f"{SIGNATURES_D}/b.yaml": b"docker: {quay.io: {use-sigstore-attachments: true}}",
            f"{SIGNATURES_D}/c.conf": b"no YAML",
        },
        **HOME,
    )
    configuration = configure(files)
    for _ in range(2):
        found = configuration.signatures(["quay.io/os", "quay.io"])
        assert found == Section("file:///a", attachments=True, source=f"{SIGNATURES_D}/a.yaml")
    assert files.read == [f"{SIGNATURES_D}/a.yaml", f"{SIGNATURES_D}/b.yaml"]
    assert files.notes.failures == [f"warning: {SIGNATURES_D}/a.yaml: more: unknown key"]


def test_where_signatures_are_has_a_default(configure: Callable[..., Configuration]) -> None:
    found = configure(Files({}, **HOME)).signatures(["quay.io"])
    assert found == Section("file:///home/u/.local/share/containers/sigstore", attachments=False)


def test_an_option_names_the_directory_about_signatures(
    configure: Callable[..., Configuration],
) -> None:
    files = Files(
        {
            f"{SIGNATURES_D}/a.yaml": b"default-docker: {lookaside: 'file:///a'}",
            "/own/a.yaml": b"default-docker: {lookaside: 'file:///own'}",
        },
        **HOME,
    )
    configuration = configure(files, registries_d="/own")
    assert configuration.signatures([]).lookaside == "file:///own"


def test_a_broken_file_about_signatures_is_an_error(
    configure: Callable[..., Configuration],
) -> None:
    for content in (b"[", PermissionError(13, "Permission denied")):
        configuration = configure(Files({f"{SIGNATURES_D}/a.yaml": content}, **HOME))
        with pytest.raises(ConfigurationError, match=f"{SIGNATURES_D}/a.yaml"):
            configuration.signatures([])


def test_without_a_library_files_about_signatures_reject(
    configure: Callable[..., Configuration], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    configuration = configure(Files({f"{SIGNATURES_D}/a.yaml": b""}, **HOME))
    with pytest.raises(DeniedError, match=r"PyYAML is needed .*oci-imgproxy\[signatures\]"):
        configuration.signatures([])
    assert configure(Files({}, **HOME)).signatures([]).lookaside

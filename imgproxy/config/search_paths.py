"""Paths of the configuration files of the containers ecosystem, for both generations of libraries.

The classic generation (Debian 12 and 13, RHEL 8 to 10, Fedora up to 43) looks below ~/.config and
/etc. The new one (from 5.40, Podman 6) adds $XDG_CONFIG_HOME, /usr/share/containers, variables,
and directories of drop-in files for users with and without root. The files that exist on a host
decide, for each kind of file separately, which generation applies: the new one where any file
exists that only this one supports, otherwise the classic one.

All decisions depend on a `Host` alone, which lists what exists; nothing is opened. A returned path
comes from a variable or an option, or exists: failing to read it is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imgproxy.specs.oci import registry_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_ETC = "/etc/containers"
_USR = "/usr/share/containers"


class Host(NamedTuple):
    """The facts about the host and the user that decide the paths.

    `home` is empty where the user has none. `exists` returns whether a path exists, also for a
    dangling link: a broken file must not be ignored. `names` returns the names of the files in a
    directory, without its subdirectories, none if it does not exist; `directories` those of its
    subdirectories, none if it cannot be read.
    """

    environment: Mapping[str, str]
    uid: int
    home: str
    exists: Callable[[str], bool]
    names: Callable[[str], Iterable[str]]
    directories: Callable[[str], Iterable[str]] = lambda _: ()


class Found(NamedTuple):
    """The file to read, None where there is none; `searched` are all paths of the search."""

    path: str | None
    searched: tuple[str, ...]


class RegistriesFile(NamedTuple):
    """A registries.conf or a drop-in; `version_1` permits the old format as well."""

    path: str
    version_1: bool = False


class AuthFile(NamedTuple):
    """A file that may have credentials; it must exist only if a variable or an option names it.

    A `legacy` one is a .dockercfg.
    """

    path: str
    legacy: bool = False
    must_exist: bool = False


def policy(host: Host) -> Found:
    """Return the policy.json to use: containers-policy.json(5)."""
    variable = host.environment.get("CONTAINERS_POLICY_JSON")
    if variable:
        return Found(variable, (variable,))
    new, classic = _main_files(host, "policy.json")
    order = new if _has_new_files(host, new, classic) else classic
    return Found(_first(host, order), tuple(dict.fromkeys([*new, *classic])))


def registries(host: Host, option: str | None = None) -> list[RegistriesFile]:
    """Return the files of containers-registries.conf(5) in the order in which to read them.

    `option` is a file to be read in place of the main one, regardless of the environment.
    """
    mains = _main_files(host, "registries.conf")
    directories = _drop_ins(host, "registries", ".conf")
    variables = ("CONTAINERS_REGISTRIES_CONF", "CONTAINERS_REGISTRIES_CONF_OVERRIDE")
    if (
        any(host.environment.get(name) for name in variables)
        or _has_new_files(host, *mains)
        or _has_new_files(host, *directories)
    ):
        return _registries_new(host, option, mains.new, directories.new)
    return _registries_classic(host, option, mains.classic, directories.classic)


def _registries_new(
    host: Host, option: str | None, mains: list[str], directories: list[str]
) -> list[RegistriesFile]:
    """Return the main file, its drop-ins unless a variable names it, and the override."""
    variable = host.environment.get("CONTAINERS_REGISTRIES_CONF") or _podman_variable(host)
    main = option or variable or _first(host, mains)
    alone = variable and not option
    drop_ins = [] if alone else _merged(host, directories, ".conf")
    override = host.environment.get("CONTAINERS_REGISTRIES_CONF_OVERRIDE")
    return [RegistriesFile(path) for path in (main, *drop_ins, override) if path]


def _registries_classic(
    host: Host, option: str | None, mains: list[str], directories: list[str]
) -> list[RegistriesFile]:
    """Return the main file and its drop-ins; with the user's main file, only the user's."""
    explicit = option or _podman_variable(host)
    main = explicit or _first(host, mains)
    if not explicit and main in mains[:-1]:  # the last one is the system's
        directories = directories[:-1]
    drop_ins = [path for each in reversed(directories) for path in _listed(host, each, ".conf")]
    main_file = [RegistriesFile(main, version_1=True)] if main else []
    return main_file + [RegistriesFile(path) for path in drop_ins]


def _podman_variable(host: Host) -> str | None:
    """Return the main file in the variable of podman and buildah, older than the libraries'."""
    return host.environment.get("REGISTRIES_CONFIG_PATH")


def registries_d(host: Host, option: str | None = None) -> list[str]:
    """Return the files of containers-registries.d(5); `option` is the directory that has them."""
    if option:
        return _listed(host, option, ".yaml")
    new, classic = _drop_ins(host, "registries", "")
    if _has_new_files(host, new, classic):
        return _merged(host, new, ".yaml")
    directory = _first(host, classic)
    return _listed(host, directory, ".yaml") if directory else []


def lookaside(host: Host) -> str:
    """Return the URL of the default lookaside, for images without one in registries.d.

    It is written by the programs that store images, and need not exist.
    """
    if host.uid == 0 or not host.home:
        return "file:///var/lib/containers/sigstore"
    return f"file://{host.home}/.local/share/containers/sigstore"


def certificates(host: Host, registry: str) -> str | None:
    """Return the directory with the certificates for a registry: containers-certs.d(5).

    The first that exists is the only one used; its name is `host[:port]`, in any spelling.
    """
    new, classic = (
        [_certificates_in(host, each, registry) for each in (*directories, "/etc/docker/certs.d")]
        for directories in _drop_ins(host, "certs", "")
    )
    return _first(host, new if _has_new_files(host, new, classic) else classic)


def _certificates_in(host: Host, directory: str, registry: str) -> str:
    """Return the path of a registry in a directory: of its own name if it has that one."""
    own = f"{directory}/{registry}"
    if host.exists(own):
        return own
    place = registry_name.place(registry)
    every = sorted(host.directories(directory))
    same = (f"{directory}/{each}" for each in every if registry_name.place(each) == place)
    return next(same, own)


def auth_files(host: Host, option: str | None = None) -> list[AuthFile]:
    """Return the files of containers-auth.json(5), to be read until one has credentials.

    `option`, or else $REGISTRY_AUTH_FILE, is the only one if it is set.
    """
    explicit = option or host.environment.get("REGISTRY_AUTH_FILE")
    if explicit:
        return [AuthFile(explicit, must_exist=True)]
    runtime = host.environment.get("XDG_RUNTIME_DIR")
    run = f"{runtime}/containers" if runtime else f"/run/containers/{host.uid}"
    docker = host.environment.get("DOCKER_CONFIG") or _below_home(host, ".docker")
    return [
        AuthFile(f"{run}/auth.json"),
        *(AuthFile(f"{user}/auth.json") for user in _users(host).new),
        *([AuthFile(f"{docker}/config.json")] if docker else []),
        *([AuthFile(f"{host.home}/.dockercfg", legacy=True)] if host.home else []),
    ]


def aliases(host: Host) -> str | None:
    """Return the file of short-name aliases that the host's tools write, None without one."""
    cache = (
        "/var/cache"
        if host.uid == 0
        else host.environment.get("XDG_CACHE_HOME") or _below_home(host, ".cache")
    )
    return _first(host, [f"{cache}/containers/short-name-aliases.conf"] if cache else [])


class _Generations(NamedTuple):
    """The paths of both generations, each in the order of precedence."""

    new: list[str]
    classic: list[str]


def _users(host: Host) -> _Generations:
    """Return the user's own directory, if there is a home."""
    classic = _below_home(host, ".config")
    new = host.environment.get("XDG_CONFIG_HOME") or classic
    return _Generations(
        *([f"{each}/containers"] if each else [] for each in (new, classic)),
    )


def _main_files(host: Host, name: str) -> _Generations:
    new, classic = _users(host)
    return _Generations(
        [f"{directory}/{name}" for directory in (*new, _ETC, _USR)],
        [f"{directory}/{name}" for directory in (*classic, _ETC)],
    )


def _drop_ins(host: Host, name: str, extension: str) -> _Generations:
    """Return directories like `registries.conf.d`, and those for users with or without root."""
    new, classic = _users(host)
    plain = f"{name}{extension}.d"
    kind = f"{name}.{'rootless' if host.uid else 'rootful'}{extension}.d"
    special = [f"{kind}/{host.uid}", kind] if host.uid else [kind]
    return _Generations(
        [
            *(f"{user}/{plain}" for user in new),
            *(f"{base}/{each}" for base in (_ETC, _USR) for each in (*special, plain)),
        ],
        [f"{directory}/{plain}" for directory in (*classic, _ETC)],
    )


def _has_new_files(host: Host, new: list[str], classic: list[str]) -> bool:
    """Return whether a path exists that only the new generation supports."""
    return any(host.exists(path) for path in new if path not in classic)


def _first(host: Host, paths: list[str]) -> str | None:
    return next((path for path in paths if host.exists(path)), None)


def _listed(host: Host, directory: str, suffix: str) -> list[str]:
    return [
        f"{directory}/{name}" for name in sorted(host.names(directory)) if name.endswith(suffix)
    ]


def _merged(host: Host, directories: list[str], suffix: str) -> list[str]:
    """Return the files in order of their names; the first directory has precedence for a name."""
    found: dict[str, str] = {}
    for directory in directories:
        for path in _listed(host, directory, suffix):
            found.setdefault(path.removeprefix(f"{directory}/"), path)
    return [found[name] for name in sorted(found)]


def _below_home(host: Host, name: str) -> str | None:
    return f"{host.home}/{name}" if host.home else None

"""The search for configuration files, on hosts that are lists of files."""

from __future__ import annotations

import pytest

from imgproxy.config import search_paths
from imgproxy.config.search_paths import AuthFile, Found, Host, RegistriesFile

HOME = "/home/ana/.config/containers"
XDG = "/xdg/containers"
ETC = "/etc/containers"
USR = "/usr/share/containers"


def host(
    *files: str, uid: int = 1000, home: str = "/home/ana", environment: dict[str, str] | None = None
) -> Host:
    """Return a host that has these files; a path that ends in `/` is an empty directory."""
    paths = {path.rstrip("/") for path in files}
    for path in tuple(paths):
        parts = path.split("/")
        paths |= {"/".join(parts[:n]) for n in range(2, len(parts))}

    def names(directory: str) -> list[str]:
        inside = [path.rpartition("/") for path in files]
        return [name for parent, _, name in reversed(inside) if name and parent == directory]

    def directories(directory: str) -> list[str]:
        inside = [path.rpartition("/") for path in paths]
        return [name for parent, _, name in inside if parent == directory]

    return Host(environment or {}, uid, home, paths.__contains__, names, directories)


# --- policy.json -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "variables", "path"),
    [
        ([], {}, None),
        ([f"{ETC}/policy.json"], {}, f"{ETC}/policy.json"),
        ([f"{HOME}/policy.json", f"{ETC}/policy.json"], {}, f"{HOME}/policy.json"),
        ([f"{USR}/policy.json"], {}, f"{USR}/policy.json"),
        ([f"{USR}/policy.json", f"{ETC}/policy.json"], {}, f"{ETC}/policy.json"),
        ([f"{USR}/policy.json", f"{HOME}/policy.json"], {}, f"{HOME}/policy.json"),
        # $XDG_CONFIG_HOME is ignored by the classic generation, and is decisive in the new one
        ([f"{HOME}/policy.json"], {"XDG_CONFIG_HOME": "/xdg"}, f"{HOME}/policy.json"),
        ([f"{XDG}/policy.json"], {"XDG_CONFIG_HOME": "/xdg"}, f"{XDG}/policy.json"),
        (
            [f"{XDG}/policy.json", f"{HOME}/policy.json"],
            {"XDG_CONFIG_HOME": "/xdg"},
            f"{XDG}/policy.json",
        ),
        (
            [f"{USR}/policy.json", f"{HOME}/policy.json"],
            {"XDG_CONFIG_HOME": "/xdg"},
            f"{USR}/policy.json",
        ),
        ([f"{HOME}/policy.json"], {"XDG_CONFIG_HOME": ""}, f"{HOME}/policy.json"),
        # a variable applies whether the file exists or not
        ([f"{ETC}/policy.json"], {"CONTAINERS_POLICY_JSON": "/p"}, "/p"),
        ([f"{ETC}/policy.json"], {"CONTAINERS_POLICY_JSON": ""}, f"{ETC}/policy.json"),
        # other files on the host
        ([f"{USR}/registries.conf", f"{ETC}/containers.conf"], {}, None),
    ],
)
def test_policy(files: list[str], variables: dict[str, str], path: str | None) -> None:
    assert search_paths.policy(host(*files, environment=variables)).path == path


@pytest.mark.parametrize(
    ("variables", "home", "searched"),
    [
        ({}, "/home/ana", (HOME, ETC, USR)),
        ({}, "", (ETC, USR)),
        ({"XDG_CONFIG_HOME": "/xdg"}, "/home/ana", (XDG, ETC, USR, HOME)),
        ({"XDG_CONFIG_HOME": "/xdg"}, "", (XDG, ETC, USR)),
    ],
)
def test_where_there_is_no_policy(
    variables: dict[str, str], home: str, searched: tuple[str, ...]
) -> None:
    places = tuple(f"{directory}/policy.json" for directory in searched)
    assert search_paths.policy(host(home=home, environment=variables)) == Found(None, places)


def test_where_a_policy_was_asked_for() -> None:
    asked = host(environment={"CONTAINERS_POLICY_JSON": "/p"})
    assert search_paths.policy(asked) == Found("/p", ("/p",))


# --- registries.conf ---------------------------------------------------------------------------

CONF = "registries.conf"
OVERRIDE = "CONTAINERS_REGISTRIES_CONF_OVERRIDE"


def files_of(found: list[RegistriesFile]) -> list[str]:
    return [file.path for file in found]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        ([f"{ETC}/{CONF}"], [f"{ETC}/{CONF}"]),
        # the directories without a main file
        ([f"{ETC}/{CONF}.d/a.conf"], [f"{ETC}/{CONF}.d/a.conf"]),
        (
            [f"{HOME}/{CONF}.d/a.conf", f"{ETC}/{CONF}.d/z.conf"],
            [f"{ETC}/{CONF}.d/z.conf", f"{HOME}/{CONF}.d/a.conf"],
        ),
        # the system's main file, then the system's drop-ins, then the user's, each in order
        (
            [
                f"{HOME}/{CONF}.d/b.conf",
                f"{HOME}/{CONF}.d/a.conf",
                f"{ETC}/{CONF}.d/z.conf",
                f"{ETC}/{CONF}.d/a.conf",
                f"{ETC}/{CONF}",
            ],
            [
                f"{ETC}/{CONF}",
                f"{ETC}/{CONF}.d/a.conf",
                f"{ETC}/{CONF}.d/z.conf",
                f"{HOME}/{CONF}.d/a.conf",
                f"{HOME}/{CONF}.d/b.conf",
            ],
        ),
        # with the user's main file, none of the system's files
        (
            [
                f"{HOME}/{CONF}",
                f"{HOME}/{CONF}.d/a.conf",
                f"{ETC}/{CONF}.d/z.conf",
                f"{ETC}/{CONF}",
            ],
            [f"{HOME}/{CONF}", f"{HOME}/{CONF}.d/a.conf"],
        ),
        # other names in the directories
        (
            [f"{ETC}/{CONF}.d/a.txt", f"{ETC}/{CONF}.d/conf", f"{ETC}/{CONF}.d/deep/a.conf"],
            [],
        ),
        # $XDG_CONFIG_HOME is not supported
        ([f"{HOME}/{CONF}", f"{ETC}/{CONF}"], [f"{HOME}/{CONF}"]),
    ],
)
def test_registries_of_the_classic_generation(files: list[str], expected: list[str]) -> None:
    found = search_paths.registries(host(*files, environment={"XDG_CONFIG_HOME": "/xdg"}))
    assert files_of(found) == expected
    # Version 1 is supported in the main file alone.
    assert [file.path for file in found if file.version_1] == [
        path for path in expected if path.endswith(CONF)
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([f"{USR}/{CONF}"], [f"{USR}/{CONF}"]),
        ([f"{USR}/{CONF}", f"{ETC}/{CONF}"], [f"{ETC}/{CONF}"]),
        ([f"{USR}/{CONF}", f"{ETC}/{CONF}", f"{HOME}/{CONF}"], [f"{HOME}/{CONF}"]),
        # a drop-in directory alone decides the generation, even an empty one
        (
            [f"{USR}/{CONF}.d/", f"{HOME}/{CONF}", f"{ETC}/{CONF}.d/a.conf"],
            [f"{HOME}/{CONF}", f"{ETC}/{CONF}.d/a.conf"],
        ),
        # all directories together, in the order of names
        (
            [
                f"{USR}/{CONF}",
                f"{HOME}/{CONF}.d/10-y.conf",
                f"{ETC}/{CONF}.d/50-z.conf",
                f"{USR}/{CONF}.d/99-x.conf",
                f"{USR}/{CONF}.d/00-w.conf",
            ],
            [
                f"{USR}/{CONF}",
                f"{USR}/{CONF}.d/00-w.conf",
                f"{HOME}/{CONF}.d/10-y.conf",
                f"{ETC}/{CONF}.d/50-z.conf",
                f"{USR}/{CONF}.d/99-x.conf",
            ],
        ),
        # a file replaces those of the same name in all later directories
        (
            [
                f"{directory}/a{n}.conf"
                for highest, directory in enumerate(
                    [
                        f"{USR}/{CONF}.d",
                        f"{USR}/registries.rootless.conf.d",
                        f"{USR}/registries.rootless.conf.d/1000",
                        f"{ETC}/{CONF}.d",
                        f"{ETC}/registries.rootless.conf.d",
                        f"{ETC}/registries.rootless.conf.d/1000",
                        f"{HOME}/{CONF}.d",
                    ]
                )
                for n in range(highest + 1)
            ],
            [
                f"{HOME}/{CONF}.d/a0.conf",
                f"{HOME}/{CONF}.d/a1.conf",
                f"{HOME}/{CONF}.d/a2.conf",
                f"{HOME}/{CONF}.d/a3.conf",
                f"{HOME}/{CONF}.d/a4.conf",
                f"{HOME}/{CONF}.d/a5.conf",
                f"{HOME}/{CONF}.d/a6.conf",
            ],
        ),
        # neither root's nor another user's
        (
            [
                f"{ETC}/registries.rootful.conf.d/a.conf",
                f"{ETC}/registries.rootless.conf.d/1001/b.conf",
                f"{ETC}/registries.rootless.conf.d/1000/c.conf",
            ],
            [f"{ETC}/registries.rootless.conf.d/1000/c.conf"],
        ),
        ([f"{USR}/{CONF}.d/a.txt", f"{USR}/{CONF}.d/deep/a.conf"], []),
    ],
)
def test_registries_of_the_new_generation(files: list[str], expected: list[str]) -> None:
    found = search_paths.registries(host(*files))
    assert files_of(found) == expected
    assert not any(file.version_1 for file in found)


def test_the_drop_ins_of_the_new_generation_in_order() -> None:
    directories = [
        f"{XDG}/{CONF}.d",
        f"{ETC}/registries.rootless.conf.d/1000",
        f"{ETC}/registries.rootless.conf.d",
        f"{ETC}/{CONF}.d",
        f"{USR}/registries.rootless.conf.d/1000",
        f"{USR}/registries.rootless.conf.d",
        f"{USR}/{CONF}.d",
    ]
    for n, highest in enumerate(directories):
        files = [f"{directory}/a.conf" for directory in directories[n:]]
        found = search_paths.registries(
            host(*files, f"{USR}/{CONF}", environment={"XDG_CONFIG_HOME": "/xdg"})
        )
        assert files_of(found) == [f"{USR}/{CONF}", f"{highest}/a.conf"]


def test_the_drop_ins_for_root() -> None:
    files = [
        f"{ETC}/registries.rootful.conf.d/a.conf",
        f"{USR}/registries.rootful.conf.d/a.conf",
        f"{USR}/registries.rootful.conf.d/b.conf",
        f"{ETC}/registries.rootless.conf.d/c.conf",
        f"{ETC}/registries.rootless.conf.d/0/d.conf",
    ]
    assert files_of(search_paths.registries(host(*files, uid=0, home="/root"))) == [
        f"{ETC}/registries.rootful.conf.d/a.conf",
        f"{USR}/registries.rootful.conf.d/b.conf",
    ]


@pytest.mark.parametrize(
    ("files", "variables", "option", "expected"),
    [
        # a variable: this file alone
        (
            [f"{ETC}/{CONF}", f"{ETC}/{CONF}.d/a.conf"],
            {"CONTAINERS_REGISTRIES_CONF": "/r"},
            None,
            ["/r"],
        ),
        (
            [f"{ETC}/{CONF}", f"{ETC}/{CONF}.d/a.conf"],
            {"CONTAINERS_REGISTRIES_CONF": ""},
            None,
            [f"{ETC}/{CONF}", f"{ETC}/{CONF}.d/a.conf"],
        ),
        # the override always comes last
        (
            [f"{ETC}/{CONF}", f"{HOME}/{CONF}", f"{ETC}/{CONF}.d/a.conf"],
            {OVERRIDE: "/o"},
            None,
            [f"{HOME}/{CONF}", f"{ETC}/{CONF}.d/a.conf", "/o"],
        ),
        ([], {"CONTAINERS_REGISTRIES_CONF": "/r", OVERRIDE: "/o"}, None, ["/r", "/o"]),
        ([f"{ETC}/{CONF}"], {OVERRIDE: ""}, None, [f"{ETC}/{CONF}"]),
        # an option: before the variable, and with the directories
        (
            [f"{HOME}/{CONF}", f"{HOME}/{CONF}.d/z.conf", f"{USR}/{CONF}.d/a.conf"],
            {"CONTAINERS_REGISTRIES_CONF": "/r", OVERRIDE: "/o"},
            "/opt",
            ["/opt", f"{USR}/{CONF}.d/a.conf", f"{HOME}/{CONF}.d/z.conf", "/o"],
        ),
        (
            [f"{HOME}/{CONF}", f"{HOME}/{CONF}.d/a.conf", f"{ETC}/{CONF}.d/z.conf"],
            {},
            "/opt",
            ["/opt", f"{ETC}/{CONF}.d/z.conf", f"{HOME}/{CONF}.d/a.conf"],
        ),
        # podman's older variable, if the newer one is not set
        ([], {"CONTAINERS_REGISTRIES_CONF": "/r", "REGISTRIES_CONFIG_PATH": "/p"}, None, ["/r"]),
        (
            [f"{HOME}/{CONF}", f"{HOME}/{CONF}.d/a.conf", f"{ETC}/{CONF}.d/z.conf"],
            {"REGISTRIES_CONFIG_PATH": "/p"},
            None,
            ["/p", f"{ETC}/{CONF}.d/z.conf", f"{HOME}/{CONF}.d/a.conf"],
        ),
        (
            [f"{USR}/{CONF}", f"{USR}/{CONF}.d/a.conf"],
            {"REGISTRIES_CONFIG_PATH": "/p"},
            None,
            ["/p"],
        ),
        (
            [f"{USR}/{CONF}", f"{USR}/{CONF}.d/a.conf"],
            {"REGISTRIES_CONFIG_PATH": "/p"},
            "/opt",
            ["/opt", f"{USR}/{CONF}.d/a.conf"],
        ),
    ],
)
def test_registries_that_were_asked_for(
    files: list[str], variables: dict[str, str], option: str | None, expected: list[str]
) -> None:
    found = search_paths.registries(host(*files, environment=variables), option)
    assert files_of(found) == expected


@pytest.mark.parametrize(
    ("files", "variables", "version_1"),
    [
        ([], {}, True),
        ([f"{USR}/{CONF}"], {}, False),
        ([], {OVERRIDE: "/o"}, False),
        ([], {"REGISTRIES_CONFIG_PATH": "/p"}, True),
    ],
)
def test_version_1_in_the_file_of_an_option(
    files: list[str], variables: dict[str, str], *, version_1: bool
) -> None:
    found = search_paths.registries(host(*files, environment=variables), "/opt")
    assert found[0] == RegistriesFile("/opt", version_1=version_1)


def test_registries_without_a_home() -> None:
    nobody = host(f"{ETC}/{CONF}", f"{ETC}/{CONF}.d/a.conf", home="")
    assert files_of(search_paths.registries(nobody)) == [f"{ETC}/{CONF}", f"{ETC}/{CONF}.d/a.conf"]


# --- registries.d ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        (
            [f"{ETC}/registries.d/b.yaml", f"{ETC}/registries.d/a.yaml", f"{ETC}/registries.d/c"],
            [f"{ETC}/registries.d/a.yaml", f"{ETC}/registries.d/b.yaml"],
        ),
        # classic: the user's directory, or the system's
        (
            [f"{ETC}/registries.d/b.yaml", f"{HOME}/registries.d/a.yaml"],
            [f"{HOME}/registries.d/a.yaml"],
        ),
        ([f"{ETC}/registries.d/b.yaml", f"{HOME}/registries.d/"], []),
        # new: all of them, by name
        (
            [
                f"{USR}/registries.d/default.yaml",
                f"{USR}/registries.rootless.d/1000/u.yaml",
                f"{ETC}/registries.d/b.yaml",
                f"{ETC}/registries.d/default.yaml",
                f"{ETC}/registries.rootless.d/r.yaml",
                f"{ETC}/registries.rootful.d/x.yaml",
                f"{HOME}/registries.d/a.yaml",
                f"{HOME}/registries.d/a.conf",
            ],
            [
                f"{HOME}/registries.d/a.yaml",
                f"{ETC}/registries.d/b.yaml",
                f"{ETC}/registries.d/default.yaml",
                f"{ETC}/registries.rootless.d/r.yaml",
                f"{USR}/registries.rootless.d/1000/u.yaml",
            ],
        ),
    ],
)
def test_registries_d(files: list[str], expected: list[str]) -> None:
    assert search_paths.registries_d(host(*files)) == expected


def test_registries_d_that_was_asked_for() -> None:
    asked = host("/opt/b.yaml", "/opt/a.yaml", "/opt/c", f"{ETC}/registries.d/d.yaml")
    assert search_paths.registries_d(asked, "/opt") == ["/opt/a.yaml", "/opt/b.yaml"]


# --- certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], None),
        (["/etc/docker/certs.d/other/x.crt", f"{ETC}/certs.d/"], None),
        (["/etc/docker/certs.d/a:5/x.crt"], "/etc/docker/certs.d/a:5"),
        (["/etc/docker/certs.d/a:5/x.crt", f"{ETC}/certs.d/a:5/"], f"{ETC}/certs.d/a:5"),
        ([f"{ETC}/certs.d/a:5/x.crt", f"{HOME}/certs.d/a:5/"], f"{HOME}/certs.d/a:5"),
        ([f"{ETC}/certs.d/a/x.crt", f"{HOME}/certs.d/a:5000/"], None),
    ],
)
def test_certificates_of_the_classic_generation(files: list[str], expected: str | None) -> None:
    assert search_paths.certificates(host(*files), "a:5") == expected


@pytest.mark.parametrize(
    ("registry", "present", "found"),
    [
        ("a.io", ["A.io"], "A.io"),
        ("a.io", ["a.io:443"], "a.io:443"),
        ("a.io", ["A.IO:0443"], "A.IO:0443"),
        ("a.io:443", ["a.io"], "a.io"),
        ("a.io:443", ["a.io", "a.io:443"], "a.io:443"),
        ("a.io", ["A.io", "a.io", "a.io:443"], "a.io"),
        ("a.io:5000", ["a.io", "a.io:443", "A.io:5000"], "A.io:5000"),
        ("a.io", ["a.io:5000", "b.io", "x"], None),
        ("docker.io", ["registry-1.docker.io"], "registry-1.docker.io"),
        ("[::1]:5000", ["[0::1]:5000"], "[0::1]:5000"),
    ],
)
@pytest.mark.parametrize("generation", ["classic", "new"])
def test_a_directory_of_certificates_may_spell_the_registry_in_its_own_way(
    registry: str, present: list[str], found: str | None, generation: str
) -> None:
    base = ETC if generation == "classic" else USR
    files = [f"{base}/certs.d/{each}/x.crt" for each in present]
    path = search_paths.certificates(host(*files), registry)
    assert path == (found and f"{base}/certs.d/{found}")


def test_the_first_directory_with_a_registry_wins_in_any_spelling() -> None:
    files = [f"{HOME}/certs.d/A.io/x.crt", f"{ETC}/certs.d/a.io/x.crt"]
    assert search_paths.certificates(host(*files), "a.io") == f"{HOME}/certs.d/A.io"


@pytest.mark.parametrize("uid", [0, 1000])
def test_certificates_of_the_new_generation(uid: int) -> None:
    special = (
        ["certs.rootless.d/1000", "certs.rootless.d", "certs.d"]
        if uid
        else ["certs.rootful.d", "certs.d"]
    )
    directories = [
        f"{XDG}/certs.d",
        *(f"{base}/{each}" for base in (ETC, USR) for each in special),
        "/etc/docker/certs.d",
    ]
    for n, directory in enumerate(directories[:-1]):
        files = [f"{each}/a.io/x.crt" for each in directories[n:]]
        found = search_paths.certificates(
            host(*files, uid=uid, environment={"XDG_CONFIG_HOME": "/xdg"}), "a.io"
        )
        assert found == f"{directory}/a.io"


# --- credentials -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "home", "expected"),
    [
        (
            {},
            "/home/ana",
            [
                "/run/containers/1000/auth.json",
                f"{HOME}/auth.json",
                "/home/ana/.docker/config.json",
            ],
        ),
        (
            {"XDG_RUNTIME_DIR": "/run/u", "XDG_CONFIG_HOME": "/xdg", "DOCKER_CONFIG": "/docker"},
            "/home/ana",
            ["/run/u/containers/auth.json", f"{XDG}/auth.json", "/docker/config.json"],
        ),
        ({}, "", ["/run/containers/1000/auth.json"]),
        (
            {"XDG_CONFIG_HOME": "/xdg", "DOCKER_CONFIG": "/docker"},
            "",
            ["/run/containers/1000/auth.json", f"{XDG}/auth.json", "/docker/config.json"],
        ),
        (
            {"XDG_RUNTIME_DIR": "", "XDG_CONFIG_HOME": "", "DOCKER_CONFIG": ""},
            "/home/ana",
            [
                "/run/containers/1000/auth.json",
                f"{HOME}/auth.json",
                "/home/ana/.docker/config.json",
            ],
        ),
    ],
)
def test_auth_files(variables: dict[str, str], home: str, expected: list[str]) -> None:
    files = [AuthFile(path) for path in expected]
    if home:
        files.append(AuthFile(f"{home}/.dockercfg", legacy=True))
    assert search_paths.auth_files(host(home=home, environment=variables)) == files


@pytest.mark.parametrize(
    ("variables", "option", "path"),
    [
        ({"REGISTRY_AUTH_FILE": "/a", "DOCKER_CONFIG": "/docker"}, None, "/a"),
        ({"REGISTRY_AUTH_FILE": "/a"}, "/proc/self/fd/7", "/proc/self/fd/7"),
        ({}, "/b", "/b"),
    ],
)
def test_the_auth_file_that_was_asked_for(
    variables: dict[str, str], option: str | None, path: str
) -> None:
    found = search_paths.auth_files(host(environment=variables), option)
    assert found == [AuthFile(path, must_exist=True)]


# --- short-name-aliases.conf -------------------------------------------------------------------

ALIASES = "containers/short-name-aliases.conf"


@pytest.mark.parametrize(
    ("files", "uid", "home", "variables", "expected"),
    [
        ([f"/var/cache/{ALIASES}"], 0, "/root", {}, f"/var/cache/{ALIASES}"),
        ([f"/var/cache/{ALIASES}"], 0, "", {"XDG_CACHE_HOME": "/c"}, f"/var/cache/{ALIASES}"),
        ([f"/root/.cache/{ALIASES}"], 0, "/root", {}, None),
        ([f"/var/cache/{ALIASES}"], 1000, "/home/ana", {}, None),
        ([f"/h/.cache/{ALIASES}"], 1000, "/h", {}, f"/h/.cache/{ALIASES}"),
        ([f"/h/.cache/{ALIASES}"], 1000, "/h", {"XDG_CACHE_HOME": "/c"}, None),
        ([f"/c/{ALIASES}"], 1000, "/h", {"XDG_CACHE_HOME": "/c"}, f"/c/{ALIASES}"),
        ([f"/c/{ALIASES}"], 1000, "", {"XDG_CACHE_HOME": "/c"}, f"/c/{ALIASES}"),
        ([], 1000, "", {}, None),
    ],
)
def test_aliases(
    files: list[str], uid: int, home: str, variables: dict[str, str], expected: str | None
) -> None:
    found = search_paths.aliases(host(*files, uid=uid, home=home, environment=variables))
    assert found == expected


@pytest.mark.parametrize(
    ("uid", "home", "url"),
    [
        (0, "/root", "file:///var/lib/containers/sigstore"),
        (1000, "/home/u", "file:///home/u/.local/share/containers/sigstore"),
        (1000, "", "file:///var/lib/containers/sigstore"),
    ],
)
def test_there_is_a_lookaside_without_configuration(uid: int, home: str, url: str) -> None:
    assert search_paths.lookaside(host(uid=uid, home=home)) == url

"""The documents: what they claim is compared with the program, and their examples are run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml
from support import parent
from support.parent import COMMAND, LIMIT, ROOT, Client, start
from support.servers import require

import imgproxy
from imgproxy import __version__, errors
from imgproxy.__main__ import COMMANDS
from imgproxy.config import endpoints, registries_conf, search_paths, sideload_pattern
from imgproxy.errors import Failure
from imgproxy.frontends import skopeo_messages
from imgproxy.host import environment
from imgproxy.images import selection
from imgproxy.parent import process
from imgproxy.server import patience, request_errors, service
from imgproxy.specs import compression
from imgproxy.specs.http import proxy, url
from imgproxy.specs.oci import choices, docker_archive, tar
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import manifest as manifests
from imgproxy.specs.oci import media_type as types
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci.choices import Choice
from imgproxy.specs.oci.manifest import Descriptor
from imgproxy.transports import signature_files, time_limit
from imgproxy.transports.local import decompression, tar_archive
from imgproxy.transports.registry import failover, foreign_layers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "GUIDE.md").read_text()
PROTOCOL = (ROOT / "man/imgproxy-protocol.7").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAN = (ROOT / "man/imgproxy.1").read_text()
SKOPEO = (ROOT / "man/imgproxy-skopeo.7").read_text()
REGISTRY = (ROOT / "man/imgproxy-registry.7").read_text()

# The manual page without roff's notation for hyphens and fonts.
PLAIN, PLAIN_SKOPEO, PLAIN_REGISTRY = (
    re.sub(r"\\f.", "", page.replace(r"\-", "-")) for page in (MAN, SKOPEO, REGISTRY)
)

_CODE = re.compile(r"[A-Z]+_[A-Z_]+")
_OPTION = re.compile(r"(?<![\w-])--?[a-z](?:[a-z-]|\.(?=[a-z]))*")
_VARIABLE = re.compile(r"\b[A-Za-z]+(?:_[A-Za-z]+)+\b|\bHOME\b|\bPATH\b|\bTMPDIR\b")

# What the tags of FILES have for the host and the user that `recorded` asks for.
_REGISTRY = "HOST[:PORT]"
_USER = 1000


def section(name: str) -> str:
    """Return a section of the man page."""
    _, _, text = PLAIN.partition(f"\n.SH {name}\n")
    assert text, name
    return text.partition("\n.SH ")[0]


def tagged(name: str) -> dict[str, str]:
    """Return a section's tagged paragraphs: the line after `.TP`, and the text that follows it."""
    introduction, *paragraphs = f"\n{section(name)}".split("\n.TP\n")
    assert paragraphs, introduction
    return {tag: text for tag, _, text in (part.partition("\n") for part in paragraphs)}


def printed_by(*options: str) -> str:
    arguments = [*COMMAND, *options]
    result = subprocess.run(
        arguments,
        env=parent.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert not result.stderr
    return result.stdout


@pytest.mark.parametrize(("position", "command"), [(0, "demo/run"), (1, "tests/run")])
def test_the_readme_begins_with_two_commands_that_exist(position: int, command: str) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert blocks[position] == command + "\n"
    assert os.access(ROOT / command, os.X_OK)


def test_every_file_that_readme_and_guide_name_exists() -> None:
    names = re.findall(
        r"`((?:[\w.]+/)*[\w.]+\.(?:py|sh|md|1)|(?:demo|tests|\.ci)/\w+)(?=[` ])", README + GUIDE
    )
    assert {"demo/parent.py", "demo/compare", "GUIDE.md"} <= set(names)
    for name in names:
        if name not in {"policy.json", "auth.json"}:
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "GUIDE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "man/imgproxy.1",
        "demo/environment",
    ],
)
def test_no_document_installs_the_unrelated_package_imgproxy(path: str) -> None:
    """The package `imgproxy` on PyPI is another program."""
    assert not re.search(r"pip3? install\s+(-\S+\s+)*imgproxy", (ROOT / path).read_text())


def test_the_man_page_has_the_options_of_the_program_and_no_others() -> None:
    _, _, summary = printed_by("--help").partition("options:")
    assert summary
    in_help = {option for line in summary.splitlines() for option in _options_first_in(line)}
    in_man = {option for tag in tagged("OPTIONS") for option in _OPTION.findall(tag)}
    assert in_man == in_help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_man_page_has_the_options_of_each_command(command: str) -> None:
    """Those that have another meaning than in OPTIONS, or are not there."""
    _, _, summary = printed_by(command, "--help").partition("options:")
    in_help = {option for line in summary.splitlines() for option in _options_first_in(line)}
    general = {option for tag in tagged("OPTIONS") for option in _OPTION.findall(tag)}
    _, _, text = section("COMMANDS").partition(f".SS {command}\n")
    tags = re.findall(r"^\.TP\n(.*)$", text.partition("\n.SS ")[0], re.MULTILINE)
    own = {option for tag in tags for option in _OPTION.findall(tag)}
    assert own <= in_help <= own | general | {"--format"}


def test_the_page_of_skopeo_s_protocol_has_its_options_and_no_others() -> None:
    _, _, summary = printed_by("experimental-image-proxy", "--help").partition("options:")
    in_help = {option for line in summary.splitlines() for option in _options_first_in(line)}
    options = PLAIN_SKOPEO.partition("\n.SH OPTIONS\n")[2].partition("\n.PP\n")[0]
    lines = [line for line in options.splitlines() if line.startswith((".B", "-"))]
    assert {option for line in lines for option in _OPTION.findall(line)} == in_help


def registry_options() -> set[str]:
    """Return the options in the manual page of the registry."""
    options = PLAIN_REGISTRY.partition("\n.SH OPTIONS\n")[2].partition("\n.SH ")[0]
    paragraphs = re.split(r"^\.T[PQ]\n", options, flags=re.MULTILINE)[1:]
    return {option for each in paragraphs for option in _OPTION.findall(each.partition("\n")[0])}


def test_the_page_of_the_registry_has_its_options_and_no_others() -> None:
    _, _, summary = printed_by("registry", "--help").partition("options:")
    in_help = {option for line in summary.splitlines() for option in _options_first_in(line)}
    assert registry_options() == in_help


def test_the_page_of_skopeo_s_protocol_has_its_methods_and_no_others() -> None:
    methods = PLAIN_SKOPEO.partition("\n.SS Methods\n")[2].partition("\n.SS ")[0]
    found = re.findall(r"^\.TP\n\.BI? (\w+)", methods, re.MULTILINE)
    assert found == [*dict.fromkeys(found)]
    assert set(found) == set(skopeo_messages.METHODS)
    assert f"version {skopeo_messages.VERSION}" in PLAIN_SKOPEO
    assert f"at most {skopeo_messages.MAX_PACKET} bytes" in PLAIN_SKOPEO
    assert f"imgproxy/{__version__}" in PLAIN_SKOPEO


def _options_first_in(line: str) -> list[str]:
    """Return the options that a line of the summary introduces; its description may name others."""
    introduced, _, _ = line.strip().partition("  ")
    return _OPTION.findall(introduced) if introduced.startswith("-") else []


def failures_of_the_program() -> set[tuple[int, str]]:
    """Return each status with its codes: the defaults of the classes, and those given at a raise.

    A variable may have any code that its module contains. A code that is passed on (`error.code`)
    is found where that error is raised.
    """
    classes = {
        name: value
        for module in (errors, request_errors)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Failure) and value is not Failure
    }
    found = {(one.status, one.default_code) for one in classes.values()}
    for file in (ROOT / "imgproxy").rglob("*.py"):
        if file.name.startswith("registry_") and file.parent.name == "frontends":
            continue  # imgproxy-registry(7) has those
        module = ast.parse(file.read_text())
        for node in ast.walk(module):
            if not isinstance(node, ast.Call):
                continue
            # The class may be an expression: `(One if … else Other)(message)`.
            raised = {each.id for each in ast.walk(node.func) if isinstance(each, ast.Name)}
            for keyword in node.keywords:
                if keyword.arg == "code":
                    codes = _codes_in(keyword.value, module)
                    statuses = {classes[name].status for name in raised & classes.keys()}
                    found |= {(status, code) for status in statuses for code in codes}
    return found


def _codes_in(value: ast.expr, module: ast.Module) -> set[str]:
    if isinstance(value, ast.Constant):
        return {str(value.value)}
    if isinstance(value, ast.Attribute):
        return set()
    texts = {node.value for node in ast.walk(module) if isinstance(node, ast.Constant)}
    return {text for text in texts if isinstance(text, str) and _CODE.fullmatch(text)}


def test_the_man_page_has_the_codes_of_the_program_and_no_others() -> None:
    in_man = {
        (int(status), code)
        for tag, text in tagged("ERRORS").items()
        for status in re.findall(r"\d+", tag)
        for code in re.findall(r"^\.BR? ([A-Z_]+)\b", text, re.MULTILINE)
    }
    assert in_man == failures_of_the_program()


def test_the_readme_has_the_statuses_of_the_program_and_no_others() -> None:
    _, _, text = README.partition("| status | meaning |")
    table, _, text = text.partition("\n\n")
    in_readme = {int(status) for status in re.findall(r"\b[45]\d\d\b", table)}
    assert in_readme == {status for status, _ in failures_of_the_program()}


class Recorded(NamedTuple):
    """What was read of a host without any variable or file."""

    variables: set[str]
    paths: set[str]


class _Variables(dict[str, str]):
    """An environment that records the names that are read."""

    def __init__(self, **values: str) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.asked.add(name)
        return super().get(name, default)


def recorded(variables: _Variables, uid: int) -> Recorded:
    """Return what the search for every kind of file, and for proxies, reads."""
    paths: set[str] = set()

    def exists(path: str) -> bool:
        paths.add(path)
        return False

    def names(directory: str) -> Iterable[str]:
        paths.add(_in_directory(directory))
        return ()

    host = search_paths.Host(variables, uid, "~", exists, names)
    paths |= {*search_paths.policy(host).searched}
    search_paths.registries(host)
    search_paths.aliases(host)
    search_paths.certificates(host, _REGISTRY)
    paths |= {file.path for file in search_paths.auth_files(host)}
    for scheme in ("http", "https"):
        proxy.choose(url.parse(f"{scheme}://registry.example/"), variables)
    search_paths.registries_d(host)
    paths.add(search_paths.lookaside(host).removeprefix("file://"))
    # The existence of a directory with drop-in files is checked by its own path.
    paths = {_in_directory(path) for path in paths}
    return Recorded(variables.asked, {path.replace(f"/{uid}", "/$UID") for path in paths})


def _in_directory(path: str) -> str:
    """Return a pattern for the files of a directory for drop-in files; any other path unchanged."""
    if "/registries." not in path or path.endswith((".conf", ".yaml")):
        return path
    return f"{path}/*.conf" if ".conf.d" in path else f"{path}/*.yaml"


def with_user_directories() -> _Variables:
    names = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG")
    return _Variables(**{name: f"${name}" for name in names})


def _every_path() -> set[str]:
    """Return the paths for root and other users, with and without the variables for directories."""
    root, *users = (
        recorded(_Variables(), 0),
        recorded(_Variables(), _USER),
        recorded(with_user_directories(), _USER),
    )
    paths = {path for each in users for path in each.paths}
    return paths | {path for path in root.paths if "$UID" not in path}


def _files() -> list[list[str]]:
    """Return the paths in the man page's FILES, by paragraph."""
    _, *paragraphs = section("FILES").split("\n.TP\n")
    tags = [re.match(r"(?:\.I .*\n(?:\.TQ\n)?)+", paragraph) for paragraph in paragraphs]
    return [re.findall(r"^\.I (.*)", tag[0], re.MULTILINE) for tag in tags if tag]


def test_the_man_page_has_the_variables_of_the_program() -> None:
    """The system reads `PATH` to find helpers, and the TLS library two more variables."""
    system = ast.parse((ROOT / "imgproxy/host/environment.py").read_text())
    read = {
        str(node.args[0].value)
        for node in ast.walk(system)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("os.environ.")
        if isinstance(node.args[0], ast.Constant)
    }
    read |= recorded(_Variables(), _USER).variables
    tags = re.findall(r"^\.T[PQ]\n(.*)", section("ENVIRONMENT"), re.MULTILINE)
    in_man = {name for tag in tags for name in _VARIABLE.findall(tag)}
    assert in_man == read | {"PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}


def test_the_man_page_has_the_files_of_the_program_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_man = [path for paragraph in _files() for path in paragraph]
    assert len(in_man) == len(set(in_man))
    assert set(in_man) == _every_path() | set(_spools(monkeypatch))


def _spools(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the directories for archives that come through a pipe."""
    asked: list[str] = []
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *, buffering, dir: asked.append(dir))  # noqa: A006, ARG005
    for value in ("$TMPDIR", ""):
        monkeypatch.setenv("TMPDIR", value)
        environment.temporary_file()
    return asked


@pytest.mark.parametrize("uid", [0, _USER])
@pytest.mark.parametrize("kind", ["policy.json", "registries.conf", "certs.d"])
def test_files_are_listed_in_the_order_of_their_precedence(kind: str, uid: int) -> None:
    """Of two consecutive files, the first is read if both exist."""
    not_ours = "rootless" if uid == 0 else "rootful"
    paths = next(
        [path for path in paragraph if not_ours not in path]
        for paragraph in _files()
        if all(f"/{kind.removesuffix('.d')}" in path for path in paragraph)
    )
    for first, second in pairwise(paths):
        variables = with_user_directories() if first.startswith("$XDG") else _Variables()
        both = {path.replace("$UID", str(uid)) for path in (first, second)}
        host = search_paths.Host(variables, uid, "~", both.__contains__, lambda _: ())
        found = {
            "policy.json": search_paths.policy(host).path,
            "registries.conf": next((file.path for file in search_paths.registries(host)), None),
            "certs.d": search_paths.certificates(host, _REGISTRY),
        }
        assert found[kind] == first.replace("$UID", str(uid))


def test_the_mirrors_of_the_guide_are_tried_in_the_order_of_its_table() -> None:
    mirrors, _, _ = GUIDE.partition("\n## A registry over what lies here\n")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", mirrors, re.DOTALL | re.MULTILINE)
    file = registries_conf.parse(example.encode(), "registries.conf")
    assert file.warnings == ()
    _, _, rows = GUIDE.partition("| image | requested from, in order |\n|---|---|\n")
    digest = str(digests.compute(b""))
    claims = [
        [name.replace("DIGEST", digest) for name in re.findall(r"`([^`]+)`", row)]
        for row in rows.partition("\n\n")[0].splitlines()
    ]
    assert ["@" in image for image, *_ in claims] == [False, True]
    for image, *asked in claims:
        found = endpoints.find(references.parse_reference(image), file.registries)
        assert [str(each.reference) for each in found] == asked
        assert not any(each.refusal for each in found)


def test_sideloaded_images_are_looked_for_at_the_paths_in_the_guide() -> None:
    _, _, rows = GUIDE.partition("| pattern | image | looked for at |\n|---|---|---|\n")
    digest = str(digests.compute(b""))
    claims = [
        [name.replace("DIGEST", digest) for name in re.findall(r"`([^`]+)`", row)]
        for row in rows.partition("\n\n")[0].splitlines()
    ]
    assert len(claims) == 3
    for text, image, *paths in claims:
        assert sideload_pattern.parse(text).paths(references.parse_reference(image)) == paths


@pytest.mark.parametrize("text", [GUIDE, PLAIN])
def test_patterns_in_examples_are_valid(text: str) -> None:
    found = re.findall(r"--sideload '([^']+)'", text)
    assert len(found) >= 2
    for each in found:
        sideload_pattern.parse(each)


def test_the_man_page_has_the_placeholders_of_patterns() -> None:
    assert set(re.findall(r"<(\w+)>", section("SIDELOADING"))) == set(sideload_pattern._KNOWN)


def test_the_transports_are_those_of_the_program() -> None:
    _, _, rows = README.partition("| IMAGE | |\n|---|---|\n")
    in_readme = set(re.findall(r"`([a-z-]+):", rows.partition("\n\n")[0])) - {"busybox"}
    tags = re.findall(r"^\.T[PQ]\n\.BI ([a-z-]+):", section("IMAGES"), re.MULTILINE)
    assert in_readme == set(tags) == {"docker", *references._LOCAL}


def test_the_compressions_are_those_of_the_program() -> None:
    names = {codec.name for codec in compression.CODECS.values()}
    assert names == {"gzip", "zstd", "bzip2", "xz"}
    for text in (GUIDE, section("ARCHIVES"), CHANGELOG):
        assert re.search(r"with\sgzip,\szstd,\sbzip2\sor\sxz\b", text)
    (unread,) = re.findall(r"other compressions \(([a-z0-9, ]+)\)", section("ARCHIVES"))
    assert unread.split(", ") == list(compression.UNSUPPORTED.values())


def test_the_limits_are_those_of_the_program() -> None:
    mib = 1024 * 1024
    in_man = " ".join(section("ARCHIVES").split())
    for limit in (
        f"more than {tar.MAX_MEMBERS:,} members",
        f"a name of more than {tar.MAX_PATH} bytes",
        f"names of more than {tar.MAX_NAMES // mib} MiB together",
        f"extended headers of more than {tar.MAX_EXTENSION // mib} MiB",
        f"more than {compression.MAX_MEMORY // mib} MiB of memory",
        f"zstd --long={compression.WINDOW_LOG}",
        f"decompresses to more than {decompression.MAX_SIZE // mib // 1024} GiB",
        f"a manifest of more than {manifests.MAX_DOCUMENT_SIZE // mib} MiB",
        f"for gzip {decompression._SPACING // mib} MiB apart (or more,"
        f" {decompression._MAX_POINTS} at most)",
    ):
        assert limit in in_man
    for name in tar_archive._CONTROL:
        assert f"{name}" in in_man
    assert (
        f"{selection.MAX_INDEXES} indexes in the first one,"
        f" of {selection.MAX_TOTAL_SIZE // mib} MiB and {selection.MAX_ENTRIES:,} entries in all"
    ) in " ".join(section("PLATFORMS").split())
    assert f"At most {selection._MAX_LISTED} platforms" in section("PLATFORMS")
    networks = " ".join(section("NETWORKS").split())
    minutes = round(time_limit.TIME_LIMIT / 60)
    assert f"may take {time_limit.TIME_LIMIT:g} seconds ({minutes} minutes) together" in networks
    assert f"After {minutes} minutes of waiting for registries" in PROTOCOL
    assert process.TIMEOUT == 15 * 60 > time_limit.TIME_LIMIT
    assert f"up to {signature_files.MAX_TOGETHER} at the same time" in section("SIGNATURES")
    assert failover.REJECTION_TIME == 5 * 60
    assert "until five minutes have passed" in " ".join(section("REGISTRIES").split())
    sockets = " ".join(section("SOCKETS").split())
    for limit in (
        f"one of the {service.MAX_ACCEPTED} places",
        f"{service.MAX_WAITING} connections may be open",
        f"not begun for {patience.IDLE_LIMIT:g} seconds",
        f"not complete {patience.REQUEST_LIMIT:g} seconds after it has",
        f"been read for {patience.STALL_LIMIT:g}",
        f"reads nothing for {patience.STALL_LIMIT:g} seconds",
    ):
        assert limit in sockets
    assert foreign_layers._MAX_URLS == 8
    assert "those of http and https, eight at most" in " ".join(section("REGISTRIES").split())


def test_a_made_manifest_has_the_form_in_the_man_page() -> None:
    described = Descriptor(types.OCI_LAYER, digests.compute(b""), 0)
    made = docker_archive.make_manifest(described, [described, described]).decode()
    form = re.escape(re.search(r"^\{.*\}$", section("ARCHIVES"), re.MULTILINE)[0])  # type: ignore[index]
    form = form.replace("TYPE", f'"{re.escape(types.OCI_MANIFEST)}"').replace(
        r"\.\.\.", "DESCRIPTOR"
    )
    form = form.replace("DESCRIPTOR", r'\{"mediaType":"[^"]+","digest":"[^"]+","size":0\}')
    assert re.fullmatch(form, made)
    suffixes = set(docker_archive._COMPRESSIONS.values())
    assert set(re.findall(r"^\.BR? (\+[a-z0-9]+)", section("ARCHIVES"), re.MULTILINE)) == suffixes


def test_the_man_page_has_the_members_of_a_choice() -> None:
    (choice,) = choices.detail([Choice(0, (), None)])
    _, _, text = section("ERRORS").partition(".B choices\n(each with\n")
    assert set(re.findall(r"^\.BR? (\w+)", text.partition("null")[0], re.MULTILINE)) == set(choice)


def test_the_man_page_has_the_fields_of_a_manifest() -> None:
    front_end = ast.parse((ROOT / "imgproxy/frontends/single_image.py").read_text())
    (function,) = (
        node
        for node in ast.walk(front_end)
        if isinstance(node, ast.FunctionDef) and node.name == "_manifest_fields"
    )
    pairs = [node.elts[0] for node in ast.walk(function) if isinstance(node, ast.Tuple)]
    fields = {node.value for node in pairs if isinstance(node, ast.Constant)}
    _, _, text = section("PROTOCOL").partition("\n.RS\n")
    tags = re.findall(r"^\.TP\n\.B (.*)", text.partition("\n.RE\n")[0], re.MULTILINE)
    assert set(tags) == fields
    assert "Artifact-Type" in fields


def test_readme_and_guide_name_options_of_the_program_alone() -> None:
    _, _, ours = README.partition("## Images")
    ours, _, _ = ours.partition("## How fast")
    named = {
        option
        for quoted in re.findall(r"`(-[^`]*)`", ours + GUIDE + ARCHITECTURE + CONTRIBUTING)
        for option in _OPTION.findall(quoted)
    }
    assert "--authfile" in named
    in_man = {option for tag in tagged("OPTIONS") for option in _OPTION.findall(tag)}
    assert named <= in_man | {*_OPTION.findall(section("COMMANDS"))} | registry_options()


def test_readme_and_man_page_have_the_same_exit_statuses() -> None:
    _, _, text = README.partition("| exit status | meaning |")
    in_readme = set(re.findall(r"^\| (\d) \|", text, re.MULTILINE))
    in_man = {tag.removeprefix(".B ") for tag in tagged("EXIT STATUS")}
    assert in_readme == in_man == {"0", "1", "2", "4", "5"}


def test_the_documents_are_those_of_this_version() -> None:
    assert printed_by("--version").split() == ["imgproxy", __version__]
    assert f'"imgproxy {__version__}"' in MAN.splitlines()[1]
    assert __version__ in CHANGELOG


@pytest.mark.parametrize("page", sorted(each.name for each in (ROOT / "man").iterdir()))
def test_a_man_page_is_well_formed(page: str) -> None:
    """`mandoc` reports whatever `man` would render wrongly."""
    arguments = [require("mandoc"), "-T", "lint", "-W", "warning", str(ROOT / "man" / page)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (result.returncode, result.stdout) == (0, "")


# --- imgproxy-protocol(7) ------------------------------------------------------------------------

# The examples with roff's escapes resolved, as a reader sees them.
EXAMPLES = [
    example.replace(r"\-", "-").replace(r"\e", "\\")
    for example in re.findall(r"^\.EX\n(.*?)^\.EE$", PROTOCOL, re.DOTALL | re.MULTILINE)
]
BYTES = [example for example in EXAMPLES if example.startswith("> ")]
PYTHON = [example for example in EXAMPLES if example.startswith("import ")]
SHELL = [example for example in EXAMPLES if example not in BYTES + PYTHON]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return the image of the examples, made by the demo."""
    path = tmp_path / "image"
    subprocess.run([sys.executable, ROOT / "demo/sample.py", path], check=True, timeout=LIMIT)
    return path


def run_example(arguments: list[str], example: str, image: Path) -> str:
    """Return what an example prints, run in its own directory on a host with a policy."""
    home, directory = image.parent / "home", image.parent / "directory"
    policy = home / ".config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    directory.mkdir()
    program = image.parent / "bin/imgproxy"
    program.parent.mkdir()
    # A program that is started by a service manager gets no environment from the test.
    program.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={ROOT} HOME={home}\n"
        f'exec {" ".join(COMMAND)} --platform=linux/amd64 "$@"\n'
    )
    program.chmod(0o755)
    path = f"{program.parent}:{parent.environment()['PATH']}"
    result = subprocess.run(
        [*arguments, example.replace("/srv/image", str(image))],
        env=parent.environment(PATH=path, HOME=str(home)),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_protocol_page_has_examples_of_each_kind() -> None:
    assert [len(kind) for kind in (BYTES, SHELL, PYTHON)] == [1, 2, 2]
    assert PROTOCOL.count(".EX\n") == len(EXAMPLES)


@pytest.mark.parametrize("example", BYTES)
def test_the_bytes_of_the_protocol_page_are_those_of_the_program(example: str, image: Path) -> None:
    child = start(f"oci:{image}", "--platform=linux/amd64")
    try:
        turns = re.findall(r"((?:^>.*\n)+)((?:^<.*\n)+)", example, re.MULTILINE)
        assert "".join(f"{sent}{got}" for sent, got in turns) == example
        for sent, expected in turns:
            child.client.send(bytes_of(sent))
            reply = received(child.client, method=sent.split()[1])
            assert without_date(reply) == without_date(bytes_of(expected))
        assert child.client.ending() == "end"
    finally:
        child.close()


def bytes_of(lines: str) -> bytes:
    """Return the bytes of lines: CR and LF end those of the head, those of the body are joined."""
    texts = [line[2:] for line in lines.splitlines()]
    head, body = texts[: texts.index("")], texts[texts.index("") + 1 :]
    return "\r\n".join([*head, "", ""]).encode() + "".join(body).encode()


def received(client: Client, method: str) -> bytes:
    """Read one reply, and return it as bytes."""
    reply = client.reply(method)
    lines = [f"HTTP/1.1 {reply.status} {reply.reason}", *(f"{k}: {v}" for k, v in reply.fields)]
    return "\r\n".join([*lines, "", ""]).encode() + reply.body


def without_date(reply: bytes) -> bytes:
    reply, count = re.subn(rb"\r\nDate: [^\r]*", b"", reply)
    assert count == 1
    return reply


@pytest.mark.parametrize("example", SHELL)
def test_the_shell_examples_of_the_protocol_page_run(example: str, image: Path) -> None:
    for program in ("bash", *re.findall(r"systemd-socket-activate|curl", example)):
        require(program)
    printed = run_example(["bash", "-euo", "pipefail", "-c"], example, image)
    assert "HTTP/1.1 200 OK" in printed or "usr/share/noise" in printed


@pytest.mark.parametrize("example", PYTHON)
def test_the_python_examples_of_the_protocol_page_run(example: str, image: Path) -> None:
    printed = run_example([sys.executable, "-c"], example, image)
    assert re.search(r"exit status 0", printed)


def test_the_protocol_page_has_the_codes_of_the_program_and_no_others() -> None:
    _, _, text = PROTOCOL.partition("\n.SH ERRORS\n")
    text = text.partition("\n.SH ")[0]
    _, *parts = re.split(r"^\.TP\n\.B (\d+)\n", text, flags=re.MULTILINE)
    listed = {
        (int(status), code)
        for status, text in zip(parts[::2], parts[1::2], strict=True)
        for code in re.findall(r"^\.BR ([A-Z_]+) [,:]$", text, re.MULTILINE)
    }
    ranges = {(416, "UNSUPPORTED")}  # which this protocol does not have
    assert listed == failures_of_the_program() - ranges


def test_the_protocol_page_has_the_exit_statuses_and_requests_of_the_man_page() -> None:
    plain = PROTOCOL.replace("\\-", "-")
    _, _, ending = plain.partition("\n.SH ENDING\n")
    statuses = re.findall(r"^\.TP\n\.B (\d)$", ending.partition("\n.SH ")[0], re.MULTILINE)
    assert {f".B {status}" for status in statuses} == set(tagged("EXIT STATUS"))
    _, _, requests = plain.partition("\n.SH REQUESTS\n")
    tags = re.findall(r"^\.TP\n(.*)$", requests.partition("\n.SH ")[0], re.MULTILINE)
    # Tags of header fields are left out: the page has these under REPLIES.
    assert tags == [tag for tag in tagged("PROTOCOL") if re.search(r"\b(GET|POST) /", tag)]


def test_the_protocol_page_is_of_this_version_and_names_units_that_exist() -> None:
    assert f'"imgproxy {__version__}"' in PROTOCOL.splitlines()[2]
    plain = PROTOCOL.replace("\\-", "-")
    named = re.findall(r"^\.BI? (imgproxy[\w-]*)(@ NAME )?\.socket$", plain, re.MULTILINE)
    files = {f"{name}{'@' * bool(at)}.socket" for name, at in named}
    own = "imgproxy-registry.socket"  # which has a page of its own
    assert own in PLAIN_REGISTRY
    assert {*files, own} == {path.name for path in (ROOT / "systemd").glob("*.socket")}


# --- ARCHITECTURE.md and CONTRIBUTING.md ---------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
_PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]*|[\w.-]+\.(?:md|py|toml|yaml)|\.editorconfig")


def shell_blocks(text: str) -> list[str]:
    """Return the shell scripts of a document."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(script: str) -> list[list[str]]:
    """Return the words of each command, without the variables that are set for it."""
    parts = script.replace("|\n", "\n").splitlines()
    split = [shlex.split(part, comments=True) for part in parts for part in part.split(" | ")]
    return [words[1:] if "=" in words[0] else words for words in split]


def paths_in(text: str) -> list[str]:
    """Return the paths in a document's code that are relative to the project or the package."""
    code = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    code += re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    words = [word.rstrip(",;:") for each in code for word in each.split()]
    made = (".venv/", "build/")
    return [word for word in words if _PATH.fullmatch(word) and not word.startswith(made)]


def test_every_path_in_the_pages_for_contributors_exists() -> None:
    named = {*paths_in(ARCHITECTURE), *paths_in(CONTRIBUTING)}
    bases = (ROOT, ROOT / "imgproxy")
    assert not [name for name in sorted(named) if not any((base / name).exists() for base in bases)]


def test_paths_are_found_in_the_pages_for_contributors() -> None:
    assert {"net/client.py", "cli/runtime.py", "specs/oci/"} <= {*paths_in(ARCHITECTURE)}
    assert {"tests/run", "imgproxy/transports/source.py"} <= {*paths_in(CONTRIBUTING)}


def test_the_table_of_floors_is_that_of_the_package() -> None:
    floors = re.findall(r"^    (\w+)  +\w", imgproxy.__doc__ or "", re.MULTILINE)
    _, _, rows = ARCHITECTURE.partition(
        "| folder | what it does | why it is there |\n|---|---|---|\n"
    )
    assert re.findall(r"^\| `(\w+)` \|", rows.partition("\n\n")[0], re.MULTILINE) == floors != []


def test_every_command_for_contributors_exists() -> None:
    programs = {words[0] for text in shell_blocks(CONTRIBUTING) for words in commands(text)}
    ours = {f".venv/bin/{name}" for name in ("imgproxy", "python", *development_tools())}
    installed = {name for name in programs if name.startswith(".venv/bin/")}
    assert installed < ours
    in_checkout = {name for name in programs - installed if "/" in name}
    assert in_checkout == {"demo/environment", "tests/run"}
    assert all(os.access(ROOT / name, os.X_OK) for name in in_checkout)
    assert programs - installed - in_checkout == {"cat", "printf", "python3"}


def development_tools() -> set[str]:
    """Return the names of the packages that the dependency group `lint` installs directly."""
    group = PROJECT["dependency-groups"]["lint"]
    return {re.split(r"[^\w-]", each, maxsplit=1)[0] for each in group if isinstance(each, str)}


TEST_RUNS = [
    words[words.index("pytest") + 1 :] if "pytest" in words else words[1:]
    for text in shell_blocks(CONTRIBUTING)
    for words in commands(text)
    if "pytest" in words or words[0] == "tests/run"
]


def test_the_example_of_choosing_tests_by_name_chooses_some() -> None:
    (arguments,) = (each for each in TEST_RUNS if "-k" in each)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=2 * LIMIT, check=False
    )
    assert result.returncode == 0, result.stdout


def test_markers_for_contributors_are_declared() -> None:
    used = {
        argument
        for arguments in TEST_RUNS
        for option, argument in pairwise(arguments)
        if option == "-m" and argument
    }
    markers = PROJECT["tool"]["pytest"]["ini_options"].get("markers", [])
    assert {"slow"} == used <= {each.partition(":")[0] for each in markers}


def test_the_variables_for_contributors_are_those_of_the_tests() -> None:
    pattern = re.compile(r"\bIMGPROXY_TEST_\w+")
    read = {
        name
        for file in (ROOT / "tests").rglob("*.py")
        for name in pattern.findall(file.read_text())
    }
    assert {*pattern.findall(CONTRIBUTING)} == read != set()


def test_the_conversation_by_hand_runs(tmp_path: Path) -> None:
    (script,) = (each for each in shell_blocks(CONTRIBUTING) if "printf" in each)
    for name, ours in {
        "python3": sys.executable,
        ".venv/bin/imgproxy": " ".join(COMMAND),
        "/tmp/sample": str(tmp_path / "sample"),  # noqa: S108  (the page's, which is replaced)
    }.items():
        assert name in script
        script = script.replace(name, ours)
    result = subprocess.run(
        ["sh", "-euc", script],
        env=parent.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=True,
    )
    assert "HTTP/1.1 200 OK" in result.stdout
    assert "GET /manifest" in result.stderr


def test_the_hooks_run_the_linters_of_the_environment() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"].partition(" --")[0] for hook in repository["hooks"]]
    in_page = [" ".join(words) for text in shell_blocks(CONTRIBUTING) for words in commands(text)]
    assert entries == [each for each in in_page if "ruff" in each or "mypy" in each]

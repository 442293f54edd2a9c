"""The folders stand on their floors: what may import what, and who alone may do what.

The table is the one in the docstring of `imgproxy/__init__.py`.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.parent import ROOT

import imgproxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The folders and modules of the package from the top down, as its docstring has them; what stands
# above them, and beside them.
FLOORS = re.findall(r"^    (\w+)  +\w", imgproxy.__doc__ or "", re.MULTILINE)
TOP, BESIDE = "__main__", "parent"

PURE_FOLDERS = {"config", "specs", "parsing", "errors"}
# Pure modules in folders that are not.
PURE_MODULES = {
    "imgproxy.frontends.single_image_routes",
    "imgproxy.frontends.skopeo_messages",
    "imgproxy.server.error_body",
    "imgproxy.server.handler",
    "imgproxy.server.request_errors",
}

# The event loop, HTTP, sockets, clocks: what the pure floor is tested without.
IMPURE = {"asyncio", "h11", "os", "select", "socket", "ssl", "subprocess", "time", "trio"}

# Of the standard library from Python 3.14 on; before that, each has a backport.
LATER = {"compression"}
# What the extras bring, and what it is imported as.
MODULE_OF = {
    "pysequoia": "pysequoia",
    "cryptography": "cryptography",
    "PyYAML": "yaml",
    "rich": "rich",
    "bcrypt": "bcrypt",
    "prometheus": "prometheus_client",
}

PACKAGE = ROOT / "imgproxy"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


class Import(NamedTuple):
    """A module that is imported; `at_runtime`: not for the type checker alone."""

    name: str
    at_runtime: bool


def for_type_checker(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def walk(node: ast.AST, *, at_runtime: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Return all nodes, those inside functions as well, and whether they are for the runtime."""
    yield node, at_runtime
    for child in ast.iter_child_nodes(node):
        below = isinstance(node, ast.If) and child in node.body and for_type_checker(node)
        yield from walk(child, at_runtime=at_runtime and not below)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(module: str) -> list[Import]:
    found = []
    for node, at_runtime in walk(parsed(MODULES[module])):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, at_runtime) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import says less than an absolute one"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(Import(inner if inner in MODULES else node.module, at_runtime))
    return found


def ours(module: str, *, at_runtime: bool = False) -> list[str]:
    """Return the modules of the package that one of them imports."""
    return [
        each.name
        for each in imports(module)
        if each.name in MODULES and (each.at_runtime or not at_runtime)
    ]


def folder(module: str) -> str:
    """Return the folder of a module, or the module itself where it lies flat in the package."""
    return module.removeprefix("imgproxy.").partition(".")[0]


def floor(module: str) -> int:
    """Return the height of a module's folder; the package itself has only a version."""
    if module == "imgproxy":
        return -1
    return 2 * len(FLOORS) if folder(module) == TOP else len(FLOORS) - FLOORS.index(folder(module))


PURE = [
    module
    for module in MODULES
    if module == "imgproxy" or folder(module) in PURE_FOLDERS or module in PURE_MODULES
]


def test_every_folder_is_on_one_floor() -> None:
    assert len(FLOORS) == len(set(FLOORS)) > len(PURE_FOLDERS)
    assert {folder(module) for module in MODULES if module != "imgproxy"} == {*FLOORS, TOP, BESIDE}
    assert len(PURE) > len(PURE_MODULES) + len(PURE_FOLDERS)


def test_no_module_lies_flat_in_the_package_without_a_reason() -> None:
    flat = {path.stem for path in PACKAGE.glob("*.py")}
    assert flat == {"__init__", "__main__", "errors", "single_flight"}


def test_no_folder_is_empty() -> None:
    """A package that has nothing but a docstring is a promise, and not a folder."""
    for path in PACKAGE.rglob("__init__.py"):
        assert len([*path.parent.glob("*.py"), *path.parent.glob("*/__init__.py")]) > 1, path


@pytest.mark.parametrize("module", [each for each in MODULES if folder(each) != BESIDE])
def test_no_import_leads_upwards(module: str) -> None:
    above = [name for name in ours(module) if folder(name) == BESIDE or floor(name) > floor(module)]
    assert not above


def check_no_circle(graph: dict[str, list[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_imports_make_a_circle() -> None:
    check_no_circle({module: ours(module, at_runtime=True) for module in MODULES})


def test_no_folders_beside_each_other_make_a_circle() -> None:
    """As those of `specs`: what is for the type checker alone counts as well."""
    graph: dict[str, list[str]] = {}
    for module in MODULES:
        inner = graph.setdefault(parent_of(module), [])
        inner += [
            parent_of(name)
            for name in ours(module)
            if parent_of(name).count(".") == parent_of(module).count(".") == 2
            and parent_of(name) != parent_of(module)
        ]
    check_no_circle(graph)


def parent_of(module: str) -> str:
    """Return the folder that a module lies in, as a package."""
    is_package = MODULES[module].stem == "__init__"
    return module if is_package else module.rpartition(".")[0]


@pytest.mark.parametrize("module", PURE)
def test_the_pure_floor_needs_no_event_loop_no_socket_and_no_clock(module: str) -> None:
    assert not {each.name.partition(".")[0] for each in imports(module)} & IMPURE


def test_front_ends_reach_images_through_the_catalog_alone() -> None:
    """A front-end has no way around policy and verification; types may be named for the checker."""
    front_ends = [module for module in MODULES if folder(module) == "frontends"]
    reached = {folder(name) for module in front_ends for name in ours(module, at_runtime=True)}
    assert reached <= {"frontends", "images", "server", "specs", "parsing", "errors"}


def test_the_library_for_parents_is_apart_from_the_program() -> None:
    """It runs in another process: it knows what is said between the two, and no more."""
    library = {module for module in MODULES if folder(module) == BESIDE}
    known = {"specs", "errors", "unpacking", BESIDE}
    assert {folder(name) for module in library for name in ours(module)} <= known
    assert not {module for module in MODULES for name in ours(module) if name in library} - library
    for module in library - {"imgproxy.parent.with_trio"}:
        assert not {each.name.partition(".")[0] for each in imports(module)} & {"h11", "trio"}
        assert "imgproxy.parent.with_trio" not in ours(module)


@pytest.mark.parametrize("module", MODULES)
def test_only_what_is_declared_is_imported(module: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w]", each, maxsplit=1)[0] for each in project["dependencies"]}
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    optional = {MODULE_OF[re.split(r"[^\w]", each, maxsplit=1)[0]] for each in extras}
    tops = {each.name.partition(".")[0] for each in imports(module) if each.at_runtime}
    assert tops <= sys.stdlib_module_names | LATER | declared | optional | {"imgproxy"}


@pytest.mark.parametrize("module", MODULES)
def test_what_may_be_missing_is_imported_where_it_is_needed(module: str) -> None:
    """Inside of functions, so that nobody pays for signatures who demands none."""
    tree = parsed(MODULES[module])
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for each in functions for node in ast.walk(each)}
    for node, at_runtime in walk(tree):
        if at_runtime and id(node) not in inside and isinstance(node, ast.Import | ast.ImportFrom):
            assert ast.unparse(node).split()[1].partition(".")[0] not in MODULE_OF.values()


def test_what_the_standard_library_has_later_is_declared_until_then() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [each for each in project["dependencies"] if each.startswith("backports.")]
    assert all(each.endswith("; python_version < '3.14'") for each in wanted)
    assert len(wanted) == len(LATER)


@cache
def code(path: Path) -> str:
    """Return a module's source without its comments and docstrings."""
    return ast.unparse(Undocumented().visit(ast.parse(path.read_text())))


class Undocumented(ast.NodeTransformer):
    """Takes away docstrings, and what is imported for the type checker alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if is_text else node

    def visit_If(self, node: ast.If) -> ast.AST:
        return ast.Pass() if for_type_checker(node) else self.generic_visit(node)


# What one module alone may mention: a pattern of its text, and who.
PRIVILEGES = [
    pytest.param(
        r"\benviron\b|\benvironb\b|\bgetenv\b|\bexpanduser\b|\bexpandvars\b",
        {"imgproxy.host.environment"},
        id="environment",
    ),
    pytest.param(
        r"/etc/|/usr/share|/\.config\b", {"imgproxy.config.search_paths"}, id="configuration-paths"
    ),
    pytest.param(
        r"\bopen_process\b|\bPopen\b",
        {
            "imgproxy.host.credential_lookup",
            "imgproxy.parent.blocking",
            "imgproxy.parent.with_trio",
        },
        id="running-programs",
    ),
    pytest.param(
        r"\bgetaddrinfo\b|\bcreate_connection\b|\bopen_tcp_stream\b",
        {"imgproxy.net.tcp", "imgproxy.net.preconnect", "imgproxy.server.listeners"},
        id="opening-connections",
    ),
    pytest.param(
        r"\bhexdigest\b|\bhasher\(|\bhashlib\b|\bcompare_digest\b",
        # The archive's hashes give a name to what has none; it is verified like anything else. The
        # last compares what comes out of blobs that were verified.
        {
            "imgproxy.specs.oci.digest",
            "imgproxy.verification.block_hashes",
            "imgproxy.verification.documents",
            "imgproxy.verification.stored_blobs",
            "imgproxy.verification.verified_blob",
            "imgproxy.transports.local.docker_archive",
            "imgproxy.unpacking.root_file_system",
        },
        id="comparing-digests",
    ),
    pytest.param(
        r"\bpolicies\.evaluate\(",
        {"imgproxy.images.image", "imgproxy.transports.registry.preconnect"},
        id="asking-for-the-verdict",
    ),
    # Before it does, garbage is not collected.
    pytest.param(r"\btrio\.run\(", {"imgproxy.cli.runtime"}, id="running-the-event-loop"),
    pytest.param(
        r"\bsys\.(?:stdin|stdout|stderr)\b|\bprint\(",
        {"imgproxy.__main__", "imgproxy.cli.commands"},
        id="standard-streams",
    ),
]


@pytest.mark.parametrize(("pattern", "allowed"), PRIVILEGES)
def test_some_things_are_done_in_one_place(pattern: str, allowed: set[str]) -> None:
    found = {module for module, path in MODULES.items() if re.search(pattern, code(path))}
    assert found == allowed

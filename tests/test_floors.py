"""The house stands on its floors: what may import what, and who alone may do what.

The table is the one in `imgproxy/__init__.py`, to the module.
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

# A room is a module, or a package with all that is in it.
FLOORS: list[list[str]] = [
    ["spec", "config", "api", "fields", "strict_json", "errors"],
    [
        *("client", "request", "response", "dialling", "wire", "files", "activation"),
        *("system", "settings", "keyring", "shared", "early", "tls", "parent"),
    ],
    ["transports"],
    ["image", "verify", "trust"],
    ["server"],
    ["__main__", "cli", "service"],
]

# The event loop, HTTP, sockets, clocks: what the pure floor is tested without.
IMPURE = {"asyncio", "h11", "os", "select", "socket", "ssl", "subprocess", "time", "trio"}

# Of the standard library from Python 3.14 on; before that, each has a backport.
LATER = {"compression"}
# What the extra `signatures` brings, and what it is imported as.
MODULE_OF = {"pysequoia": "pysequoia", "cryptography": "cryptography", "PyYAML": "yaml"}

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
    """Give all nodes, those inside functions as well, and whether they are for the runtime."""
    yield node, at_runtime
    for child in ast.iter_child_nodes(node):
        below = isinstance(node, ast.If) and child in node.body and for_type_checker(node)
        yield from walk(child, at_runtime=at_runtime and not below)


@cache
def imports(module: str) -> list[Import]:
    found = []
    for node, at_runtime in walk(ast.parse(MODULES[module].read_text())):
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
    """Give the modules of the package that one of them imports."""
    return [
        each.name
        for each in imports(module)
        if each.name in MODULES and (each.at_runtime or not at_runtime)
    ]


def room(module: str) -> str:
    return module.removeprefix("imgproxy.").partition(".")[0]


def floor(module: str) -> int:
    """Give the floor of a module; the cellar is the package itself, which has only a version."""
    if module == "imgproxy":
        return -1
    (level,) = (n for n, rooms in enumerate(FLOORS) if room(module) in rooms)
    return level


PURE = [module for module in MODULES if module == "imgproxy" or floor(module) == 0]


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    rooms = [each for level in FLOORS for each in level]
    assert len(rooms) == len(set(rooms))
    assert {room(module) for module in MODULES if module != "imgproxy"} == set(rooms)


def test_the_table_is_the_documented_one() -> None:
    documented: list[list[str]] = []
    for line in (imgproxy.__doc__ or "").splitlines():
        row = re.fullmatch(r"    ([0-9 ])  ((?:\w+(?:, ?|$|(?=  )))+) *(?:  .*)?", line)
        if row and row[1] != " ":
            documented.insert(0, [])
        if row:
            documented[0] += re.findall(r"\w+", row[2])
    assert [sorted(level) for level in documented] == [sorted(level) for level in FLOORS]


@pytest.mark.parametrize("module", MODULES)
def test_no_import_leads_upwards(module: str) -> None:
    above = [name for name in ours(module) if floor(name) > floor(module)]
    assert not above


def test_no_imports_make_a_circle() -> None:
    graph = {module: ours(module, at_runtime=True) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", PURE)
def test_the_pure_floor_needs_no_event_loop_no_socket_and_no_clock(module: str) -> None:
    assert not {each.name.partition(".")[0] for each in imports(module)} & IMPURE


def test_the_library_for_parents_is_apart_from_the_program() -> None:
    """It runs in another process: it knows what is said between the two, and no more."""
    library = {module for module in MODULES if room(module) == "parent"}
    known = {"spec", "errors", "parent"}
    assert {room(name) for module in library for name in ours(module)} <= known
    assert not {module for module in MODULES for name in ours(module) if name in library} - library
    for module in library - {"imgproxy.parent.with_trio"}:
        assert not {each.name.partition(".")[0] for each in imports(module)} & {"h11", "trio"}
        assert "imgproxy.parent.with_trio" not in ours(module)


@pytest.mark.parametrize("module", MODULES)
def test_only_what_is_declared_is_imported(module: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w]", each, maxsplit=1)[0] for each in project["dependencies"]}
    extra = project["optional-dependencies"]["signatures"]
    optional = {MODULE_OF[re.split(r"[^\w]", each, maxsplit=1)[0]] for each in extra}
    tops = {each.name.partition(".")[0] for each in imports(module) if each.at_runtime}
    assert tops <= sys.stdlib_module_names | LATER | declared | optional | {"imgproxy"}


@pytest.mark.parametrize("module", MODULES)
def test_what_may_be_missing_is_imported_where_it_is_needed(module: str) -> None:
    """Inside of functions, so that nobody pays for signatures who demands none."""
    tree = ast.parse(MODULES[module].read_text())
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


def code(path: Path) -> str:
    """Give a module's source without its comments and docstrings."""
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
    pytest.param(r"\bopen_tcp_stream\b", {"imgproxy.net.dialer"}, id="opening-connections"),
    pytest.param(
        r"\bhexdigest\b|\bhasher\(|\bhashlib\b|\bcompare_digest\b",
        # The last hashes to give a name to what has none; it is verified like anything else.
        {
            "imgproxy.specs.oci.digest",
            "imgproxy.verification.verified_blob",
            "imgproxy.transports.local.docker_archive",
        },
        id="comparing-digests",
    ),
    pytest.param(
        r"\bpolicies\.demand\(",
        {"imgproxy.images.image", "imgproxy.net.preconnect"},
        id="asking-for-the-verdict",
    ),
    pytest.param(
        r"\bsys\.(?:stdin|stdout|stderr)\b|\bprint\(", {"imgproxy.__main__"}, id="standard-streams"
    ),
]


@pytest.mark.parametrize(("pattern", "allowed"), PRIVILEGES)
def test_some_things_are_done_in_one_place(pattern: str, allowed: set[str]) -> None:
    found = {module for module, path in MODULES.items() if re.search(pattern, code(path))}
    assert found == allowed

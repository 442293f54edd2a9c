"""What README, man page and changelog say, held to the program."""

from __future__ import annotations

import ast
import os
import re
import subprocess

import pytest
from parent import COMMAND, LIMIT, ROOT, environment
from servers import require

from imgproxy import __version__, errors
from imgproxy.errors import Failure

README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
MAN = (ROOT / "man/imgproxy.1").read_text()

# The text below is read without roff's notation: a hyphen that is to be a minus, font changes.
PLAIN = re.sub(r"\\f.", "", MAN.replace(r"\-", "-"))

_CODE = re.compile(r"[A-Z]+_[A-Z_]+")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def section(name: str) -> str:
    """Give a section of the man page."""
    _, _, text = PLAIN.partition(f"\n.SH {name}\n")
    assert text, name
    return text.partition("\n.SH ")[0]


def tagged(name: str) -> dict[str, str]:
    """Give a section's tagged paragraphs: the line after `.TP`, and what follows."""
    introduction, *paragraphs = f"\n{section(name)}".split("\n.TP\n")
    assert paragraphs, introduction
    return {tag: text for tag, _, text in (part.partition("\n") for part in paragraphs)}


def printed_by(*options: str) -> str:
    arguments = [*COMMAND, *options]
    result = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert not result.stderr
    return result.stdout


@pytest.mark.parametrize(("position", "command"), [(0, "demo/run"), (1, "tests/run")])
def test_the_readme_begins_with_two_commands_that_exist(position: int, command: str) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert blocks[position] == command + "\n"
    assert os.access(ROOT / command, os.X_OK)


def test_every_file_that_the_readme_names_exists() -> None:
    names = re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|sh|md|1)|(?:demo|tests|\.ci)/\w+)", README)
    assert "demo/parent.py" in names
    for name in names:
        if name not in {"policy.json", "auth.json"}:
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "path", ["README.md", "CHANGELOG.md", "man/imgproxy.1", "demo/environment"]
)
def test_nobody_is_told_to_install_the_other_imgproxy(path: str) -> None:
    """The plain name on PyPI belongs to another program."""
    assert not re.search(r"pip3? install\s+(-\S+\s+)*imgproxy", (ROOT / path).read_text())


def test_the_man_page_has_the_options_of_the_program_and_no_others() -> None:
    _, _, summary = printed_by("--help").partition("options:")
    assert summary
    in_help = {option for line in summary.splitlines() for option in _options_first_in(line)}
    in_man = {option for tag in tagged("OPTIONS") for option in _OPTION.findall(tag)}
    assert in_man == in_help


def _options_first_in(line: str) -> list[str]:
    """Give the options that a line of the summary introduces; its words may name others."""
    introduced, _, _ = line.strip().partition("  ")
    return _OPTION.findall(introduced) if introduced.startswith("-") else []


def failures_of_the_program() -> set[tuple[int, str]]:
    """Give each status with its codes: those of the classes, and those given at a raise.

    Where a code is given by a variable, any code that its module spells may be in that.
    """
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Failure) and value is not Failure
    }
    found = {(one.status, one.default_code) for one in classes.values()}
    for file in (ROOT / "imgproxy").rglob("*.py"):
        module = ast.parse(file.read_text())
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in classes:
                status = classes[ast.unparse(node.func)].status
                for keyword in node.keywords:
                    if keyword.arg == "code":
                        found |= {(status, code) for code in _codes_in(keyword.value, module)}
    return found


def _codes_in(value: ast.expr, module: ast.Module) -> set[str]:
    if isinstance(value, ast.Constant):
        return {str(value.value)}
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


def test_the_man_page_has_the_variables_of_the_program() -> None:
    """The TLS library reads two more."""
    system = ast.parse((ROOT / "imgproxy/system.py").read_text())
    read = {
        str(node.args[0].value)
        for node in ast.walk(system)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("os.environ.")
        if isinstance(node.args[0], ast.Constant)
    }
    in_man = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bHOME\b", section("ENVIRONMENT")))
    assert in_man == read | {"SSL_CERT_FILE", "SSL_CERT_DIR"}


def test_readme_and_man_page_have_the_same_exit_statuses() -> None:
    _, _, text = README.partition("| exit status | meaning |")
    in_readme = set(re.findall(r"^\| (\d) \|", text, re.MULTILINE))
    in_man = {tag.removeprefix(".B ") for tag in tagged("EXIT STATUS")}
    assert in_readme == in_man == {"0", "1", "2", "4", "5"}


def test_the_documents_are_those_of_this_version() -> None:
    assert printed_by("--version").split() == ["imgproxy", __version__]
    assert f'"imgproxy {__version__}"' in MAN.splitlines()[1]
    assert __version__ in CHANGELOG


def test_the_man_page_is_well_formed() -> None:
    """Whatever `man` would render wrongly, `mandoc` names."""
    arguments = [require("mandoc"), "-T", "lint", "-W", "warning", str(ROOT / "man/imgproxy.1")]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (result.returncode, result.stdout) == (0, "")

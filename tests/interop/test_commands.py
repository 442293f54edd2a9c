"""What all commands have in common: operands, standard descriptors, `--format json`."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.commands import run
from support.images import REF_NAME, Layout, named
from support.parent import COMMAND, LIMIT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    image = made.image(b"a layer" * 99)
    made.save(named(image, "a"), named(image, "b"), named(image, "c"))
    return made


def shell(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program by a shell that redirects its descriptors."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {command}', "sh", *COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=6 * LIMIT,
        check=False,
    )


def test_options_may_stand_between_operands(layout: Layout) -> None:
    store = f"oci:{layout.path}"
    done = run("rm", f"{store}:a", "--format", "json", f"{store}:b", "--quiet", f"{store}:c")
    assert (done.status, done.stderr) == (0, "")
    assert [each["name"] for each in done.json()["removed"]] == ["a", "b", "c"]


@pytest.mark.slow
def test_what_follows_two_dashes_is_no_option(layout: Layout) -> None:
    at = layout.path
    done = run("export", "--quiet", "--", f"oci:{at}:a", f"oci:{at}:b", f"oci-archive:{at}/-x.tar")
    assert (done.status, done.stderr) == (0, "")
    assert (at / "-x.tar").exists()


USAGE = {
    "too few": ["rm", "--format=json"],
    "too many": ["list", "--format", "json", "oci:x", "oci:y"],
    "found late": ["tag", "--format=json", "oci:x:a", ""],
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_is_a_document_too(case: str) -> None:
    done = run(*USAGE[case])
    assert done.status == 2
    (error,) = done.json()["errors"]
    assert error["code"] == "BAD_REQUEST"
    assert done.stderr == f"imgproxy: {error['message']}\n"


def test_a_secret_is_not_in_the_document() -> None:
    done = run("list", "oci:x", "--creds=u:hunter2", "--platform=hunter2", "--format=json")
    assert done.status == 2
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["list", "--format=json"]], ids=" ".join)
def test_a_full_standard_output_is_the_destination_s(arguments: list[str], layout: Layout) -> None:
    done = shell(">/dev/full", *arguments, f"oci:{layout.path}")
    assert (done.returncode, done.stderr) == (
        6,
        "imgproxy: list: standard output: No space left on device\n",
    )


def test_a_closed_standard_output_is_told(layout: Layout) -> None:
    done = shell(">&-", "list", f"oci:{layout.path}")
    assert (done.returncode, done.stderr) == (6, "imgproxy: list: standard output is closed\n")


@pytest.mark.parametrize("closed", [">&-", pytest.param("<&- >&- 2>&-", marks=pytest.mark.slow)])
def test_no_file_takes_the_place_of_a_closed_descriptor(closed: str, layout: Layout) -> None:
    """An archive would be written into the lock or the blob that has the number."""
    assert run("tag", f"oci:{layout.path}:a", "d").status == 0  # it is a store by now
    before = {f: f.read_bytes() for f in layout.path.rglob("*") if f.is_file()}
    done = shell(closed, "export", f"oci:{layout.path}:a", "oci-archive:-")
    assert done.returncode == 6
    assert "2>&-" in closed or done.stderr == (
        "imgproxy: export: standard output: Bad file descriptor\n"
    )
    assert before == {each: each.read_bytes() for each in before}


@pytest.mark.slow
def test_what_is_not_in_the_locale_s_encoding_is_written(layout: Layout) -> None:
    layout.save({**layout.image(b"a"), "annotations": {REF_NAME: "é"}})
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("list", f"oci:{layout.path}", "--format=json", env={**os.environ, **ascii_only})
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["items"][0]["names"] == ["é"]

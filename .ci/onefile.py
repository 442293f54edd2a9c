#!/usr/bin/env python3
"""Build the program as one file: `PYTHON .ci/onefile.py [DIRECTORY]` writes imgproxy-X.Y.pyz there.

The file is for the minor version of Python that builds it, as it contains bytecode and no sources:
nothing is compiled when it starts. The dependencies, with their licences, are copied from that
Python's own environment.

Extension modules cannot be loaded from such a file, and are omitted. That is backports.zstd: zstd
archives need it installed for the Python that runs the file, or Python 3.14, which has its own.
"""

from __future__ import annotations

import importlib.metadata
import py_compile
import re
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parent.parent

# Directories whose modules are never used.
OMITTED = {"_tests", "tests", "__pycache__", "_tools"}

_MAIN = """\
import sys
if sys.version_info[:2] != {version}:
    sys.exit("imgproxy: this file is for Python {version[0]}.{version[1]}, and this is Python %d.%d"
             % sys.version_info[:2])
from imgproxy.__main__ import main
sys.exit(main())
"""

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*(?:;(.*))?")
_LICENCE = re.compile(r"(?i)(licen[cs]e|copying|notice|authors)")


def dependencies() -> Iterator[importlib.metadata.Distribution]:
    """Yield the distributions that the program needs and that a zip archive can hold."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    required, seen = list(project["dependencies"]), set()
    while required:
        match = _REQUIREMENT.match(required.pop())
        if match is None or not _applies(match[2] or "") or match[1] in seen:
            continue
        seen.add(match[1])
        found = importlib.metadata.distribution(match[1])
        if any(str(file).endswith(".so") for file in found.files or []):
            print(f"without {match[1]}, which has extension modules", file=sys.stderr)
            continue
        yield found
        required += found.requires or []


def _applies(marker: str) -> bool:
    """Return whether a requirement is for this host; supports only the dependencies' markers."""
    if "extra" in marker or "os_name == 'nt'" in marker.replace('"', "'"):
        return False
    match = re.fullmatch(r"\s*python_version\s*<\s*['\"](\d+)\.(\d+)['\"]\s*", marker)
    return match is None or sys.version_info[:2] < (int(match[1]), int(match[2]))


def files() -> Iterator[tuple[str, Path]]:
    """Yield the files of the archive: the name there, and the path here."""
    for path in (TOP / "imgproxy").rglob("*.py"):
        yield path.relative_to(TOP).as_posix(), path
    yield "LICENSE", TOP / "LICENSE"
    for found in dependencies():
        for file in found.files or []:
            module = file.suffix == ".py" and not OMITTED & set(file.parts)
            licence = ".dist-info" in file.parts[0] and _LICENCE.match(file.name)
            if ".." not in file.parts and (module or licence):
                yield file.as_posix(), Path(str(found.locate_file(file)))


def bytecode(name: str, path: Path) -> bytes:
    """Return a module's bytecode, in the form that is never compared with a source."""
    with tempfile.TemporaryDirectory() as directory:
        compiled = Path(directory, "compiled")
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(path), str(compiled), name, doraise=True, invalidation_mode=mode)
        return compiled.read_bytes()


def build(output: Path) -> None:
    """Write the file. Its content depends neither on the time nor on the path of the build."""
    version = sys.version_info[:2]
    with output.open("wb") as file:
        file.write(f"#!/usr/bin/env python{version[0]}.{version[1]}\n".encode())
        # Stored, since decompression at each start takes longer than reading.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            main = _MAIN.format(version=tuple(version)).encode()
            archive.writestr(zipfile.ZipInfo("__main__.py"), main)
            for name, path in sorted(files()):
                is_module = name.endswith(".py")
                content = bytecode(name, path) if is_module else path.read_bytes()
                archive.writestr(zipfile.ZipInfo(name + "c" * is_module), content)
    output.chmod(0o755)


def main() -> None:
    """Build the file for the Python that runs this."""
    directory = Path(sys.argv[1]) if sys.argv[1:] else TOP / "dist"
    directory.mkdir(parents=True, exist_ok=True)
    output = directory / "imgproxy-{}.{}.pyz".format(*sys.version_info)
    try:
        build(output)
    except importlib.metadata.PackageNotFoundError as error:
        output.unlink()
        sys.exit(
            f"onefile.py: no {error.name} here; run it with a Python that has imgproxy installed"
        )
    print(output)


if __name__ == "__main__":
    main()

"""Programs that copy an image from a registry into an OCI layout, behind one interface."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .contenders import Contender, Imgproxy, Skopeo
from .stage import OLDER, TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from .turns import Sample

# What other programs are given, after their path: the option for a registry without TLS, which
# stands last where there is none, and an image and a layout.
OTHERS: dict[str, tuple[str, Callable[[str, str], list[str]]]] = {
    "crane": ("--insecure", lambda image, layout: ["pull", "--format=oci", image, layout]),
    # What peer/copy has: a current skopeo's, where only an old one can be had.
    "peer-copy": (
        "--src-tls-verify=false",
        lambda image, layout: ["copy", f"docker://{image}", f"oci:{layout}:{TAG}"],
    ),
    "oras": (
        "--from-plain-http",
        lambda image, layout: ["copy", image, "--to-oci-layout", f"{layout}:{TAG}"],
    ),
}


@dataclass(frozen=True)
class Puller:
    """A program that copies images. `words` returns its command line for an image and a layout.

    `verb` is its word for it. `insecure` is its option for registries without TLS.
    """

    name: str
    verb: str
    words: Callable[[str, str], list[str]]
    insecure: str


def pullers(contenders: Sequence[Contender]) -> Iterator[Puller]:
    """Yield the contenders that can copy, and those others that are installed."""
    for contender in contenders:
        if isinstance(contender, Imgproxy):
            yield Puller(contender.name, "pull", _ours(contender.command), "--tls-verify=false")
        elif isinstance(contender, Skopeo):
            words = _skopeo(contender.command)
            yield Puller(contender.name, "copy", words, "--src-tls-verify=false")
    for name, (insecure, words) in OTHERS.items():
        path = shutil.which(name)
        if path is not None:
            yield Puller(name, words("", "")[0], _other(path, words), insecure)


def _ours(command: Sequence[str]) -> Callable[[str, str], list[str]]:
    options = ["--insecure-policy", "--quiet"]
    return lambda image, layout: [*command, "pull", *options, image, f"oci:{layout}:{TAG}"]


def _skopeo(command: Sequence[str]) -> Callable[[str, str], list[str]]:
    options = ["--insecure-policy", "copy", "--quiet"]
    return lambda image, layout: [*command, *options, image, f"oci:{layout}:{TAG}"]


def _other(path: str, words: Callable[[str, str], list[str]]) -> Callable[[str, str], list[str]]:
    return lambda image, layout: [path, *words(image.removeprefix("docker://"), layout)]


class Pulls:
    """The attempts of one puller with one image. `folder` is for its layouts.

    Each method takes `measure`, which runs a command line and returns what was measured.
    """

    def __init__(
        self,
        puller: Puller,
        image: str,
        folder: Path,
        measure: Callable[[Sequence[str]], Sample],
    ) -> None:
        self._puller = puller
        self._image = image
        self._folder = folder
        self._measure = measure

    def new(self) -> Sample:
        """Measure a pull into a layout that is made for it."""
        with _Removed(self._folder / "new") as layout:
            return self._pull(self._image, layout)

    def present(self) -> Sample:
        """Measure a pull of what is there already."""
        return self._pull(self._image, self._prepared("present", self._image))

    def shared(self) -> Sample:
        """Measure a pull beside an older image that has most of the layers."""
        older = self._prepared("older", self._image.replace(f":{TAG}", f":{OLDER}"))
        with _Removed(self._folder / "shared") as layout:
            shutil.copytree(older, layout)
            return self._pull(self._image, layout)

    def _prepared(self, name: str, image: str) -> Path:
        layout = self._folder / f"{name}-{self._puller.name.replace('/', '-')}"
        if not layout.exists():
            self._pull(image, layout)
        return layout

    def _pull(self, image: str, layout: Path) -> Sample:
        return self._measure([*self._puller.words(image, str(layout)), self._puller.insecure])


class _Removed:
    """A layout that is removed after the block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)

"""Warnings of registries: what is written, and how often."""

from __future__ import annotations

from contextlib import suppress

import pytest
from support.registries import MANIFEST, WHERE, network
from support.streams import Exchange, answer, asked, virtual_time

from imgproxy.errors import NotFoundError
from imgproxy.specs.oci.reference import Reference
from imgproxy.transports.registry.warnings import MAX_WARNINGS, texts


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ('299 - "It ends."', ["It ends."]),
        ('299 - ""', [""]),
        ('299  -\t"It ends."', ["It ends."]),
        ('299 registry.test:5000 "It ends."', ["It ends."]),
        ('299 - "It ends." "Sun, 06 Nov 1994 08:49:37 GMT"', ["It ends."]),
        ('299 - "a", 299 - "b"', ["a", "b"]),
        ('110 cache "stale", 299 - "b"', ["b"]),
        (r'299 - "a \"b\" \\ c"', [r'a "b" \ c']),
        ('299 - "a, 299 - b"', ["a, 299 - b"]),
        ('299 - "gr\xc3\xbcn"', ["grün"]),
        ('299 - "gr\xfcn"', ["gr\ufffdn"]),
        ('199 - "a"', []),
        ('1299 - "a"', []),
        ("299 - a", []),
        ('299 - "a', []),
        ('299 "a"', []),
        ("299", []),
        ("", []),
    ],
)
def test_the_texts_of_a_value(value: str, wanted: list[str]) -> None:
    assert list(texts(value)) == wanted


async def written(*exchanges: Exchange) -> list[str]:
    """Return what is written while the manifest is requested as often as there are exchanges."""
    async with network(*exchanges, anonymous=True) as (opened, script):
        image = opened.repository(Reference("registry.test", "acme/os", "1", None))
        while script.exchanges:
            with suppress(NotFoundError):
                await image.root()
        image.close()
        return opened._diagnostics.failures  # type: ignore[attr-defined]  (see ScriptedNetwork)


def warned(*texts: str, status: int = 200) -> bytes:
    value = ", ".join(f'299 - "{text}"' for text in texts)
    return answer(status, MANIFEST, warning=value)


@virtual_time
async def test_each_warning_is_written_once() -> None:
    exchanges = [asked(WHERE, warned("a", "b")), asked(WHERE, warned("b", "c", "c"))]
    assert await written(*exchanges) == [f"registry.test warns: {each}" for each in "abc"]


@virtual_time
async def test_refusals_and_redirects_of_the_registry_warn_as_well_but_no_other_server() -> None:
    """Where a redirect leads is none of the registry's words."""
    moving = answer(307, location="https://cdn.test/x", warning='299 - "moving"')
    exchanges = [
        asked(WHERE, warned("gone", status=404)),
        asked(WHERE, moving),
        asked("https://cdn.test/x", warned("elsewhere")),
    ]
    assert await written(*exchanges) == ["registry.test warns: gone", "registry.test warns: moving"]


@virtual_time
async def test_a_warning_is_one_line_of_some_length() -> None:
    (line,) = await written(asked(WHERE, warned("\xe2\x80\xae\x1b[31m" + "a" * 5000)))
    assert line.isprintable()
    assert len(line) < 300


@virtual_time
async def test_a_registry_cannot_fill_the_log() -> None:
    many = [f"w{number}" for number in range(MAX_WARNINGS + 50)]
    assert len(await written(asked(WHERE, warned(*many)))) == MAX_WARNINGS

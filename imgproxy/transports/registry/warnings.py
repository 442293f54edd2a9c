"""Warnings of registries: `Warning: 299 - "text"`, as in the distribution specification.

They are for a person, and decide nothing. The syntax is that of RFC 7234 section 5.5.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from imgproxy.errors import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgproxy.host.diagnostics import Diagnostics
    from imgproxy.net.response import Response

# Code, agent, and a text that may be followed by a date. Another code is a cache's.
_WARNING = re.compile(r'(?:^|,)[ \t]*299[ \t]+[^ \t",]+[ \t]+"((?:[^"\\]|\\.)*)"')
_QUOTED_PAIR = re.compile(r"\\(.)")

# A registry that has more to say would fill the log.
MAX_WARNINGS = 100


class Warnings:
    """The warnings that registries have sent, of which each is written once."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self._diagnostics = diagnostics
        self._written: set[str] = set()

    def report(self, response: Response) -> None:
        """Write the warnings that came with a response and have not been written yet."""
        host = response.url.authority
        for value in response.headers("warning"):
            for text in texts(value):
                line = f"{host} warns: {clean(text)}"
                if line not in self._written and len(self._written) < MAX_WARNINGS:
                    self._written.add(line)
                    self._diagnostics.failure(line)


def texts(value: str) -> Iterator[str]:
    """Yield the texts in the value of `Warning`; malformed parts have none."""
    text = value.encode("latin-1").decode(errors="replace")
    for match in _WARNING.finditer(text):
        yield _QUOTED_PAIR.sub(r"\1", match[1])

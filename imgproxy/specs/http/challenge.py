"""Authentication challenges: RFC 9110 section 11.6.1, as registries use them for tokens.

A field may hold several challenges, separated by the same commas that separate the parameters of
one challenge; what follows a word tells whether it is a scheme or a parameter's name. Some servers
separate parameters by semicolons, as other fields do.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SKIP = re.compile(r"[ \t,;]*")
_PARAMETER = re.compile(
    rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))[ \t]*(?=[,;]|$)', re.DOTALL
)
_SCHEME = re.compile(rf"({_WORD})(?:[ \t]+|(?=[,;])|$)")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=[,;]|$)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Challenge(NamedTuple):
    """One way to authenticate that a server offers; scheme and parameter names are lower-case."""

    scheme: str
    parameters: dict[str, str]


def parse(header: str) -> list[Challenge]:
    """Return the challenges of one `WWW-Authenticate` field.

    The list ends at the first malformed part; the challenges before it are kept.
    """
    challenges: list[Challenge] = []
    at = _skip(header, 0)
    while at < len(header):
        parameter = _PARAMETER.match(header, at) if challenges else None
        if parameter is not None:
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else _ESCAPE.sub(r"\1", quoted)
            challenges[-1].parameters.setdefault(name.lower(), value)
            at = _skip(header, parameter.end())
            continue
        scheme = _SCHEME.match(header, at)
        if scheme is None:
            break
        challenges.append(Challenge(scheme[1].lower(), {}))
        at = scheme.end()
        token68 = _TOKEN68.match(header, at)
        if token68 is not None and _PARAMETER.match(header, at) is None:
            at = token68.end()
        at = _skip(header, at)
    return challenges


def _skip(header: str, at: int) -> int:
    match = _SKIP.match(header, at)  # always matches, at least the empty string
    return match.end() if match else at

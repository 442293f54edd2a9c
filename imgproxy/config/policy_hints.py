"""Hints about keys of policy.json that match no image: what to write instead.

The containers libraries accept such keys without a word, and the file then looks stricter, or
laxer, than it is.
"""

from __future__ import annotations

import re

from imgproxy.errors import BadRequestError, clean
from imgproxy.specs.oci import reference as references
from imgproxy.specs.oci import registry_name

_BEFORE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|docker:")
_AFTER = re.compile(r"(?:/+\**)+$|^\*$")
_SUFFIX = re.compile(r"(?::[^/@]*)?(?:@.*)?$")

_EXPECTED = "expected host[:port], host[:port]/path, that with :tag or @digest, or *.domain"


def for_transport(name: str) -> str:
    """Return a hint about the name of a transport, empty where there is one of that name."""
    if name in references.TRANSPORTS:
        return ""
    meant = name.strip().rstrip(":/").lower()
    if meant in ("registry", "http", "https"):
        meant = "docker"
    if meant in references.TRANSPORTS:
        return f'there is no such transport; write "{meant}"'
    return f"there is no such transport; expected one of {', '.join(sorted(references.TRANSPORTS))}"


def for_scope(scope: str) -> str:
    """Return a hint about a scope of the transport docker, empty where it can match an image."""
    if not scope or _can_match(scope):
        return ""
    meant = _meant(scope)
    return f"matches no image; {_EXPECTED}" if meant is None else _instead(meant)


def _instead(scope: str) -> str:
    return f'matches no image; write "{clean(scope)}"'


def _can_match(scope: str) -> bool:
    if scope.startswith("*."):
        return registry_name.is_registry(scope[2:]) and not registry_name.split(scope[2:])[1]
    return any(
        named is not None
        and str(named) == registry_name.normal(text)
        and not (named.tag and named.digest)  # an image with both has the digest in its scope
        for text in (scope, f"{scope}/x/x")
        for named in [_named(text)]
    )


def _meant(scope: str) -> str | None:
    """Return the scope that was probably meant, None where that cannot be told."""
    text = _AFTER.sub("", _BEFORE.sub("", scope.strip(), count=1))
    if not text:
        return ""
    name = _SUFFIX.sub("", text)
    host, slash, path = name.lower().partition("/")
    text = host.rstrip(".") + slash + path + text[len(name) :]
    if _can_match(text):
        return text
    named = _named(text)
    return named and str(named._replace(tag=None if named.digest else named.tag))


def _named(text: str) -> references.Reference | None:
    try:
        return references.parse_named(text)
    except BadRequestError:
        return None

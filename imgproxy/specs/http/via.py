"""The field `Via` of requests that `imgproxy registry` makes of mirrors: RFC 9110 section 7.6.3."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = "imgproxy-registry"

VALUE = f"1.1 {_NAME}"


def names_registry(values: Iterable[str]) -> bool:
    """Return whether a request with these values of `Via` came by way of such a registry."""
    entries = [entry.split() for value in values for entry in value.split(",")]
    return any(entry[1:2] == [_NAME] for entry in entries)

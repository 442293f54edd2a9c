"""The values of options, from their texts. A wrong one raises `ArgumentTypeError`.

What a value needs is imported when there is one: most runs have few options.
"""

from __future__ import annotations

import argparse

from imgproxy.errors import UsageError

TYPE_CHECKING = False  # see `options`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from imgproxy.config.sideload_pattern import Pattern
    from imgproxy.specs.http.credentials import Credentials
    from imgproxy.specs.oci.layer_names import Template
    from imgproxy.specs.oci.layer_selection import LayerSpec
    from imgproxy.specs.oci.manifest_selection import Annotation
    from imgproxy.specs.oci.platform import Platform
    from imgproxy.unpacking.ownership import Ownership

    T = TypeVar("T")


def _parsed(parse: Callable[[str], T], text: str) -> T:
    """Return what `parse` makes of a value; the complaint about a wrong one shows it."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'"{text}": {error}') from None


def descriptor(text: str) -> int:
    """Return the number of a descriptor."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f'"{text}" is not the number of a descriptor')
    return int(text)


def platform(text: str) -> Platform:
    """Return the platform that `OS/ARCH[/VARIANT]` names."""
    from imgproxy.specs.oci import platform as platforms

    return _parsed(platforms.parse, text)


def artifact_type(text: str) -> str:
    """Return a media type, or the word for images."""
    from imgproxy.specs.oci import manifest_selection

    return _parsed(manifest_selection.parse_artifact_type, text)


def annotation(text: str) -> Annotation:
    """Return the key and the value, if any, that an annotation must have."""
    from imgproxy.specs.oci import manifest_selection

    return _parsed(manifest_selection.parse_annotation, text)


def layer(text: str) -> LayerSpec:
    """Return the conditions that a layer must fulfil."""
    from imgproxy.specs.oci import layer_selection

    return _parsed(layer_selection.parse, text)


def template(text: str) -> Template:
    """Return the template for the names of layers."""
    from imgproxy.specs.oci import layer_names

    return _parsed(layer_names.parse, text)


def new_directory(text: str) -> str:
    """Return the name of a directory to make, which is not that of an image, or `-`."""
    from imgproxy.specs.oci import reference

    if text == "-":
        raise argparse.ArgumentTypeError(
            "- is standard output, which copy alone writes to; ./- is a directory"
        )
    word, colon, rest = text.partition(":")
    if colon and (word in reference.TRANSPORTS or rest.startswith("//")):
        raise argparse.ArgumentTypeError(
            f'"{text}" names an image, and this is for a directory: pull copies images into'
            f" layouts; ./{text} is a directory"
        )
    return directory(text)


def new_directory_or_output(text: str) -> str:
    """Return the name of a directory to make, or `-` for standard output."""
    return text if text == "-" else new_directory(text)


def ownership(text: str) -> Ownership:
    """Return whom unpacked files are to belong to."""
    from imgproxy.unpacking import ownership as owners

    return _parsed(owners.parse, text)


def pattern(text: str) -> Pattern:
    """Return the pattern of paths."""
    from imgproxy.config import sideload_pattern

    return _parsed(sideload_pattern.parse, text)


def host(text: str) -> str:
    """Return the name or address of a host."""
    from imgproxy.server import access

    return _parsed(access.parse_host, text)


def boolean(text: str) -> bool:
    """Return what `true` or `false` says."""
    known = {"true": True, "false": False, "1": True, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f'"{text}" is neither true nor false')
    return known[text.lower()]


def count(text: str) -> int:
    """Return a number of retries."""
    return _number(text, "a number of retries")


def number(text: str) -> int:
    """Return a number of files or directories."""
    return _number(text, "a number")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f'"{text}" is not {what}')
    return int(text[:9])  # more than anybody has or could wait for


def creds(text: str) -> Credentials:
    """Return the credentials that `USER:PASSWORD` names. Raises `UsageError`."""
    from imgproxy.config.credential_helpers import parse_creds

    return parse_creds(text)


def token(text: str) -> str:
    """Return the token, if it can be one. Raises `UsageError`, which does not show it."""
    from imgproxy.specs.oci import token as tokens

    if not tokens.is_usable(text):  # argparse would show the value of an ArgumentTypeError's cause
        raise UsageError("--registry-token: the value cannot be a bearer token")
    return text


def seconds(text: str) -> float:
    """Return a number of seconds, not 0."""
    number = seconds_or_none(text)
    if not number:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of seconds')
    return number


def seconds_or_none(text: str) -> float:
    """Return a number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of seconds')
    return number


def directory(text: str) -> str:
    """Return the name of a directory."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a directory is empty")
    return text


def size(text: str) -> int:
    """Return the bytes that a size with a unit stands for."""
    from imgproxy.parsing import quantities

    try:
        return quantities.size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def duration(text: str) -> float:
    """Return the seconds that a number with a unit stands for."""
    from imgproxy.parsing import quantities

    try:
        return quantities.duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

"""What root file systems the layers of `attacks` make, and more layers that attack `unpack`.

A tree has `DEVICE` for a device, which only root can make.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from support import tars
from support.attacked import DEVICE
from support.attacks import (
    DIRECTORY,
    Link,
    Tree,
    attacks,
    device,
    directory,
    fifo,
    file,
    layer,
    link,
    symlink,
)


class Unpacking(NamedTuple):
    """The layers of an image, and what `unpack` makes of them; None where it refuses them."""

    layers: tuple[bytes, ...]
    tree: Tree | None


def unpackings(outside: bytes) -> dict[str, Unpacking]:
    """Return all cases, for a directory outside of the tree: see `attacks`."""
    cases = {
        name: Unpacking(attack.layers, attack.extracted)
        for name, attack in attacks(outside).items()
    }
    for name, tree in _otherwise(outside).items():
        cases[name] = Unpacking(cases[name].layers, tree)
    return {**cases, **_more(outside)}


def _inside(outside: bytes, name: bytes, more: Tree) -> Tree:
    """Return a tree that has a new file where the attack wanted one outside."""
    path = outside[1:] + b"/" + name
    parts = path.split(b"/")
    above = {b"/".join(parts[:n]): DIRECTORY for n in range(1, len(parts))}
    return {**above, path: b"new", **more}


def _otherwise(outside: bytes) -> dict[str, Tree | None]:
    """Return the trees of layers that `extract` refuses, or takes literally."""
    victim = outside + b"/victim"
    up = b"../" * 24 + outside[1:]
    return {
        "symlink-absolute": _inside(outside, b"victim", {b"l": Link(outside)}),
        "symlink-absolute-alone": {b"l": Link(outside)},
        "symlink-relative": _inside(outside, b"victim", {b"l": Link(up)}),
        "symlink-of-lower-layer": _inside(outside, b"victim", {b"l": Link(outside)}),
        "symlink-behind-nothing": {
            b"l": Link(b"nothing"),
            b"nothing": DIRECTORY,
            b"nothing/x": b"new",
        },
        "symlink-then-file": {b"f": b"new"},
        "symlink-then-file-above": {b"f": b"new"},
        "symlink-then-directory": {b"l": DIRECTORY},
        "symlink-in-place-of-directory": {b"d": Link(outside)},
        "symlink-through-links": {
            b"a": DIRECTORY,
            b"a/b": DIRECTORY,
            b"a/up": Link(b".."),
            b"l": Link(b"a/up/.."),
        },
        "symlink-through-later-links": {
            b"a": DIRECTORY,
            b"a/b": DIRECTORY,
            b"a/up": Link(b".."),
            b"l": Link(b"a/up/.."),
        },
        "hardlink-absolute": {b"h": b"new"},
        "hardlink-to-symlink-outside": {b"h": b"new", b"s": Link(victim)},
        "hardlink-moves-a-symlink": {b"d": DIRECTORY, b"d/s": Link(b".."), b"h": Link(b"..")},
        "file-as-parent": {b"a": DIRECTORY, b"a/b": b"new"},
        "special-fifo": {b"p": b"new"},
        "special-device": {b"p": b"new"},
        "special-device-numbers": {b"n": DEVICE},
        "special-block-device": {b"b": DEVICE},
        "whiteout-through-symlink": {b"l": Link(outside)},
        "opaque-through-symlink": {b"l": Link(outside)},
        "whiteout-of-symlink": {},
        "whiteout-is-ordinary": {b"d": DIRECTORY},
        **{f"root-whiteout-{n}": None for n in range(5)},
    }


def _more(outside: bytes) -> dict[str, Unpacking]:
    base = layer(directory(b"d/"), file(b"d/a", b"old"), file(b"d/s/o", b"old"), file(b"x", b"old"))
    opaque = file(b"d/.wh..wh..opq", b"")
    minus_one = {108: tars.base_256(2**32 - 1, 8), 100: tars.octal(0o6755, 7)}
    large = {329: tars.base_256(2**32 + 1, 8), 337: tars.base_256(2**32 + 3, 8)}
    much = b"".join(file(b"d/%d" % n, b"") + opaque for n in range(2000))
    labels = tars.extended(
        tars.record(b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        tars.record(b"SCHILY.xattr.security.selinux", b"u:r:t:s0\0"),
        tars.record(b"SCHILY.xattr.user.rootlesscontainers", b"\x08\x05"),
    )
    d: Tree = {b"d": DIRECTORY, b"x": b"old"}
    return {
        "name-in-the-mark-through-a-link": Unpacking(
            (layer(symlink(b"l", b"."), file(b"l/.imgproxy-incomplete/x")),), None
        ),
        "hardlink-to-the-mark": Unpacking((layer(link(b"h", b".imgproxy-incomplete")),), None),
        "whiteout-of-the-mark": Unpacking(
            (base, layer(file(b".wh..wh..opq", b""), file(b".wh..imgproxy-incomplete", b""))), {}
        ),
        "hardlink-to-lower-layer": Unpacking(
            (layer(file(b"a", b"old")), layer(link(b"h", b"a"))), {b"a": b"old", b"h": b"old"}
        ),
        "hardlink-broken-by-upper": Unpacking(
            (layer(file(b"a", b"old"), link(b"h", b"a")), layer(file(b"h"))),
            {b"a": b"old", b"h": b"new"},
        ),
        "hardlink-outside-behind-lower-link": Unpacking(
            (layer(symlink(b"l", outside)), layer(link(b"h", b"l/secret"))), None
        ),
        "whiteout-order": Unpacking(
            (base, layer(file(b"d/a"), file(b"d/.wh.a", b""), file(b".wh.x", b""))),
            {b"d": DIRECTORY, b"d/a": b"new", b"d/s": DIRECTORY, b"d/s/o": b"old"},
        ),
        "opaque-order": Unpacking(
            (base, layer(file(b"d/s/n"), opaque)), {**d, b"d/s": DIRECTORY, b"d/s/n": b"new"}
        ),
        "whiteout-and-again": Unpacking(
            (base, layer(file(b".wh.d", b"")), layer(file(b"d/new"))), {**d, b"d/new": b"new"}
        ),
        "whiteout-kinds": Unpacking(
            (base, layer(fifo(b"d/.wh.a"), directory(b"d/.wh.s"), symlink(b".wh.x", outside))),
            {b"d": DIRECTORY},
        ),
        "whiteout-aufs": Unpacking(
            (layer(directory(b".wh..wh.plnk/"), file(b".wh..wh.plnk/1"), file(b"a")),),
            {b"a": b"new"},
        ),
        "whiteout-links-to-aufs": Unpacking(
            (layer(file(b".wh..wh.plnk/1"), link(b"a", b".wh..wh.plnk/1")),), None
        ),
        "whiteout-below": Unpacking((layer(file(b".wh.d/x")),), None),
        "much-opaque": Unpacking(
            (base, layer(much)), {**d, **{b"d/%d" % n: b"" for n in range(2000)}}
        ),
        "special-owner-minus-one": Unpacking((layer(file(b"s", more=minus_one)),), None),
        "special-device-large-numbers": Unpacking(
            (layer(tars.header(b"n", b"3", more=large)),), None
        ),
        "special-labels": Unpacking((layer(labels + file(b"a")),), {b"a": b"new"}),
        "special-device-then-directory": Unpacking(
            (layer(device(b"p")), layer(file(b"p/x"))), {b"p": DIRECTORY, b"p/x": b"new"}
        ),
    }


def forbidden_xattrs(path: bytes) -> set[str]:
    """Return the extended attributes of a file that no layer may give it."""
    names = os.listxattr(path, follow_symlinks=False)
    return {name for name in names if name.startswith(("trusted.", "user."))}

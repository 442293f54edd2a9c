"""Layers that attack whoever unpacks them, and layers that look as if they did.

Each case is a list of archives, and the tree that is right, for two ways to unpack: `extract`,
which merges what artifacts hold, and root file systems. The cases have the names that they have in
other projects' advisories; those of parsers are in `tars` and its tests.
"""

from __future__ import annotations

from typing import NamedTuple

from support import tars

# What a tree is: paths, and what is there.
Tree = dict[bytes, "bytes | Link | None"]

TOP = b"../" * 24


class Link(NamedTuple):
    """A symbolic link."""

    target: bytes


# A directory, in a tree.
DIRECTORY = None


class Attack(NamedTuple):
    """Archives, and the tree that `extract` makes of them; None where it refuses all of them."""

    layers: tuple[bytes, ...]
    extracted: Tree | None


def file(name: bytes, content: bytes = b"new", mode: int = 0o644, **fields: object) -> bytes:
    return tars.member(content, name=name, **{"more": _mode(mode), **fields})


def directory(name: bytes, mode: int = 0o755) -> bytes:
    return tars.header(name, b"5", more=_mode(mode))


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return _long(name, target) + tars.header(name[:100], b"2", target=target[:100], **fields)  # type: ignore[arg-type]


def link(name: bytes, target: bytes, mode: int = 0o644) -> bytes:
    return _long(name, target) + tars.header(
        name[:100], b"1", target=target[:100], more=_mode(mode)
    )


def device(name: bytes, kind: bytes = b"3", major: int = 1, minor: int = 3) -> bytes:
    numbers = {329: tars.octal(major, 7), 337: tars.octal(minor, 7)}
    return tars.header(name, kind, more={**_mode(0o666), **numbers})


def fifo(name: bytes) -> bytes:
    return tars.header(name, b"6", more=_mode(0o644))


def _mode(mode: int) -> dict[int, bytes]:
    return {100: tars.octal(mode, 7)}


def _long(name: bytes, target: bytes = b"") -> bytes:
    """Return GNU's headers for names that have no room in a header."""
    long_name = tars.long_name(name) if len(name) > 100 else b""
    return long_name + (tars.long_name(target, b"K") if len(target) > 100 else b"")


def long_file(name: bytes, content: bytes = b"new") -> bytes:
    return _long(name) + file(name[:100], content)


def layer(*members: bytes) -> bytes:
    return b"".join(members) + tars.END


def attacks(outside: bytes) -> dict[str, Attack]:
    """Return all cases, for a directory outside of the tree: an absolute path.

    It has a file `victim`, a file `secret`, and a directory `dir`.
    """
    up = TOP + outside[1:]
    within = outside[1:]
    return {
        **_names(outside, up, within),
        **_top(outside),
        **_symlinks(outside, up),
        **_hard_links(outside, up),
        **_kinds(),
        **_whiteouts(outside),
        **_parsers(up),
    }


def _one(extracted: Tree | None, *members: bytes) -> Attack:
    return Attack((layer(*members),), extracted)


def _parents(path: bytes) -> Tree:
    parts = path.split(b"/")
    return {b"/".join(parts[:n]): DIRECTORY for n in range(1, len(parts))}


def _below(path: bytes, content: bytes | None) -> Tree:
    return {**_parents(path), path: content}


_ODD = (b"..\\x", b"C:\\x", b"a\nb", b"*", b"~", b"...", b"-rf", b" ")


def _names(outside: bytes, up: bytes, within: bytes) -> dict[str, Attack]:
    deep = b"d/" * 2100
    return {
        "name-dotdot": _one(None, file(b"a"), long_file(up + b"/victim")),
        "name-dotdot-inside": _one(None, directory(b"a/b/"), long_file(b"a/b/../../" + up + b"/x")),
        "name-dotdot-harmless": _one(None, directory(b"a/"), file(b"a/../b")),
        "name-absolute": _one(_below(within + b"/victim", b"new"), long_file(outside + b"/victim")),
        "name-absolute-twice": _one(
            _below(within + b"/dir/new", b"new"), long_file(b"/" + outside + b"/dir/new")
        ),
        "name-dotdot-directory": _one(None, tars.long_name(up) + directory(b"x", 0o777)),
        "name-gnu-long": _one(None, tars.long_name(up + b"/victim") + file(b"harmless")),
        "name-pax": _one(None, tars.pax(path=up + b"/victim") + file(b"harmless")),
        "name-pax-global": _one(
            None,
            tars.extended(tars.record(b"path", up + b"/victim"), kind=b"g"),
            file(b"harmless"),
        ),
        "name-nul": _one(None, tars.pax(path=up + b"/victim\0/harmless") + file(b"harmless")),
        "name-empty": _one(None, symlink(b"", b"nothing"), file(b"/victim")),
        "name-component-too-long": _one(None, long_file(b"x" * 300)),
        "name-deep": _one(None, long_file(deep + b"f")),
        "name-odd": _one(dict.fromkeys(_ODD, b"new"), *map(file, _ODD)),
        "name-bytes": _one({b"\xff\xfe": b"new"}, file(b"\xff\xfe")),
        "name-of-the-mark": _one(None, file(b".imgproxy-incomplete")),
        "name-in-the-mark": _one(None, file(b"./.imgproxy-incomplete/x")),
    }


def _top(outside: bytes) -> dict[str, Attack]:
    cases = {
        f"root-symlink-{name.decode().replace('/', 's').replace('.', 'd')}": Attack(
            (layer(symlink(name, outside)), layer(file(b"victim"))), None
        )
        for name in (b".", b"/", b"./", b"a/..", b"./.")
    }
    return {
        **cases,
        "root-directory": _one({b"a": b"new"}, directory(b"./", 0o700), file(b"./a")),
        "root-file": _one(None, file(b".")),
        "root-hard-link": _one(None, file(b"a"), link(b"./", b"a")),
        "root-fifo": _one(None, fifo(b".")),
    }


def _symlinks(outside: bytes, up: bytes) -> dict[str, Attack]:
    victim = outside + b"/victim"
    steps = [b"%c" % letter for letter in b"abcdefghijklmnop"]
    component = b"d" * 247
    beyond, path = b"", b""
    for step in steps:
        beyond += _long(path + component) + directory((path + component)[:100])
        beyond += symlink(path + step, component)
        path += component + b"/"
    far = b"/".join(steps) + b"/" + b"l" * 254
    return {
        "symlink-absolute": _one(None, symlink(b"l", outside), file(b"l/victim")),
        "symlink-absolute-alone": _one(None, symlink(b"l", outside)),
        "symlink-relative": _one(None, symlink(b"l", up), file(b"l/victim")),
        "symlink-of-lower-layer": Attack(
            (layer(symlink(b"l", outside)), layer(file(b"l/victim"))), None
        ),
        "symlink-inside": _one(
            {b"d": DIRECTORY, b"d/f": b"new", b"l": Link(b"d"), b"d/m": Link(b"../d/f")},
            directory(b"d/"),
            symlink(b"l", b"d"),
            file(b"l/f"),
            symlink(b"d/m", b"../d/f"),
        ),
        "symlink-to-nothing": _one({b"l": Link(b"nothing")}, symlink(b"l", b"nothing")),
        "symlink-behind-nothing": _one(None, symlink(b"l", b"nothing"), file(b"l/x")),
        "symlink-then-file": _one(None, symlink(b"f", victim), file(b"f")),
        "symlink-then-file-above": Attack((layer(symlink(b"f", victim)), layer(file(b"f"))), None),
        "symlink-inside-then-file": _one(
            {b"a": b"old", b"f": b"new"}, file(b"a", b"old"), symlink(b"f", b"a"), file(b"f")
        ),
        "symlink-then-directory": Attack(
            (layer(symlink(b"l", outside)), layer(directory(b"l/", 0o777))), None
        ),
        "symlink-inside-then-directory": _one(
            {b"d": DIRECTORY, b"l": DIRECTORY, b"l/f": b"new"},
            directory(b"d/", 0o700),
            symlink(b"l", b"d"),
            directory(b"l/", 0o777),
            file(b"l/f"),
        ),
        "symlink-in-place-of-directory": _one(
            None, directory(b"d/", 0o777), symlink(b"d", outside)
        ),
        "symlink-inside-in-place-of-directory": _one(
            {b"e": DIRECTORY, b"d": Link(b"e")},
            directory(b"e/", 0o700),
            directory(b"d/", 0o777),
            symlink(b"d", b"e"),
        ),
        "symlink-loop-in-place-of-directory": _one(
            {b"d": Link(b"d")}, directory(b"d/e/", 0o777), symlink(b"d", b"d")
        ),
        "symlink-metadata": _one(
            {b"a": b"old", b"l": Link(b"a")},
            file(b"a", b"old", 0o600),
            symlink(b"l", b"a", more={**_mode(0o777), 136: tars.octal(1, 11)}),
        ),
        "symlink-through-links": _one(
            None, directory(b"a/b/"), symlink(b"a/up", b".."), symlink(b"l", b"a/up/..")
        ),
        "symlink-through-later-links": _one(
            None, symlink(b"l", b"a/up/.."), directory(b"a/b/"), symlink(b"a/up", b"..")
        ),
        "symlink-beyond-path-max": _one(
            None,
            beyond,
            symlink(far, b"../" * len(steps)),
            symlink(b"e", far + b"/.." + outside),
            file(b"e/victim"),
        ),
        "symlink-and-dotdot": _one(
            None, directory(b"a/b/c/d/"), symlink(b"l", b"a/b/c/d"), file(b"l/../../../../x")
        ),
        "symlink-loop": _one(
            None, symlink(b"a", b"b"), symlink(b"b", b"a"), symlink(b"c", b"c/c"), file(b"a/x")
        ),
        "symlink-empty": _one(None, symlink(b"l", b"")),
    }


def _hard_links(outside: bytes, up: bytes) -> dict[str, Attack]:
    victim = outside + b"/victim"
    return {
        "hardlink-absolute": _one(None, link(b"h", victim), file(b"h")),
        "hardlink-dotdot": _one(None, link(b"h", up + b"/secret")),
        "hardlink-behind-symlink": _one(None, symlink(b"l", outside), link(b"h", b"l/secret")),
        "hardlink-working-directory": _one(None, link(b"h", b"victim")),
        "hardlink-to-symlink": _one(
            {b"a": b"old", b"s": Link(b"a"), b"h": b"new"},
            file(b"a", b"old"),
            symlink(b"s", b"a"),
            link(b"h", b"s", 0o777),
            file(b"h"),
        ),
        "hardlink-to-symlink-outside": _one(
            None, symlink(b"s", victim), link(b"h", b"s", 0o777), file(b"h")
        ),
        "hardlink-moves-a-symlink": _one(
            None, directory(b"d/"), symlink(b"d/s", b".."), link(b"h", b"d/s")
        ),
        "hardlink-then-file": _one(
            {b"a": b"old", b"h": b"new"}, file(b"a", b"old"), link(b"h", b"a"), file(b"h")
        ),
        "hardlink-kept": _one({b"a": b"old", b"h": b"old"}, file(b"a", b"old"), link(b"h", b"a")),
        "hardlink-forward": _one(
            {b"a": b"old", b"h": b"old"}, link(b"h", b"a"), file(b"a", b"old")
        ),
        "hardlink-to-nothing": _one(None, link(b"h", b"nothing")),
        "hardlink-to-itself": _one({b"a": b"old"}, file(b"a", b"old"), link(b"a", b"./a")),
        "hardlink-to-directory": _one(None, directory(b"d/"), link(b"h", b"d")),
        "hardlink-to-top": _one(None, link(b"h", b".")),
        "hardlink-empty": _one(None, link(b"h", b"")),
    }


def _kinds() -> dict[str, Attack]:
    return {
        "kinds-change": _one(
            {b"a": b"new"}, file(b"a"), directory(b"a/"), symlink(b"a", b"b"), file(b"a")
        ),
        "kinds-change-with-content": _one(
            {b"a": b"new"}, directory(b"a/b/c/"), file(b"a/b/f"), file(b"a")
        ),
        "file-as-parent": _one(None, file(b"a"), file(b"a/b")),
        "same-name-twice": _one({b"a": b"new"}, file(b"a", b"old"), file(b"./a")),
        "implied-parents": _one(
            {b"a": DIRECTORY, b"a/b": DIRECTORY, b"a/b/c": b"new"}, file(b"a/b/c")
        ),
        "closed-directories": _one(
            {b"a": DIRECTORY, b"a/b": DIRECTORY, b"a/b/c": b"new"},
            directory(b"a/", 0),
            directory(b"a/b/", 0o111),
            file(b"a/b/c", mode=0),
        ),
        "special-fifo": _one(None, fifo(b"p"), file(b"p")),
        "special-device": _one(None, device(b"p"), file(b"p")),
        "special-device-numbers": _one(None, device(b"n", major=2, minor=3)),
        "special-block-device": _one(None, device(b"b", b"4", 8, 0)),
        "special-setuid": _one({b"s": b"new"}, file(b"s", mode=0o6755)),
        "special-sticky": _one({b"d": DIRECTORY}, directory(b"d/", 0o7777)),
    }


def _whiteouts(outside: bytes) -> dict[str, Attack]:
    """Return cases whose names mean that something is removed, where they mean anything."""
    return {
        **{
            f"root-whiteout-{n}": _one(_below(name, b""), file(name, b""))
            for n, name in enumerate((b".wh...", b".wh..", b"d/.wh...", b"d/.wh.", b".wh."))
        },
        "whiteout-through-symlink": Attack(
            (layer(symlink(b"l", outside)), layer(file(b"l/.wh.victim", b""))), None
        ),
        "opaque-through-symlink": Attack(
            (layer(symlink(b"l", outside)), layer(file(b"l/.wh..wh..opq", b""))), None
        ),
        "whiteout-of-symlink": Attack((layer(symlink(b"l", outside)), layer(file(b".wh.l"))), None),
        "whiteout-is-ordinary": Attack(
            (layer(file(b"d/a")), layer(file(b"d/.wh.a", b""), file(b"d/.wh..wh..opq", b""))),
            {
                b"d": DIRECTORY,
                b"d/a": b"new",
                b"d/.wh.a": b"",
                b"d/.wh..wh..opq": b"",
            },
        ),
        "whiteout-of-overlay": _one(None, device(b"x", major=0, minor=0)),
    }


def _parsers(up: bytes) -> dict[str, Attack]:
    good = file(b"a")
    return {
        "parser-pax-size": _one(
            {b"a": b"x" * 512 + file(b"b")[:512]},
            tars.pax(size="1024"),
            tars.header(b"a", size=0),
            b"x" * 512,
            file(b"b")[:512],
        ),
        "parser-size-of-link": Attack(
            (layer(symlink(b"l", b"a", size=512), file(b"a")),), {b"l": Link(b"a"), b"a": b"new"}
        ),
        "parser-second-archive": Attack((layer(good) + layer(file(b"b")),), {b"a": b"new"}),
        "parser-second-archive-outside": Attack(
            (layer(good) + layer(long_file(up + b"/victim")),), {b"a": b"new"}
        ),
        "parser-checksum": Attack((layer(good, tars.summed(file(b"b")[:512], by=1)),), None),
        "parser-truncated": Attack((layer(good, file(b"b", b"x" * 5000))[:2048],), None),
        "parser-unknown-kind": _one(None, file(b"z", kind=b"Z")),
        "parser-negative-size": _one(
            None, tars.header(b"a", size=b"\xff" * 11 + b"\x00"), file(b"b")
        ),
        "parser-huge-size": _one(None, tars.header(b"a", size=tars.base_256(1 << 62)), file(b"b")),
        "much-sparse": _one(
            None,
            tars.header(
                b"a",
                b"S",
                magic=tars.GNU,
                more={483: tars.base_256(1 << 60), 386: tars.octal(0, 11), 398: tars.octal(0, 11)},
            ),
        ),
    }

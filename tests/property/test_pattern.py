"""Sideload patterns: no image's name leads to a path outside of the pattern."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import attempt

from imgproxy.config import sideload_pattern
from imgproxy.config.sideload_pattern import Pattern
from imgproxy.errors import BadRequestError
from imgproxy.specs.oci.reference import Reference, parse_reference

TEXTS = ["a", "-", ".", "/", "..", "%2f", "~", ":", "@", "ä", " ", "*", "\\", "\n"]
WORDS = ["<ref>", "<name>", "<basename>", "<registry>"]


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    repository = draw(st.sampled_from(["<name>", "<basename>"]))
    pieces = draw(
        st.lists(st.sampled_from([*TEXTS, "<ref>", "<registry>", repository]), max_size=8)
    )
    for wanted in ("<ref>", repository):
        pieces.insert(draw(st.integers(0, len(pieces))), wanted)
    return sideload_pattern.parse("/" + "".join(pieces))


COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
REFERENCES = st.builds(
    lambda host, path, ref: parse_reference(f"{host}/{path}{ref}"),
    st.sampled_from(["localhost", "a.b", "[::1]:5000", "docker.io", "x-y.z:1", "127.0.0.1"]),
    st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join),
    st.from_regex(r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?(@sha256:[0-9a-f]{64})?", fullmatch=True)
    | st.from_regex(r"@[a-z0-9]{1,3}([+._-][a-z0-9]{1,3})?:[a-zA-Z0-9=_-]{1,9}", fullmatch=True),
)

# Malformed names, and those that might lead to another path.
PIECES = [
    *("a", "a.b", "..", ".", "/", "//", ":", "@", "-", "_", "__", "%2e%2e", "%00", "\0", "\n", "~"),
    *("localhost", "localhost:5000/", "[::1]/", "quay.io/", "v1", ".v1", "v1..", "..v1", "\\"),
    *("sha256:" + "0" * 64, "sha512:" + "0" * 128, "x:..", "md5:../x", "\u2025", "\uff0e", "A"),
]
NONSENSE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join) | st.text()


def parts_of(parsed: Pattern) -> list[str]:
    """Return the parts of the path if only words are inserted."""
    return "".join(
        ("word/word" if piece == "name" else "word") if n % 2 else piece
        for n, piece in enumerate(parsed.pieces)
    ).split("/")


def assert_inside(parsed: Pattern, reference: Reference) -> None:
    """Assert that the inserted values become parts of the path, and none with a special meaning."""
    for path in parsed.paths(reference):
        assert path.startswith("/")
        assert "\0" not in path
        parts = path.split("/")
        for special in ("", ".", ".."):
            assert parts.count(special) == parts_of(parsed).count(special)
        names = parsed.pieces[1::2].count("name") * reference.repository.count("/")
        assert len(parts) == "".join(parsed.pieces[::2]).count("/") + names + 1


@given(patterns(), REFERENCES)
def test_no_name_leads_out_of_a_pattern(parsed: Pattern, reference: Reference) -> None:
    assert_inside(parsed, reference)


@given(patterns(), NONSENSE)
def test_nor_does_anything_that_the_grammar_lets_pass(parsed: Pattern, image: str) -> None:
    reference = attempt(parse_reference, image, expected=BadRequestError)
    if isinstance(reference, Reference):
        assert_inside(parsed, reference)


@given(patterns(), REFERENCES)
def test_two_images_of_a_repository_never_share_a_path(
    parsed: Pattern, reference: Reference
) -> None:
    paths = {parsed.path(reference, ref) for ref in ("v1", "v2", "v1-v1", "sha256:" + "1" * 64)}
    assert len(paths) == 4


ANYTHING = st.lists(st.sampled_from([*TEXTS, *WORDS, "<x>", "<", ">", "\0"]), max_size=8)


@given(ANYTHING.map("".join) | ANYTHING.map("".join).map("/{}".format) | st.text())
def test_text_is_a_pattern_or_a_complaint_with_a_column(text: str) -> None:
    parsed = attempt(sideload_pattern.parse, text, expected=ValueError)
    if isinstance(parsed, Pattern):
        assert str(parsed) == text
        assert sideload_pattern.parse(str(parsed)) == parsed
    else:
        words = str(parsed).split(" ")
        assert words[0] == "column"
        assert 1 <= int(words[1].rstrip(":")) <= len(text) + 1
        assert str(parsed).isprintable()

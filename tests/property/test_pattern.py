"""Sideload patterns: no image's name leads a path anywhere but where the pattern says."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import attempt

from imgproxy.errors import BadRequestError
from imgproxy.spec import pattern
from imgproxy.spec.pattern import Pattern
from imgproxy.spec.reference import parse_reference

TEXTS = ["a", "-", ".", "/", "..", "%2f", "~", ":", "@", "ä", " ", "*", "\\", "<", ">", "\n"]
WORDS = ["<ref>", "<name>", "<basename>", "<registry>"]
PATTERNS = (
    st.lists(st.sampled_from([*TEXTS, *WORDS]), max_size=10)
    .map("".join)
    .map("/{}".format)
    .map(lambda text: attempt(pattern.parse, text, expected=ValueError))
    .filter(lambda parsed: isinstance(parsed, Pattern))
)

# What is no name and what is one, and what comes close to leading somewhere else.
PIECES = [
    *("a", "a.b", "..", ".", "/", "//", ":", "@", "-", "_", "__", "%2e%2e", "%00", "\0", "\n", "~"),
    *("localhost", "localhost:5000/", "[::1]/", "quay.io/", "v1", ".v1", "v1..", "..v1", "\\"),
    *("sha256:" + "0" * 64, "sha512:" + "0" * 128, "x:..", "md5:../x", "\u2025", "\uff0e", "A"),
]
IMAGES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join) | st.text()


@given(PATTERNS, IMAGES)
def test_no_name_leads_out_of_a_pattern(parsed: Pattern, image: str) -> None:
    reference = attempt(parse_reference, image, expected=BadRequestError)
    assume(not isinstance(reference, BadRequestError))
    written = {piece for text in parsed.pieces[::2] for piece in text.split("/")}
    for path in parsed.paths(reference):
        assert path.startswith("/")
        assert not any(char in path for char in "\0")
        parts = path.split("/")
        assert parts.count("..") <= sum(part == ".." for part in written_parts(parsed))
        assert ("." in parts) <= ("." in written)
        names = parsed.pieces[1::2].count("name") * reference.repository.count("/")
        assert path.count("/") == "".join(parsed.pieces[::2]).count("/") + names


def written_parts(parsed: Pattern) -> list[str]:
    """Give the parts of paths that a pattern has whatever is put into it."""
    return "\0".join(parsed.pieces[::2]).split("/")


@given(PATTERNS, IMAGES)
def test_two_images_of_a_repository_never_share_a_path(parsed: Pattern, image: str) -> None:
    reference = attempt(parse_reference, image, expected=BadRequestError)
    assume(not isinstance(reference, BadRequestError))
    paths = {parsed.path(reference, ref) for ref in ("v1", "v2", "v1-v1", "sha256:" + "1" * 64)}
    assert len(paths) == 4


@given(
    st.lists(st.sampled_from([*TEXTS, *WORDS, "<x>", "\0"]), max_size=8).map("".join) | st.text()
)
def test_text_is_a_pattern_or_a_complaint_with_a_column(text: str) -> None:
    parsed = attempt(pattern.parse, text, expected=ValueError)
    if isinstance(parsed, Pattern):
        assert str(parsed) == text
        assert pattern.parse(str(parsed)) == parsed
    else:
        words = str(parsed).split(" ")
        assert words[0] == "column"
        assert 1 <= int(words[1].rstrip(":")) <= len(text) + 1
        assert str(parsed).isprintable()

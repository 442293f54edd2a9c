"""Challenges are parsed as they were written, and no field makes the parser fail."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from imgproxy.specs.http.challenge import Challenge, parse

TOKENS = st.text(string.ascii_lowercase + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=8)
VALUES = st.text(st.characters(max_codepoint=0xFF), max_size=12)
CHALLENGES = st.lists(
    st.builds(Challenge, TOKENS, st.dictionaries(TOKENS, VALUES, max_size=3)), max_size=3
)


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def written(draw: st.DrawFn, challenges: list[Challenge]) -> str:
    """Return a field with the challenges, in one of its many forms."""
    space = st.sampled_from(["", " ", "\t", " \t "])
    words = []
    for scheme, parameters in challenges:
        parts = []
        for name, value in parameters.items():
            plain = value and set(value) <= set(string.ascii_letters + string.digits + "-._~")
            spelt = value if plain and draw(st.booleans()) else quoted(value)
            parts.append(f"{draw(any_case(name))}{draw(space)}={draw(space)}{spelt}")
        comma = draw(st.sampled_from([",", ", ", " ,", ",,\t"]))
        words.append(f"{draw(any_case(scheme))} {comma.join(parts)}")
    return draw(st.sampled_from([", ", ",", " , ,"])).join(words)


def any_case(word: str) -> st.SearchStrategy[str]:
    return st.sampled_from([word, word.upper(), word.title()])


@given(CHALLENGES.flatmap(lambda challenges: st.tuples(st.just(challenges), written(challenges))))
def test_challenges_are_read_as_they_were_written(case: tuple[list[Challenge], str]) -> None:
    challenges, header = case
    assert parse(header) == challenges


PIECES = [" ", "\t", ",", "=", '"', "\\", "a", "Bearer", "realm", "==", "/", ";", "\n", "\xe9"]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_header_can_be_read(header: str) -> None:
    for scheme, parameters in parse(header):
        assert scheme == scheme.lower()
        assert all(name == name.lower() for name in parameters)


@given(CHALLENGES.flatmap(written), st.text(max_size=5))
def test_what_was_read_before_a_mistake_counts(header: str, rest: str) -> None:
    before = parse(header)
    assert parse(f'{header}, "{rest}')[: len(before)] == before

"""What is asked for of a blob is what Python's slices have of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imgproxy.specs.http import ranges
from imgproxy.specs.http.content_range import Range, Rest, read_reply
from imgproxy.specs.http.ranges import Part, Unsatisfiable
from imgproxy.specs.http.url import parse
from imgproxy.specs.oci import digest as digests

DIGEST = str(digests.compute(b"content"))
numbers = st.integers(0, 30) | st.integers(0, 1 << 70)


def cut(field: str, content: bytes) -> bytes | None:
    """Return the part of content, empty where there is none, or None for the whole."""
    asked = ranges.requested_part([field], [], DIGEST, len(content))
    if isinstance(asked, Part):
        assert 0 <= asked.start < asked.stop <= asked.size == len(content)
        return content[asked.start : asked.stop]
    return asked if asked is None else b""


@given(st.binary(max_size=20), numbers, numbers)
def test_a_closed_range_is_a_slice(content: bytes, first: int, last: int) -> None:
    expected = content[first : last + 1] if first <= last else None
    assert cut(f"bytes={first}-{last}", content) == expected


@given(st.binary(max_size=20), numbers)
def test_an_open_range_and_the_last_bytes_are_slices(content: bytes, count: int) -> None:
    assert cut(f"bytes={count}-", content) == content[count:]
    assert cut(f"bytes=-{count}", content) == (content[-count:] if count else b"")


@given(st.text(alphabet="bytes=0123456789-, \t*/", max_size=20), st.integers(0, 50))
def test_any_text_is_a_part_nothing_or_the_whole(field: str, size: int) -> None:
    asked = ranges.requested_part([field], [], DIGEST, size)
    assert asked is None or isinstance(asked, Part | Unsatisfiable)
    ranges.is_known([field], DIGEST)


@given(st.integers(1, 1 << 60), st.data())
def test_what_resumes_a_blob_is_answered_with_just_that(size: int, data: st.DataObject) -> None:
    """Client and server of this program agree."""
    wanted = Range(data.draw(st.integers(0, size - 1)), size, size)
    asked = ranges.requested_part([wanted.field], [], DIGEST, size)
    assert isinstance(asked, Part)
    reply = read_reply(parse("https://h/x"), wanted, 206, [asked.field], asked.length)
    assert reply == Rest(0, size - wanted.offset)


@given(st.lists(st.text(max_size=10).filter(lambda tag: '"' not in tag), max_size=4), st.data())
def test_a_digest_is_found_among_other_tags(tags: list[str], data: st.DataObject) -> None:
    printable = ["".join(each for each in tag if "!" <= each <= "~") for tag in tags]
    field = ", ".join(f'"{tag}"' for tag in printable)
    assert not ranges.is_known([field], DIGEST)
    at = data.draw(st.integers(0, len(printable)))
    quoted = data.draw(st.sampled_from(['"{}"', 'W/"{}"', "{}"])).format(DIGEST)
    printable_tags = [f'"{tag}"' for tag in printable]
    assert ranges.is_known(
        [", ".join([*printable_tags[:at], quoted, *printable_tags[at:]])], DIGEST
    )

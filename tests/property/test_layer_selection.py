"""The grammar of SPEC, and what it chooses, compared with a choice in the plainest words."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import TEXT, attempt

from imgproxy.errors import NotFoundError
from imgproxy.specs.oci import digest as digests
from imgproxy.specs.oci import layer_selection
from imgproxy.specs.oci.layer_selection import Layer, LayerSpec, Offsets
from imgproxy.specs.oci.manifest import Descriptor

TITLE = "org.opencontainers.image.title"
TYPES = st.sampled_from(["a/b", "a/c", "application/vnd.x+json"])
WORDS = st.text(",=\\ab*?[", max_size=3) | TEXT
KEYS = st.sampled_from(["k", "a,b", "x=y", "\\", TITLE])
DIGESTS = st.sampled_from([digests.compute(b"%d" % n) for n in range(3)])
ANNOTATIONS = st.dictionaries(KEYS, WORDS, max_size=3).map(lambda found: tuple(found.items()))
LAYERS = st.lists(
    st.builds(Descriptor, TYPES, DIGESTS, st.just(1), annotations=ANNOTATIONS), max_size=6
)


@st.composite
def ranges(draw: st.DrawFn) -> Offsets:
    first, last = draw(st.integers(-7, 7)), draw(st.integers(-7, 7))
    return Offsets(*(sorted((first, last)) if (first < 0) == (last < 0) else (first, last)))


SPECS = st.builds(
    LayerSpec,
    st.none() | TYPES,
    st.none() | WORDS,
    ANNOTATIONS,
    st.none() | DIGESTS,
    st.none() | ranges(),
).filter(lambda spec: spec != LayerSpec())


@given(SPECS)
def test_a_spec_is_read_as_it_was_written(spec: LayerSpec) -> None:
    assert layer_selection.parse(str(spec)) == spec


PIECES = st.sampled_from(
    ["type=", "title=", "annotation:", "digest=", "offset=", "a/b", "1", "-", ",", "=", "\\", "x"]
)


@given(st.lists(PIECES, max_size=8).map("".join) | st.text())
def test_text_is_a_spec_or_a_complaint_with_a_column(text: str) -> None:
    parsed = attempt(layer_selection.parse, text, expected=ValueError)
    if isinstance(parsed, LayerSpec):
        assert layer_selection.parse(str(parsed)) == parsed
    else:
        words = str(parsed).split(" ")
        assert words[0] == "column"
        assert 1 <= int(words[1].rstrip(":")) <= len(text) + 1
        assert str(parsed).isprintable()


def plainly(spec: LayerSpec, layers: list[Descriptor]) -> set[int]:
    """Return the indexes of the layers that a SPEC chooses."""
    left = list(range(len(layers)))
    if spec.media_type is not None:
        left = [n for n in left if layers[n].media_type == spec.media_type]
    if spec.digest is not None:
        left = [n for n in left if layers[n].digest == spec.digest]
    if spec.title is not None:
        titles = {n: dict(layers[n].annotations).get(TITLE) for n in left}
        left = [n for n, title in titles.items() if title is not None]
        left = [n for n in left if fnmatchcase(str(titles[n]), spec.title)]
    for key, value in spec.annotations:
        left = [n for n in left if (key, value) in layers[n].annotations]
    if spec.offsets is None:
        return set(left)
    first, last = (n if n >= 0 else len(left) + n for n in spec.offsets)
    return {n for offset, n in enumerate(left) if first <= offset <= last}


@given(st.lists(SPECS, min_size=1, max_size=3), LAYERS)
def test_any_of_the_specs_may_hold_and_all_of_its_conditions(
    specs: list[LayerSpec], layers: list[Descriptor]
) -> None:
    wanted = sorted(set().union(*(plainly(spec, layers) for spec in specs)))
    found = attempt(layer_selection.choose, specs, layers, "image", expected=NotFoundError)
    if isinstance(found, NotFoundError):
        assert wanted == []
        assert [each["index"] for each in found.detail["layers"]] == list(range(len(layers)))
    else:
        assert found == [Layer(layers[index], index, offset) for offset, index in enumerate(wanted)]


@given(LAYERS)
def test_without_a_spec_all_are_chosen(layers: list[Descriptor]) -> None:
    found = layer_selection.choose([], layers, "image")
    assert [each.descriptor for each in found] == layers
    assert [(each.index, each.offset) for each in found] == [(n, n) for n in range(len(layers))]

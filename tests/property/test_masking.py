"""Random secrets, quoted in random ways and cut anywhere, are masked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.spellings import SPELLINGS

from imgproxy.errors import clean
from imgproxy.host.masking import MASK, Secrets

# Those after which nothing of the quotation is left but the padding of base64.
EXACT = st.sampled_from(sorted(SPELLINGS.keys() - {"base64 of more", "Python"}))
# A password with blanks at its ends or with controls is masked without them.
SECRETS = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="¤"),
    min_size=4,
    max_size=40,
).filter(lambda text: len("".join(text.split())) >= 4 and text == clean(text))
AROUND = st.text("¤", max_size=20)


@given(SECRETS, EXACT, AROUND, AROUND)
def test_a_quoted_secret_is_masked(secret: str, spelling: str, before: str, after: str) -> None:
    known = Secrets()
    known.add([secret])
    shown = known.mask(f"{before}¤{SPELLINGS[spelling](secret)}¤{after}")
    assert shown.startswith(f"{before}¤")
    assert shown.endswith(f"¤{after}")
    left = clean(shown[len(before) + 1 : len(shown) - len(after) - 1])
    assert MASK in left
    assert set(left) <= set(MASK + "=%3D "), left


@given(SECRETS, EXACT, st.integers(0, 100))
def test_a_cut_secret_is_masked(secret: str, spelling: str, kept: int) -> None:
    """At most a character of it comes through, with a part of the escape for the next."""
    spell = SPELLINGS[spelling]
    known = Secrets()
    known.add([secret])
    shown = known.mask(clean(f"¤{spell(secret)}", 1 + kept))
    left = shown.replace(MASK, "").replace("%3D", "").strip("¤…=")
    assert len(left) < (len("%2Ba%3") if "base64" in spelling else len(spell(secret[:2]))), left


@given(st.lists(st.text(max_size=20), max_size=5), st.text(max_size=200))
def test_any_text_can_be_masked(secrets: list[str], text: str) -> None:
    known = Secrets()
    known.add(secrets)
    assert set(known.mask(text)) <= set(text) | set(MASK)

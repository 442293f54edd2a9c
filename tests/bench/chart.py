"""The chart: throughput, processor time and start-up as bars, in hand-written SVG.

It depends on the results of the run alone. Colours follow the reader's theme, on a background of
its own, so that a viewer without themes shows a light chart on a dark page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

from .rows import CPU, SOURCES, START, THROUGHPUT, WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .turns import Measure, Result

# The panels: a title, the measure, and the rows that have it, if they were measured.
PANELS = (
    ("Throughput of a large blob (longer is better)", THROUGHPUT, "blob"),
    ("Processor time for it (shorter is better)", CPU, "blob"),
    ("From spawn to first manifest (shorter is better)", START, "start"),
    ("The same at a round trip of 50 ms (shorter is better)", START, "far"),
    ("A whole image at a round trip of 50 ms (shorter is better)", WHOLE, "line"),
)
NAMES = {
    **{source: words.replace("`", "") for source, words in SOURCES.items()},
    "anonymous": "docker:// over TLS, anonymous",
    "token": "docker:// over TLS, with a token",
    "layers": "64 layers of 1 MiB",
    "small": "200 layers of 20 KiB",
    "large": "8 layers of 32 MiB",
    "layers-slow": "64 layers of 1 MiB, at 20 MB/s a connection",
    "large-slow": "8 layers of 32 MiB, at 20 MB/s a connection",
}

WIDTH, LEFT, RIGHT, MARGIN = 860, 330, 110, 16
BAR, GAP, LINE = 16, 4, 22
STYLE = """
.page { fill: #ffffff }
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 15px }
.group { font-weight: 600 }
.ours { fill: #0969da } .peer { fill: #8c959f } .limit { fill: #d4a72c }
.axis { stroke: #8c959f; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117 }
  text { fill: #e6edf3 }
  .ours { fill: #58a6ff } .peer { fill: #8b949e } .limit { fill: #bb8009 }
}
"""


class _Bar(NamedTuple):
    name: str
    value: float
    kind: str


class _Group(NamedTuple):
    name: str
    bars: Sequence[_Bar]


def chart(results: Sequence[Result], peers: Sequence[str]) -> str:
    """Return the picture of a run, without omitted rows."""
    parts: list[str] = []
    y = float(MARGIN)
    for title, measure, row in PANELS:
        groups = list(_groups(results, peers, measure, row))
        if groups:
            y += LINE
            parts.append(_text(MARGIN, y, title, "title"))
            y = _draw(parts, y + GAP, measure, groups) + LINE
    parts.append(_text(MARGIN, y + GAP, "Medians of one run, the contenders in turn.", ""))
    height = int(y) + LINE
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img">'
    )
    words = "<title>imgproxy beside its peers and its limits</title>"
    page = '<rect class="page" width="100%" height="100%"/>'
    return "\n".join([head, words, f"<style>{STYLE}</style>", page, *parts, "</svg>", ""])


def _groups(
    results: Sequence[Result], peers: Sequence[str], measure: Measure, row: str
) -> Iterator[_Group]:
    for result in results:
        kind, _, of = result.experiment.name.partition("-")
        if kind != row:
            continue
        limit = result.experiment.limit_of(measure)
        ways = ((way, "ours") for way in result.experiment.ways)
        wanted = [*ways, *((peer, "peer") for peer in peers), (limit, "limit")]
        bars = [
            _Bar((name or "").replace("\\|", "|"), result.medians[name][measure], kind)
            for name, kind in wanted
            if name in result.medians and measure in result.medians[name]
        ]
        if any(bar.kind == "ours" for bar in bars):
            yield _Group(NAMES.get(of, of), bars)


def _draw(parts: list[str], y: float, measure: Measure, groups: Sequence[_Group]) -> float:
    """Draw a panel, and return its lower edge. All of its bars have one scale from zero."""
    room = WIDTH - LEFT - RIGHT
    longest = max(bar.value for group in groups for bar in group.bars) or 1.0
    top = y
    for group in groups:
        y += LINE
        parts.append(_text(MARGIN, y - GAP, group.name, "group"))
        for bar in group.bars:
            length = max(1.0, room * bar.value / longest)
            middle = y + BAR - GAP
            parts.append(_text(LEFT - 8, middle, bar.name, "", anchor="end"))
            parts.append(
                f'<rect class="{bar.kind}" x="{LEFT}" y="{y}" width="{length:.1f}"'
                f' height="{BAR}" rx="2"/>'
            )
            parts.append(_text(LEFT + length + 6, middle, measure.show(bar.value), ""))
            y += BAR + GAP
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{top + GAP}" y2="{y}"/>')
    return y


def _text(x: float, y: float, words: str, kind: str, *, anchor: str = "start") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

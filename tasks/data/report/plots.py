"""Charts as small SVG: coloured by the page around them, or by themselves inside a `data:` URI."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.data.profile import ASPECT_STEPS, MEGAPIXEL_STEPS, Profile, growth

_WIDTH, _HEIGHT = 460, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 26
_MOST_BINS = 30
_MOST_LABELS = 9
_ASPECTS = {-10: "1:4", -5: "1:2", -2: "3:4", 0: "1:1", 2: "4:3", 5: "2:1", 10: "4:1"}

# Alone in an <img> no page lends its colours, so these show on light and on dark.
_ALONE = (
    "text{font:12px system-ui,sans-serif;fill:#7f8890}.grid{stroke:#7f889040}.now{fill:#3a8f86}"
    ".then{fill:none;stroke:#c98a2d;stroke-width:1.8}"
    ".line{fill:none;stroke:#3a8f86;stroke-width:2.4}"
)


@dataclass(frozen=True)
class Bin:
    """A column: its label (may be empty), its name for people, and its counts now and then."""

    label: str
    name: str
    now: int
    then: int


@dataclass(frozen=True)
class Plot:
    """A chart; `svg` is None where there is nothing to draw."""

    title: str
    axis: str
    svg: Markup | None

    def data_uri(self) -> str:
        """The chart, which must not be None, as a picture for where no style sheet reaches."""
        opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}"'
        svg = str(self.svg).replace("<svg", opening, 1).replace(">", f"><style>{_ALONE}</style>", 1)
        return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def plots(now: Profile, then: Profile | None) -> list[Plot]:
    """Every chart of a dataset, the previous version's outline over it if there is one."""
    return [
        Plot("Words in a caption", "words", columns(_words(now, then))),
        Plot("Captions of an image", "captions", columns(_captions(now, then))),
        Plot("Shape of the images", "width : height", columns(_aspects(now, then))),
        Plot("Size of the images", "megapixels", columns(_megapixels(now, then))),
        Plot("How the vocabulary grows", "words read", curves(now, then)),
    ]


def columns(bins: Sequence[Bin]) -> Markup | None:
    """Shares of each version's total; the previous version is a line of steps."""
    now, then = sum(b.now for b in bins), sum(b.then for b in bins)
    if not now:
        return None
    shares = [(b.now / now, b.then / max(1, then)) for b in bins]
    top, step = _scale(max(max(pair) for pair in shares))
    width = (_WIDTH - _LEFT - _RIGHT) / len(bins)
    decimals = 0 if step >= 0.01 else 1
    parts = [_grid(top, step, lambda share: f"{share:.{decimals}%}")]
    for place, (bin, (share, _)) in enumerate(zip(bins, shares, strict=True)):
        x, y = _LEFT + place * width, _y(share / top)
        said = f"{bin.name}: {bin.now:,}" + (f" (before {bin.then:,})" if then else "")
        parts.append(
            Markup('<rect class="now" x="{}" y="{}" width="{}" height="{}" rx="2">').format(
                _n(x + width * 0.09), _n(y), _n(width * 0.82), _n(_y(0) - y)
            )
            + Markup("<title>{}</title></rect>").format(said)
        )
        if bin.label:
            parts.append(_text(x + width / 2, _y(0) + 17, bin.label, "middle"))
    if then:
        steps = "".join(
            f"H{_n(_LEFT + place * width)}V{_n(_y(was / top))}H{_n(_LEFT + (place + 1) * width)}"
            for place, (_, was) in enumerate(shares)
        )
        parts.append(
            Markup('<path class="then" d="M{} {}{}V{}"/>').format(
                _LEFT, _n(_y(0)), steps, _n(_y(0))
            )
        )
    return _svg(parts)


def curves(now: Profile, then: Profile | None) -> Markup | None:
    """Different words against words read, as expected in random order."""
    if not now.vocabulary:
        return None
    lines = [("then", growth(then))] if then and then.vocabulary else []
    lines.append(("line", growth(now)))
    far, _ = _scale(max(points[-1][0] for _, points in lines))
    top, step = _scale(max(points[-1][1] for _, points in lines))
    parts = [_grid(top, step, _short)]
    for share in (0.0, 0.5, 1.0):
        anchor = ("start", "middle", "end")[int(share * 2)]
        parts.append(_text(_x(share), _y(0) + 17, _short(share * far), anchor))
    for kind, points in lines:
        path = "L".join(f"{_n(_x(read / far))} {_n(_y(seen / top))}" for read, seen in points)
        parts.append(Markup('<path class="{}" d="M{}"/>').format(kind, path))
    return _svg(parts)


def _words(now: Profile, then: Profile | None) -> list[Bin]:
    return _whole(now.words_per_caption, then.words_per_caption if then else {}, "words")


def _captions(now: Profile, then: Profile | None) -> list[Bin]:
    return _whole(now.captions_per_image, then.captions_per_image if then else {}, "captions")


def _aspects(now: Profile, then: Profile | None) -> list[Bin]:
    before = then.aspect_ratios if then else {}
    return [
        Bin(
            label=_ASPECTS.get(place, ""),
            name=f"width ÷ height about {2 ** (place / ASPECT_STEPS):.2f}",
            now=now.aspect_ratios.get(place, 0),
            then=before.get(place, 0),
        )
        for place in _range(now.aspect_ratios, before)
    ]


def _megapixels(now: Profile, then: Profile | None) -> list[Bin]:
    before = then.megapixels if then else {}
    places = _range(now.megapixels, before)
    every = math.ceil(len(places) / _MOST_LABELS)
    sizes = {place: f"{2 ** (place / MEGAPIXEL_STEPS):.2g}" for place in places}
    return [
        Bin(
            label="" if place % every else sizes[place],
            name=f"about {sizes[place]} megapixels",
            now=now.megapixels.get(place, 0),
            then=before.get(place, 0),
        )
        for place in places
    ]


def _range(now: Mapping[int, int], then: Mapping[int, int]) -> range:
    """The bins of both and two empty ones at either side, so that one bin alone is no wall."""
    found = now.keys() | then.keys()
    return range(min(found) - 2, max(found) + 3) if found else range(0)


def _whole(now: Mapping[int, int], then: Mapping[int, int], unit: str) -> list[Bin]:
    """A column for each whole number; the last of too many takes all that lies above."""
    found = now.keys() | then.keys()
    if not found:
        return []
    low = max(0, min(found) - 1)
    last = min(max(found) + 1, low + _MOST_BINS - 1)
    cut = last < max(found)
    every = math.ceil((last - low + 1) / _MOST_LABELS)
    bins = []
    for place in range(low, last + 1):
        end = math.inf if cut and place == last else place
        crowded = cut and 0 < last - place < every  # the last one's label needs the room
        label = str(place) if (place - low) % every == 0 and not crowded else ""
        more = "+" if end > place else ""
        bins.append(
            Bin(
                label=f"{place}+" if more else label,
                name=f"{place}{more} {unit}",
                now=sum(count for key, count in now.items() if place <= key <= end),
                then=sum(count for key, count in then.items() if place <= key <= end),
            )
        )
    return bins


def _scale(most: float) -> tuple[float, float]:
    """The end of an axis that holds `most`, and the step of its grid: 1, 2 or 5 × 10ⁿ."""
    step = 10.0 ** math.floor(math.log10(most / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if most <= 4 * factor * step)
    return math.ceil(most / step - 1e-9) * step, step


def _grid(top: float, step: float, label: Callable[[float], str]) -> Markup:
    lines = []
    for place in range(round(top / step) + 1):
        y = _y(place * step / top)
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        lines.append(line.format(_LEFT, _WIDTH - _RIGHT, _n(y), _n(y)))
        lines.append(_text(_LEFT - 7, y + 4, label(place * step), "end"))
    return Markup("").join(lines)


def _svg(parts: Sequence[Markup]) -> Markup:
    frame = Markup('<svg viewBox="0 0 {} {}" role="img">{}</svg>')
    return frame.format(_WIDTH, _HEIGHT, Markup("").join(parts))


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
        _n(x), _n(y), anchor, text
    )


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _short(count: float) -> str:
    """12k for 12,000."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"

"""Pictures as SVG that stands in a page: drawn by matplotlib, coloured by the page, the same bytes every time."""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib writes, and the variables of the page's style that take their place: light and dark are its.
INK, LINE = "#010101", "#020202"
SERIES = tuple(f"#0{k:x}0{k:x}0{k:x}" for k in range(3, 13))
VARIABLES = {INK: "ink", LINE: "line", **{colour: f"c{k}" for k, colour in enumerate(SERIES, 1)}}
SIZE = (4.6, 2.9)  # inches of 72 units: as wide as a phone, where letters are then 10 to 11 pixels high
LARGE = 1e5  # numbers from which on thousands are written k
LETTERS = 10  # of a label that have room in an inch
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dltrain",
    "text.parse_math": False,  # a column may be called $x$
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Within, matplotlib draws as the page wants it."""
    import matplotlib

    own: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its own font lacks: the browser has others
        with matplotlib.rc_context({**own, **STYLE}):  # whatever the user's matplotlibrc says
            yield


def svg(paint: Callable[["Axes"], None], size: tuple[float, float] = SIZE) -> str:
    """What `paint` draws into axes, as an <svg> element without fixed colours, fonts, links or clocks."""
    with style():
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        paint(axes)
        for label, inches in ((axes.xaxis.label, size[0]), (axes.yaxis.label, size[1])):
            label.set_text(textwrap.fill(label.get_text(), int(inches * LETTERS)))
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "linear" and max(map(abs, axis.get_view_interval())) >= LARGE:
                axis.set_major_formatter(_large)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _plain(file.getvalue())


def _large(value: float, position: float) -> str:
    """A number at an axis on which there are large ones: 200k, 2.5M."""
    size, letter = next(((s, c) for s, c in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= s), (1, ""))
    return f"{value / size:g}{letter}"


def _plain(text: str) -> str:
    """An <svg> element that may stand beside others in HTML."""
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    opening = r'<svg viewBox="0 0 \1 \2" style="--width: \1px" aria-hidden="true">'
    text = re.sub(r'<svg[^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', opening, text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?|font: (?=\d)", "", text)
    used = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", text)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", text).replace("> <", "><").strip()


def apart(text: str, name: str) -> str:
    """The same picture, whose names do not meet those of other pictures in the page."""
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)

"""What is drawn of runs: each function makes one picture of plain numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dltrain.errors import real
from dltrain.report.drawing import INK, LINE, SERIES, SIZE, svg
from dltrain.report.page import Figure
from dltrain.report.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Points = tuple[Sequence[float], Sequence[float]]
Lines = Mapping[str, Points]
MOST = 600  # points of a line: more than a screen shows
FEW = 25  # points that are marked one by one
LONGEST = 32  # letters of a name that stands at an axis


def short(name: str) -> str:
    """A name that an axis has room for."""
    text = shown(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def whole(axis: "Axis") -> None:
    """Let an axis count in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def logarithmic(axes: "Axes", which: str) -> None:
    """Let the axis `x` or `y` go in powers of ten, written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 1000 else (1.0, 2.0, 5.0), numticks=7))
    axis.set_major_formatter(lambda value, position: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def lines(title: str, text: str, found: Lines, x: str, y: str, best: float | None = None, log: bool = False) -> Figure:
    """Curves over the same axis; `best` is marked on it, `log` draws what spans powers of ten so."""
    kept = {name: _finite(points) for name, points in found.items()}
    kept = {name: points for name, points in kept.items() if points[0]}

    def paint(axes: "Axes") -> None:
        for (xs, ys), colour in zip(kept.values(), SERIES * len(kept), strict=False):
            axes.plot(xs, ys, color=colour, marker="o" if len(xs) <= FEW else None)
        if best is not None:
            axes.axvline(best, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        if log and _spans([value for _, ys in kept.values() for value in ys]):
            logarithmic(axes, "y")
        places = {value for xs, _ in kept.values() for value in xs}
        if all(value == int(value) for value in places):
            whole(axes.xaxis)
        if len(places) == 1:
            axes.set_xticks([*places])
        axes.set(xlabel=x, ylabel=y)

    keys = [(k % len(SERIES) + 1, name) for k, name in enumerate(kept)]
    return Figure(title, text, svg(paint), keys if len(keys) > 1 else ())


def ranking(title: str, text: str, found: Lines, x: str, y: str, chance: bool) -> Figure:
    """Curves in the unit square, with the diagonal that guessing gives if there is one."""

    def paint(axes: "Axes") -> None:
        if chance:
            axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, linestyle="--")
        for (xs, ys), colour in zip(found.values(), SERIES * len(found), strict=False):
            axes.plot(xs, ys, color=colour)
        axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    return Figure(title, text, svg(paint), [(k % len(SERIES) + 1, name) for k, name in enumerate(found)])


def calibration(found: Mapping[str, Sequence[float]], of: str) -> Figure:
    """How often predictions of a probability are right."""
    rows = found["rows"]

    def paint(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, linestyle="--")
        sizes = [12 + 90 * n / max(rows) for n in rows]
        axes.plot(found["p"], found["right"], color=SERIES[0], linewidth=1)
        axes.scatter(found["p"], found["right"], s=sizes, color=SERIES[0])
        axes.set(xlabel=f"{of} (probability)", ylabel="right (share of rows)", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))

    text = (
        "The nearer to the dashed line, the more a probability means what it says; larger points stand for more rows."
    )
    return Figure("Calibration", text, svg(paint))


def against(name: str, true: Sequence[float], predicted: Sequence[float]) -> Figure:
    """Predictions over the truth, with the line on which both are equal."""
    low, high = min(*true, *predicted), max(*true, *predicted)

    def paint(axes: "Axes") -> None:
        axes.plot([low, high], [low, high], color=LINE, linewidth=1, linestyle="--")
        axes.scatter(true, predicted, s=10, color=SERIES[0], alpha=0.6, linewidths=0)
        axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}")

    text = f"{len(true):,} rows in the target's own units; on the dashed line a prediction is right."
    return Figure(f"Predicted against true {name}", text, svg(paint))


def residuals(name: str, true: Sequence[float], predicted: Sequence[float]) -> Figure:
    """What is left over of each prediction, over the prediction."""
    rest = [told - real for told, real in zip(predicted, true, strict=True)]

    def paint(axes: "Axes") -> None:
        axes.axhline(0, color=LINE, linewidth=1, linestyle="--")
        axes.scatter(predicted, rest, s=10, color=SERIES[1], alpha=0.6, linewidths=0)
        axes.set(xlabel=f"predicted {name}", ylabel="predicted less true")

    text = "In the target's own units; a shape other than a level band is something that the network has not learnt."
    return Figure(f"Residuals of {name}", text, svg(paint))


def counts(title: str, text: str, found: Sequence[int], edges: Sequence[float], x: str) -> Figure:
    """How many rows fall between edges."""

    def paint(axes: "Axes") -> None:
        axes.stairs(found, edges, fill=True, color=SERIES[1], alpha=0.6)
        axes.set(xlabel=x, ylabel="rows")

    return Figure(title, text, svg(paint))


def scree(shares: Sequence[float]) -> Figure:
    """The share of the variance that each component tells, and that all up to it tell."""
    so_far = [sum(shares[: k + 1]) for k in range(len(shares))]
    numbers = [*range(1, len(shares) + 1)]

    def paint(axes: "Axes") -> None:
        axes.bar(numbers, shares, color=SERIES[0])
        axes.plot(numbers, so_far, color=SERIES[1], marker="o" if len(numbers) <= FEW else None)
        whole(axes.xaxis)
        axes.set(xlabel="principal component", ylabel="share of the variance", ylim=(0, 1.05))

    text = f"{len(shares):,} components tell {so_far[-1]:.1%} of the variance of the training rows."
    return Figure("Scree plot", text, svg(paint), [(1, "of the component"), (2, "of all up to it")])


def bars(title: str, text: str, found: Mapping[str, float], x: str) -> Figure:
    """One bar a name, the longest on top; the names are the page's, so that they need no room."""
    names = sorted(found, key=lambda name: -found[name])

    def paint(axes: "Axes") -> None:
        axes.barh(range(len(names)), [found[name] for name in names], color=SERIES[0])
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=x)

    return Figure(title, text, svg(paint, (SIZE[0], max(1.4, 0.7 + 0.32 * len(names)))))


def intervals(
    title: str, text: str, means: Sequence[float], errors: Sequence[float], each: Sequence[Any], x: str
) -> Figure:
    """Means with standard errors, one line a rank from 1, and what they are means of as small points."""
    ranks = [*range(1, len(means) + 1)]

    def paint(axes: "Axes") -> None:
        axes.errorbar(means, ranks, xerr=errors, fmt="o", color=SERIES[0], capsize=3, elinewidth=1.4)
        for rank, values in zip(ranks, each, strict=True):
            axes.scatter(values, [rank] * len(values), s=8, color=INK, alpha=0.45, linewidths=0, zorder=3)
        axes.set_yticks(ranks[:: max(1, len(ranks) // 25)])
        axes.set_ylim(len(ranks) + 0.6, 0.4)
        axes.set(xlabel=x, ylabel="rank")

    return Figure(title, text, svg(paint, (SIZE[0], min(8, max(1.6, 0.8 + 0.28 * len(ranks))))))


def history(title: str, text: str, values: Mapping[int, float], largest: bool, y: str) -> Figure:
    """A value for each trial, and the best so far."""
    trials = sorted(values)
    so_far: list[float] = []
    for trial in trials:
        so_far.append((max if largest else min)([values[trial], *so_far[-1:]]))

    def paint(axes: "Axes") -> None:
        axes.step(trials, so_far, where="post", color=SERIES[1])
        axes.scatter(trials, [values[trial] for trial in trials], s=14, color=SERIES[0], linewidths=0, zorder=3)
        whole(axes.xaxis)
        if _spans([*values.values()]):
            logarithmic(axes, "y")
        axes.set(xlabel="trial", ylabel=y)

    return Figure(title, text, svg(paint), [(1, "a trial"), (2, "best so far")])


def parallel(title: str, text: str, columns: Mapping[str, Sequence[Any]], best: Sequence[bool]) -> Figure:
    """One upright axis a column, one line a row across them; the best rows stand out."""
    scaled, ticks = zip(*(_axis(values) for values in columns.values()), strict=True)

    def paint(axes: "Axes") -> None:
        order = sorted(range(len(best)), key=lambda row: best[row])  # the best on top
        for row in order:
            look: dict[str, Any] = (
                {"color": SERIES[1], "linewidth": 1.8} if best[row] else {"color": SERIES[0], "alpha": 0.35}
            )
            axes.plot(range(len(scaled)), [column[row] for column in scaled], **look)
        for k, marks in enumerate(ticks):
            axes.axvline(k, color=LINE, linewidth=1)
            for place, word in marks:
                last = k == len(ticks) - 1
                side: dict[str, Any] = {"ha": "right", "xytext": (-4, 2)} if last else {"ha": "left", "xytext": (4, 2)}
                axes.annotate(short(word), (k, place), textcoords="offset points", fontsize=9, **side)
        axes.set_xticks(range(len(columns)), [short(name) for name in columns])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)

    keys = [(2, "the best tenth"), (1, "other trials")]
    wide = len(columns) > 3
    return Figure(title, text, svg(paint, (max(SIZE[0], 1.7 * len(columns)), 3.4)), keys, wide)


def _axis(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Places from 0 to 1 of a column's values, and marks: of numbers a few, logarithmic if they span, of words all."""
    if all(map(real, values)):
        scale: Callable[[float], float] = math.log10 if _spans(values) else float
        low, high = scale(min(values)), scale(max(values))
        places = [(scale(value) - low) / (high - low) if high > low else 0.5 for value in values]
        distinct = sorted(set(zip(places, values, strict=True)))
        some = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
        return places, [(place, f"{value:.3g}") for place, value in some]
    words = sorted({str(value) for value in values})
    where = {word: (k / (len(words) - 1) if len(words) > 1 else 0.5) for k, word in enumerate(words)}
    step = max(1, math.ceil(len(words) / 12))
    return [where[str(value)] for value in values], [(where[word], word) for word in words[::step]]


def scatter(title: str, text: str, points: Points, x: str, y: str) -> Figure:
    """Points, one a row; axes are logarithmic where they span powers of ten."""

    def paint(axes: "Axes") -> None:
        axes.scatter(*points, s=16, color=SERIES[0], alpha=0.7, linewidths=0)
        for which, values in zip("xy", points, strict=True):
            if _spans(values):
                logarithmic(axes, which)
        axes.set(xlabel=x, ylabel=y)

    return Figure(title, text, svg(paint))


def _finite(points: Points) -> tuple[list[float], list[float]]:
    """Points that are numbers, thinned to what can be seen."""
    kept = [(x, y) for x, y in zip(*points, strict=True) if real(x) and real(y)]
    step = max(1, math.ceil(len(kept) / MOST))
    kept = kept[::step] + (kept[-1:] if (len(kept) - 1) % step else [])
    return [x for x, _ in kept], [y for _, y in kept]


def _spans(values: Sequence[float]) -> bool:
    """Whether numbers, all above 0, go over more than a power of ten and a bit."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 20

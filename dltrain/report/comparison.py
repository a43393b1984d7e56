"""The page of a comparison: which settings did better, and how sure that is."""

from collections.abc import Mapping, Sequence

from dltrain.report import figures
from dltrain.report.page import Page, Section, Table
from dltrain.report.runs import unit
from dltrain.report.text import number


def page(
    metric: str,
    rows: Sequence[Mapping[str, str]],
    means: Sequence[float],
    errors: Sequence[float],
    values: Sequence[Sequence[float]],
    said: Sequence[str],
) -> Page:
    """Variants, the best first: their cells by column as the terminal shows them, and what of the metric is drawn."""
    runs = sum(map(len, values))
    lead = f"{len(rows):,} variants, trained {runs:,} times in all, by {metric}."
    lead += f" The first has a mean of {number(means[0])}{f' ± {number(errors[0])}' * bool(errors[0])}."
    text = "The mean over seeds of each rank of the table, with its standard error; the small points are the seeds."
    y = unit(metric.partition("/")[2])
    picture = figures.intervals(f"{metric} of each variant", text, means, errors, values, y)
    header = [*rows[0]]
    right = frozenset(
        k for k, name in enumerate(header) if name in ("rank", "seeds", metric, "to best", "p", "seconds")
    )
    table = Table(header, [[row[name] for name in header] for row in rows], "Variants", right)
    sections = [Section(metric, [picture, table], "".join(f"{text}. " for text in said))]
    return Page("Comparison", lead, [("variants", f"{len(rows):,}"), ("seeds in all", f"{runs:,}")], sections)

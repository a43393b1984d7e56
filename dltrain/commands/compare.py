"""Compare runs: which settings differ, what came of them over seeds, and how sure the order is."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.cells import cell_len

from dltrain.commands import check_out, parse, written
from dltrain.commands.help import heading
from dltrain.commands.list import width
from dltrain.errors import ConfigError, must, nearest, real
from dltrain.lines import read_lines
from dltrain.report.text import aligned, clock, number, shown
from dltrain.run import Run, find, told_apart

KNOWN = {"loss": "min", "rmse": "min", "mae": "min", "log_loss": "min", "calibration_error": "min", "mse": "min"}
KNOWN |= dict.fromkeys(("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision", "r2"), "max")
KNOWN |= dict.fromkeys(("explained_variance", "silhouette", "adjusted_rand", "token_accuracy", "exact_match"), "max")
KNOWN |= dict.fromkeys(("bits_per_token", "bits_per_character", "perplexity", "distance"), "min")


@dataclass
class Options:
    """What `dltrain compare` takes."""

    runs: list[str]  # folders, names or their beginnings, patterns such as digits-*, or sweeps
    metric: str | None = None  # such as test/accuracy; left out: what picked the best epochs, on validation rows
    direction: str | None = None  # min or max: which way a metric of your own gets better
    out: str = "-"  # a .csv, or a page as .html; - is the terminal
    output_root: str = "outputs"  # where runs are looked for


@dataclass
class Variant:
    """Finished runs of the same settings, of one or more seeds."""

    settings: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    values: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # of the metric, by seed

    @property
    def by_seed(self) -> dict[int, float]:
        """One value a seed, the mean where it was run more than once."""
        return {seed: fmean(values) for seed, values in self.values.items()}

    @property
    def mean(self) -> float:
        return fmean(self.by_seed.values())

    @property
    def seconds(self) -> float:
        """Of training, in the mean of a run."""
        return fmean(float(run.result().get("seconds") or 0) for run in self.runs)


def run(words: list[str]) -> int:
    """Show the variants, the best first, or write them as a CSV."""
    options = parse(words, Options)
    must(options.out == "-" or options.out.endswith((".csv", ".html")), "out", "a .csv or a .html", options.out)
    check_out(options.out)
    must(options.direction in (None, "min", "max"), "direction", "min or max", options.direction)
    found = [*{run.folder.resolve(): run for word in options.runs for run in named(word, options.output_root)}.values()]
    finished = [run for run in found if run.result().get("status") == "finished"]
    must(bool(finished), "runs", "runs of which one is finished", options.runs)
    metric = options.metric or f"valid/{finished[0].result().get('monitor')}"
    variants = _variants(finished, metric)
    largest = (options.direction or direction(metric, finished)) == "max"
    variants.sort(key=lambda variant: variant.mean, reverse=largest)
    header, rows = _table(variants, metric)
    if options.out == "-":
        first, *others = _fitted([_written(header, row) for row in rows], width())
        print("\n".join([heading(first), *others, *_said(variants, len(found) - len(finished))]))
        return 0
    with written(options.out) as file:
        if options.out.endswith(".html"):
            file.write(_page(variants, metric, header, rows, [*_said(variants, len(found) - len(finished))]))
        else:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    print(f"wrote {options.out} ({len(variants):,} variants of {len(finished):,} runs)")
    return 0


def named(word: str, root: str) -> Iterator[Run]:
    """The runs that a word means; raises ConfigError if there are none."""
    home = Path(root).expanduser()
    trials = home / "sweeps" / word / "trials.jsonl"
    if trials.is_file():
        yield from (Run(home / line["run"]) for line in read_lines(trials) if line.get("run"))
    elif any(letter in word for letter in "*?["):
        base = Path() if "/" in word else home
        matching = [Run(path) for path in sorted(base.glob(word)) if (path / "config.yaml").is_file()]
        must(bool(matching), "runs", f"patterns that match a run in {base or '.'}", word)
        yield from matching
    else:
        yield find(word, root, "runs", [path.parent.name for path in home.glob("sweeps/*/trials.jsonl")])


def _variants(runs: Sequence[Run], metric: str) -> list[Variant]:
    """Runs by the settings in which they differ; raises ConfigError if one does not know the metric."""
    every = [{key: value for key, value in one.items() if key != "seed"} for one in told_apart(runs)]
    keys = [
        key for key in dict.fromkeys(key for one in every for key in one) if len({one.get(key) for one in every}) > 1
    ]
    told = [key for key in keys if "_target_" not in key and _tells(key, keys, every)]
    found: dict[tuple[str | None, ...], Variant] = {}
    for run, settings in zip(runs, every, strict=True):
        mine = tuple(settings.get(key) for key in keys)
        variant = found.setdefault(mine, Variant({key: settings.get(key, "") for key in told}))
        variant.runs.append(run)
        variant.values[int(run.config()["seed"])].append(_value(run, metric))
    return [*found.values()]


def _tells(key: str, keys: Sequence[str], every: Sequence[Mapping[str, str]]) -> bool:
    """Whether a setting differs although the choice of its group does not: another network has other settings."""
    group = key.partition(".")[0]
    if group == key or group not in keys:
        return True
    by_choice = defaultdict(set)
    for settings in every:
        by_choice[settings[group]].add(settings.get(key))
    return any(len(values) > 1 for values in by_choice.values())


def scores(run: Run) -> dict[str, float]:
    """The metrics of a run by split and name, as far as they are numbers."""
    both = ((split, run.result().get(split) or {}) for split in ("valid", "test"))
    return {f"{split}/{name}": float(value) for split, found in both for name, value in found.items() if real(value)}


def _value(run: Run, metric: str) -> float:
    known = scores(run)
    if metric not in known:
        raise ConfigError(
            f"metric must be one that every run has, got {metric}, not in {run.name}{nearest(metric, known)}"
        )
    return known[metric]


def direction(metric: str, runs: Sequence[Run]) -> str:
    """Which way a metric gets better; raises ConfigError for one that nobody has said it of."""
    name = metric.partition("/")[2]
    monitored = {str(run.result().get("monitor")): str(run.result().get("direction")) for run in runs}
    found = monitored.get(name) or KNOWN.get(name.partition("/")[0])
    must(found is not None, "direction", f"min or max for {metric}, which is not known here", None)
    return str(found)


def _table(variants: Sequence[Variant], metric: str) -> tuple[list[str], list[list[Any]]]:
    """A header, and numbers and words for each variant: what they gain on the best is paired over seeds."""
    settings = [*variants[0].settings]
    rows = []
    for rank, variant in enumerate(variants, 1):
        values = [*variant.by_seed.values()]
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        gap, spread, p = _behind(variant, variants[0]) if rank > 1 else (None, None, None)
        names = " ".join(run.name for run in variant.runs)
        told = [variant.settings[key] for key in settings]
        rows.append([rank, *told, len(values), variant.mean, error, gap, spread, p, variant.seconds, names])
    found = [metric, f"error of {metric}", "to best", "error of to best"]
    return ["rank", *settings, "seeds", *found, "p", "seconds", "runs"], rows


def _behind(variant: Variant, best: Variant) -> tuple[float | None, float | None, float | None]:
    """The mean difference to the best over the seeds of both, its standard error, and p of a paired t test."""
    from scipy.stats import ttest_rel

    seeds = sorted(variant.by_seed.keys() & best.by_seed.keys())
    gaps = [variant.by_seed[seed] - best.by_seed[seed] for seed in seeds]
    if len(gaps) < 2:
        return (gaps[0] if gaps else None), None, None
    error = stdev(gaps) / math.sqrt(len(gaps))
    same = [[side.by_seed[seed] for seed in seeds] for side in (variant, best)]
    return fmean(gaps), error, float(ttest_rel(*same).pvalue) if error else None


def _written(header: Sequence[str], row: Sequence[Any]) -> dict[str, str]:
    """A row as a person reads it, by column: numbers with their errors."""
    found: dict[str, str] = {}
    for name, value in zip(header, row, strict=True):
        if name.startswith("error of "):
            found[name.removeprefix("error of ")] += f" ± {number(value)}" if value is not None else ""
        else:
            found[name] = number(value) if isinstance(value, float) else "" if value is None else str(value)
    names = str(row[-1]).split()
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return found | {"seconds": clock(row[header.index("seconds")]), "runs": names[0] + more}


def _page(
    variants: Sequence[Variant], metric: str, header: Sequence[str], rows: Sequence[Sequence[Any]], said: Sequence[str]
) -> str:
    """The table as a page, with a picture of means and errors."""
    from dltrain.report.comparison import page

    told = [_written(header, row) for row in rows]
    values = [[*variant.by_seed.values()] for variant in variants]
    errors = [row[header.index(f"error of {metric}")] or 0.0 for row in rows]
    return page(metric, told, [variant.mean for variant in variants], errors, values, said).html()


def _fitted(rows: Sequence[Mapping[str, str]], room: int) -> list[str]:
    """Aligned lines, without the last columns where they find no room."""
    columns = [*rows[0]]
    while True:
        cells = [
            [shown(cell) for cell in line] for line in (columns, *([row[name] for name in columns] for row in rows))
        ]
        lines = aligned(cells, frozenset(range(len(columns) - (columns[-1] == "runs"))))
        if max(map(cell_len, lines)) <= room or len(columns) < 3:
            return lines
        columns.pop()


def _said(variants: Sequence[Variant], unfinished: int) -> Iterator[str]:
    if len(variants) > 1:
        yield "±: standard error over seeds; p: paired t test against the best, of each variant alone"
    if min(len(variant.values) for variant in variants) < 2:
        yield "one seed says little: -m seed=0,1,2,3,4 gives each variant five"
    if unfinished:
        many = "run that is not finished is" if unfinished == 1 else "runs that are not finished are"
        yield f"{unfinished:,} {many} left out"

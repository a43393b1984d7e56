"""The page of a sweep: which settings mattered, and which trial did best."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dltrain.errors import real
from dltrain.report import figures
from dltrain.report.page import Block, Cell, Code, Page, Section, Table
from dltrain.report.runs import unit
from dltrain.report.text import clock, number

FEWEST = 8  # trials from which a forest can say what mattered
TREES = 200
SETTINGS = 8  # that are drawn


@dataclass
class Trial:
    """What is known of a trial: `settings` are those in which the trials differ, as they were typed."""

    number: int
    settings: Mapping[str, str]
    status: str  # finished, failed, stopped, pruned ...
    message: str = ""
    run: str = ""
    href: str = ""  # of its own report, if it has one
    scores: Mapping[str, float] = field(default_factory=dict)  # such as valid/log_loss
    seconds: float = 0.0


@dataclass
class Sweep:
    """What a sweep's files say; it is judged by `metrics`, of the first of which more is better if it is `largest`."""

    name: str
    trials: Sequence[Trial]
    metrics: Sequence[str]
    largest: bool
    commands: Sequence[str] = ()

    @property
    def metric(self) -> str:
        """What the order of trials is by."""
        return self.metrics[0]

    @property
    def scored(self) -> list[Trial]:
        """The trials that have the metric, the best first."""
        known = [trial for trial in self.trials if real(trial.scores.get(self.metric))]
        return sorted(known, key=lambda trial: trial.scores[self.metric], reverse=self.largest)

    @property
    def keys(self) -> list[str]:
        """The settings in which trials differ."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.settings))


def varied(words: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of several lists of key=value words, those that differ."""
    every = []
    for typed in words:
        pairs = (word.lstrip("+~").partition("=") for word in typed)
        every.append({key: value for key, equals, value in pairs if equals})
    keys = [
        key for key in dict.fromkeys(key for one in every for key in one) if len({one.get(key) for one in every}) > 1
    ]
    return [{key: one[key] for key in keys if key in one} for one in every]


def page(sweep: Sweep) -> Page:
    """Everything there is to see of a sweep."""
    found = Page(sweep.name, sentence(sweep), key_numbers(sweep))
    for title, blocks in (("Search", search(sweep)), ("Trials", trials(sweep)), ("Commands", commands(sweep))):
        if section := [*blocks]:
            found.sections.append(Section(title, section))
    return found


def sentence(sweep: Sweep) -> str:
    """What was searched and what was found."""
    n, scored = len(sweep.trials), sweep.scored
    over = f" over {', '.join(sweep.keys)}" if sweep.keys else ""
    told = f"A search of {n:,} trial{'s' * (n != 1)}{over}, of which {len(scored):,} have a {sweep.metric}."
    if not scored:
        return told
    best = scored[0]
    which = " ".join(f"{key}={_cut(value)}" for key, value in best.settings.items())
    value = f"{'largest' if sweep.largest else 'smallest'} is {number(best.scores[sweep.metric])}"
    return f"{told} The {value}, of trial {best.number}{f' ({which})' * bool(which)}."


def key_numbers(sweep: Sweep) -> list[tuple[str, str]]:
    """How many trials came to what, and the best."""
    counts: dict[str, int] = {}
    for trial in sweep.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    facts = [(f"best {sweep.metric}", number(sweep.scored[0].scores[sweep.metric]))] if sweep.scored else []
    facts += [(status, f"{n:,}") for status, n in sorted(counts.items())]
    return [*facts, ("training in all", clock(sum(trial.seconds for trial in sweep.trials)))]


def search(sweep: Sweep) -> Iterator[Block]:
    """The course of the search, what mattered, and how settings go together."""
    scored, y = sweep.scored, unit(_metric(sweep.metric))
    if len(scored) < 2:
        return
    values = {trial.number: trial.scores[sweep.metric] for trial in scored}
    text = f"The {sweep.metric} of each trial, and the best of all up to it."
    yield figures.history("Course of the search", text, values, sweep.largest, y)
    shares = importances(scored, sweep.keys, [trial.scores[sweep.metric] for trial in scored])
    if shares:
        text = (
            f"How much worse a forest of regression trees tells {sweep.metric} from the settings when one of them is"
            " shuffled: of these trials, not of all that could be tried."
        )
        yield figures.bars("What mattered", text, shares, "importance (share of all)")
    drawn = sorted(sweep.keys, key=lambda key: -shares.get(key, 0.0))[:SETTINGS]
    columns: dict[str, list[Any]] = {key: _column(scored, key) for key in drawn}
    columns[sweep.metric] = [trial.scores[sweep.metric] for trial in scored]
    tenth = [rank < max(1, round(len(scored) / 10)) for rank in range(len(scored))]
    yield figures.parallel("Settings and what came of them", "One line a trial.", columns, tenth)
    for other in sweep.metrics[1:]:
        known = [trial for trial in scored if real(trial.scores.get(other))]
        both = tuple([trial.scores[name] for trial in known] for name in (sweep.metric, other))
        text = "One point a trial: of what it is judged by."
        yield figures.scatter(f"{other} by {sweep.metric}", text, (both[0], both[1]), y, unit(_metric(other)))
    for key in drawn[:3]:
        column = _column(scored, key)
        if all(map(real, column)) and len(set(column)) > 2:
            points = (column, columns[sweep.metric])
            yield figures.scatter(f"{sweep.metric} by {key}", "One point a trial.", points, figures.short(key), y)


def _cut(value: str) -> str:
    """A setting as it was typed, but for digits of a number that nobody reads; its run has them all."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def _metric(name: str) -> str:
    """Without the split that it is of."""
    return name.removeprefix("valid/").removeprefix("test/")


def _column(trials: Sequence[Trial], key: str) -> list[Any]:
    """A setting of all trials: numbers if all are, else words."""
    words = [trial.settings.get(key, "") for trial in trials]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return words
    return numbers if all(map(real, numbers)) else words


def importances(trials: Sequence[Trial], keys: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Permutation importance of each setting in a random forest, which knows of settings that matter only together.

    By scikit-learn, which is always there (Optuna is not, and its own measures need its own study):
    https://scikit-learn.org/stable/modules/permutation_importance.html. {} of too few trials.
    """
    if len(trials) < FEWEST or len(set(values)) < 2 or not keys:
        return {}
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.preprocessing import OrdinalEncoder

    columns = []
    for key in keys:
        column = _column(trials, key)
        told = [[value] for value in column]
        columns.append(np.array(told) if all(map(real, column)) else OrdinalEncoder().fit_transform(told))
    x, y = np.concatenate(columns, 1), np.array(values)
    forest = RandomForestRegressor(TREES, random_state=0).fit(x, y)
    found = permutation_importance(forest, x, y, n_repeats=20, random_state=0).importances_mean
    found = found.clip(min=0) / max(found.clip(min=0).sum(), 1e-300)
    return dict(zip(keys, found.tolist(), strict=True))


def trials(sweep: Sweep) -> Iterator[Block]:
    """A table of all trials, the best first, and why some failed."""
    keys, rest = sweep.keys, [trial for trial in sweep.trials if not real(trial.scores.get(sweep.metric))]
    others = list(dict.fromkeys(name for trial in sweep.scored for name in trial.scores if name != sweep.metric))
    test = [name for name in others if name in (*sweep.metrics, f"test/{sweep.metric.partition('/')[2]}")]
    rows: list[list[str | Cell]] = []
    for rank, trial in enumerate([*sweep.scored, *rest], 1):
        place = str(rank) if rank <= len(sweep.scored) else ""
        scores = [number(trial.scores.get(name)) for name in (sweep.metric, *test)]
        told = [_cut(trial.settings.get(key, "")) for key in keys]
        took = clock(trial.seconds) if trial.seconds else ""
        rows.append([place, str(trial.number), *told, *scores, trial.status, took, Cell(trial.run, trial.href)])
    header = ["rank", "trial", *keys, sweep.metric, *test, "status", "time", "run"]
    numbers = [0, 1, *range(2 + len(keys), 3 + len(keys) + len(test)), 4 + len(keys) + len(test)]
    yield Table(header, rows, "The best first", frozenset(numbers))
    if failed := [trial for trial in sweep.trials if trial.message]:
        yield Table(
            ["trial", "why it failed"], [[str(trial.number), trial.message] for trial in failed], "Failed trials"
        )


def commands(sweep: Sweep) -> Iterator[Block]:
    """What to type next."""
    if sweep.commands:
        yield Code("\n".join(sweep.commands))

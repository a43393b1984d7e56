"""List what can be chosen: models, optimizers, activations, data ... and runs."""

import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dltrain.choices import configs_dir, defaults, describe, groups, options, plural
from dltrain.commands import parse
from dltrain.commands.help import heading, pairs
from dltrain.errors import ConfigError, must, nearest, show
from dltrain.report.text import aligned, number, shown
from dltrain.run import Run, parsed
from dltrain.run import runs as runs_in


@dataclass
class Options:
    """What `dltrain list runs` takes."""

    where: str | None = None  # settings that runs must have, such as model=cnn,seed=0
    sort: str | None = None  # a metric such as valid/accuracy, the best first (default: the newest first)
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Print the options of a group with what each is, the runs, or the groups."""
    what, rest = (words[0], words[1:]) if words and "=" not in words[0] else ("", words)
    options_ = parse(rest, Options)
    known = {name: group for group in groups() for name in (group, plural(group))}
    if what in ("run", "runs"):
        lines = runs(Path(options_.output_root).expanduser(), options_.where, options_.sort)
    elif what in known:
        lines = members(known[what])
    elif not what:
        rows = [(plural(group), " ".join(options(group))) for group in groups()]
        lines = pairs([*rows, ("runs", "what was trained, with status and metric")], width())
    else:
        raise ConfigError(f"list {what}: no such list{nearest(what, [*map(plural, groups()), 'runs'])}")
    if rest and what not in ("run", "runs"):
        raise ConfigError(f"{rest[0].partition('=')[0]} must be given to list runs, got {' '.join(['list', *words])}")
    print("\n".join(lines))
    return 0


def width() -> int:
    """The columns of the terminal; in a pipe no line is folded, so that grep finds whole ones."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def members(group: str) -> list[str]:
    """The options of a group, the default one marked, the user's own with their files."""
    default = defaults().get(group)
    rows = []
    for name, file in options(group).items():
        own = "" if file.is_relative_to(configs_dir()) else f" ({file})"
        rows.append((name + "*" * (name == default), describe(file) + own))
    return pairs(rows, width())


def runs(root: Path, where: str | None = None, sort: str | None = None) -> list[str]:
    """A table of the runs in a folder, the newest first or the best by a metric; a damaged file is no error.

    Raises ConfigError for a setting that no run has, and a metric that none has or whose direction nobody knows.
    """
    kept = sorted(((_when(one.folder), one) for one in runs_in(str(root))), key=lambda pair: pair[0], reverse=True)
    if not kept:
        return [f"no runs in {root}; dltrain makes one"]
    kept = _chosen(kept, where) if where else kept
    kept = _sorted(kept, sort) if sort else kept
    rows = [["run", "status", "epochs", "metric", "valid", "test", "when"]]
    for when, one in kept:
        rows.append([one.name, *_row(one.result(), sort), datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M")])
    cells = [[shown(cell) for cell in row] for row in rows]
    first, *others = aligned(cells, frozenset({2, 4, 5}))
    return [heading(first), *others]


def _chosen(found: list[tuple[float, Run]], where: str) -> list[tuple[float, Run]]:
    """The runs that have all of some settings."""
    every = [(when, run, _settings(run)) for when, run in found]
    known = {key for _, _, settings in every for key in settings}
    for word in _words(where):
        key, equals, value = (part.strip() for part in word.partition("="))
        must(equals != "", "where", "settings with their values, such as model=cnn,seed=0", word)
        if key not in known:
            raise ConfigError(f"where must be a setting of runs, got {word}{nearest(key, known)}")
        wanted = _plain(parsed(value))
        every = [one for one in every if key in one[2] and _plain(parsed(one[2][key])) == wanted]
    return [(when, run) for when, run, _ in every]


def _settings(run: Run) -> dict[str, str]:
    try:
        return run.settings()
    except ConfigError:  # of a damaged run nothing is known
        return {}


def _words(where: str) -> list[str]:
    """What stands between the commas, but for those in brackets."""
    found, depth = [""], 0
    for letter in where:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


def _plain(value: Any) -> Any:
    """A value such that those that mean the same setting are equal: 1e-1 is text to YAML."""
    match value:
        case None | bool():
            return show(value)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {_plain(key): _plain(item) for key, item in value.items()}
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)


def _sorted(found: list[tuple[float, Run]], metric: str) -> list[tuple[float, Run]]:
    """The runs that have a metric, the best first."""
    from dltrain.commands.compare import direction, scores  # which asks this module how wide a terminal is

    known = [(when, run, scores(run)) for when, run in found]
    if not any(metric in values for _, _, values in known):
        names = {name for _, _, values in known for name in values}
        raise ConfigError(f"sort must be a metric of a run, got {metric}{nearest(metric, names)}")
    having = [(when, run, values[metric]) for when, run, values in known if metric in values]
    largest = direction(metric, [run for _, run, _ in having]) == "max"
    having.sort(key=lambda one: one[2], reverse=largest)
    return [(when, run) for when, run, _ in having]


def _row(result: dict[str, Any], metric: str | None = None) -> list[str]:
    monitor = (metric or result.get("monitor") or "loss").removeprefix("valid/").removeprefix("test/")
    name = monitor.rpartition("/")[2]
    scores = [result.get(split) or {} for split in ("valid", "test")]
    values = [score.get(monitor, score.get(name)) for score in scores]
    return [result.get("status") or "unfinished", str(result.get("epochs", "-")), name, *map(number, values)]


def _when(folder: Path) -> float:
    """When a run last said something."""
    for name in ("result.json", "metrics.jsonl", "config.yaml"):
        if (folder / name).is_file():
            return (folder / name).stat().st_mtime
    return 0.0

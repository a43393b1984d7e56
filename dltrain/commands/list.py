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
from dltrain.errors import ConfigError, nearest
from dltrain.report.text import aligned, number, shown
from dltrain.run import Run


@dataclass
class Options:
    """What `dltrain list runs` takes."""

    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Print the options of a group with what each is, the runs, or the groups."""
    what, rest = (words[0], words[1:]) if words and "=" not in words[0] else ("", words)
    options_ = parse(rest, Options)
    known = {name: group for group in groups() for name in (group, plural(group))}
    if what in ("run", "runs"):
        lines = runs(Path(options_.output_root).expanduser())
    elif what in known:
        lines = members(known[what])
    elif not what:
        rows = [(plural(group), " ".join(options(group))) for group in groups()]
        lines = pairs([*rows, ("runs", "what was trained, with status and metric")], width())
    else:
        raise ConfigError(f"list {what}: no such list{nearest(what, [*map(plural, groups()), 'runs'])}")
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


def runs(root: Path) -> list[str]:
    """A table of the runs in a folder, the newest first; a damaged file is no error."""
    folders = [path for path in root.iterdir() if (path / "config.yaml").is_file()] if root.is_dir() else []
    found = sorted(((_when(path), path) for path in folders if not path.name.startswith(".")), reverse=True)
    if not found:
        return [f"no runs in {root}; dltrain makes one"]
    rows = [["run", "status", "epochs", "metric", "valid", "test", "when"]]
    for when, path in found:
        rows.append([path.name, *_row(Run(path).result()), datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M")])
    cells = [[shown(cell) for cell in row] for row in rows]
    first, *others = aligned(cells, frozenset({2, 4, 5}))
    return [heading(first), *others]


def _row(result: dict[str, Any]) -> list[str]:
    monitor = result.get("monitor") or "loss"
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

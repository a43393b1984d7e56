"""Write report.html: what a run, or a sweep, was and what came of it, as one page for a browser."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dltrain.commands import check_out, parse, written
from dltrain.commands.evaluate import unchanged
from dltrain.errors import ConfigError, UserError, must, nearest, real, whole
from dltrain.lines import read_lines
from dltrain.report import runs, sweeps
from dltrain.report.terminal import Terminal
from dltrain.run import Run, find, is_default

NAME = "report.html"
LARGEST = 2**23  # bytes of a file of samples


@dataclass
class Options:
    """What `dltrain report` takes."""

    run: str | None = None  # a folder, the beginning of a run's name, last or best
    runs: list[str] = field(default_factory=list)  # several, as compare takes them: a page for each, in its folder
    sweep: str | None = None  # the name of a sweep
    out: str | None = None  # left out: report.html in the folder of the run or sweep; - is standard output
    trust: list[str] = field(default_factory=list)  # modules of your own that the run's network comes from
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Write the page, or the pages."""
    options = parse(words, Options)
    given = [name for name in ("run", "runs", "sweep") if getattr(options, name)]
    must(len(given) == 1, "run", "given, or runs, or sweep, and one of them alone", given)
    root = Path(options.output_root).expanduser()
    if options.runs:
        must(options.out is None, "out", "left out with runs, each of which has a page of its own", options.out)
        return _each(options)
    sweep = options.sweep is not None
    folder = _named(str(options.sweep), root) if sweep else find(str(options.run), options.output_root).folder
    out = options.out or str(folder / NAME)
    check_out(out)
    text = sweep_page(folder) if sweep else run_page(folder, tuple(options.trust))
    with written(out) as file:
        file.write(text)
    if out != "-":
        print(f"wrote {out}")
    return 0


def _each(options: Options) -> int:
    """Write a page into the folder of each run."""
    from dltrain.commands.compare import named

    found = {run.folder.resolve(): run for word in options.runs for run in named(word, options.output_root)}
    for run in found.values():
        with written(str(run.folder / NAME)) as file:
            file.write(run_page(run.folder, tuple(options.trust)))
    print(f"wrote {NAME} of {len(found):,} run{'s' * (len(found) != 1)}")
    return 0


def _named(name: str, root: Path) -> Path:
    """The folder of a sweep; raises ConfigError if there is none of that name."""
    known = [path.parent.name for path in sorted((root / "sweeps").glob("*/trials.jsonl"))]
    if name not in known:
        raise ConfigError(f"sweep must be the name of a sweep in {root / 'sweeps'}, got {name}{nearest(name, known)}")
    return root / "sweeps" / name


def write(folder: Path, page: Callable[[Path], str], terminal: Terminal) -> None:
    """Write the page (`run_page`, `sweep_page`) of what has just ended; what goes wrong with it is one warning."""
    try:
        text = page(folder)
        with written(str(folder / NAME)) as file:
            file.write(text)
    except Exception as error:
        terminal.warn(f"{NAME} was not written ({' '.join(f'{type(error).__name__}: {error}'.split())})")


def write_sweep(folder: Path) -> None:
    """Write the page of a sweep that has just ended, and that of its best trial; as `write`."""
    terminal, scored = Terminal(), _sweep(folder).scored
    if scored:
        best = folder.parent.parent / scored[0].run
        if not (best / NAME).exists():
            write(best, _trained_here, terminal)
        write(folder, sweep_page, terminal)


def _trained_here(folder: Path) -> str:
    """As `run_page`, of a run whose modules need not be trusted anew; raises ConfigError for a damaged one."""
    return run_page(folder, tuple(Run(folder).config()["trust"]))


def run_page(folder: Path, trust: tuple[str, ...] = ()) -> str:
    """The page of a run, from its files and, where its predictions were not kept, its data.

    Raises ConfigError if config.yaml cannot be read.
    """
    run = Run(folder)
    files = runs.Files(
        run.name,
        run.recorded(),
        _commands(run),
        _text(folder / "config.yaml"),
        _json(folder / "environment.json"),
        _json(folder / "data.json"),
        run.result(),
        [record for record in read_lines(folder / "metrics.jsonl") if whole(record.get("step"), 0)],
        _curves(run, trust),
        {path.name: path.read_bytes() for path in sorted((folder / "samples").glob("epoch-*")) if _readable(path)},
    )
    return runs.page(files).html()


def _curves(run: Run, trust: tuple[str, ...]) -> dict[str, Any]:
    """What is drawn of predictions, as the run has kept it; a run that was to have no page is scored again.

    If that cannot be done, the reason is there as `missing`.
    """
    if run.config().get("report", True) or run.result().get("status") != "finished":
        return _json(run.folder / "curves.json")
    try:
        unchanged(run, trust)
        from dltrain.bundle import Model
        from dltrain.reading import Views

        model, views = Model.load(run.bundle, trust), Views.of_runs(run.members(), trust)
        split = "test" if len(views.rows("test")["target"]) else "valid"
        rows = views.rows(split)
        return {"split": split} | model.task.curves(model.outputs(rows["features"], rows["target"]), rows)
    except UserError as error:
        return {"missing": str(error)}


def sweep_page(folder: Path) -> str:
    """The page of a sweep, from its folder and those of its runs."""
    return sweeps.page(_sweep(folder)).html()


def _sweep(folder: Path) -> sweeps.Sweep:
    """What a sweep's files say: of every trial its last line."""
    lines = [line for line in read_lines(folder / "trials.jsonl") if whole(line.get("trial"), 1)]
    last = {line["trial"]: line for line in lines}
    lines = [last[number] for number in sorted(last)]
    settings = sweeps.varied([[str(word) for word in line.get("words") or ()] for line in lines])
    trials = [_trial(*one, folder) for one in zip(lines, settings, strict=True)]
    judged = next((line for line in lines if isinstance(line.get("values"), dict) and line["values"]), {})
    metrics, better = [*map(str, judged.get("values") or ())], [*map(str, judged.get("better") or ())]
    home = folder.parent.parent
    where = [] if is_default(home) else [f"output_root={home}"]
    uses = ("compare", "runs"), ("report", "runs"), ("report", "sweep")
    commands = [shlex.join(["dltrain", verb, f"{what}={folder.name}", *where]) for verb, what in uses]
    return sweeps.Sweep(folder.name, trials, metrics or ["metric"], better[:1] == ["max"], commands)


def _trial(line: dict[str, Any], settings: dict[str, str], folder: Path) -> sweeps.Trial:
    """What a line of trials.jsonl and the folder of its run say."""
    from dltrain.commands.compare import scores

    name = Path(str(line.get("run") or "")).name  # never outside
    run = Run(folder.parent.parent / name)
    values = line["values"] if isinstance(line.get("values"), dict) else {}
    known = scores(run) if name else {}
    return sweeps.Trial(
        number=line["trial"],
        settings=settings,
        status=str(line.get("status") or "unfinished"),
        message=str(line.get("message") or ""),
        run=name,
        href=f"../../{name}/{NAME}" if name and (run.folder / NAME).is_file() else "",
        scores=known | {str(key): float(value) for key, value in values.items() if real(value)},
        seconds=float(line["seconds"]) if real(line.get("seconds")) else 0.0,
    )


def _commands(run: Run) -> list[str]:
    """What to type to use a run, and to make it again."""
    from dltrain.commands.train import predict_command

    return [
        *(predict_command(run), run.command("evaluate"), run.command("reproduce")),
        shlex.join(["dltrain", *run.words()]),
    ]


def _readable(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file says; {} of one that is not there, or is damaged."""
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

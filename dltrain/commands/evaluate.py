"""The metrics of a finished run, on its own test rows or on a file."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dltrain.commands import check_out, parse, written
from dltrain.errors import DataError
from dltrain.opening import digest, identity
from dltrain.report.terminal import Terminal
from dltrain.run import FORMAT, Run, find

if TYPE_CHECKING:
    from dltrain.bundle import Model


@dataclass
class Options:
    """What `dltrain evaluate` takes."""

    run: str  # a folder, the beginning of a run's name, last or best
    input: str | None = None  # a file of rows with the target; left out: the run's own test rows
    out: str | None = None  # where the metrics go as JSON; - is standard output
    trust: list[str] = field(default_factory=list)  # modules of your own that the run's network comes from
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Show the metrics, and write them if `out` is set."""
    options = parse(words, Options)
    check_out(options.out or "-", options.input or "-")
    found = find(options.run, options.output_root)
    bundle, trust = found.bundle, tuple(options.trust)
    own = options.input is None
    if own:
        unchanged(found, trust, "; name a file by input=")
    from dltrain.bundle import Model  # torch, pandas and scikit-learn: after what was typed is known to be right

    model = Model.load(bundle, trust)
    metrics, rows = _own_test_rows(model, found, trust) if own else model.evaluate_file(str(options.input))
    source = "its test rows" if own else options.input
    text = json.dumps({"format": FORMAT, "run": found.name, "input": source, "rows": rows, **metrics}, indent=2)
    if options.out == "-":
        print(text)
        return 0
    Terminal().metrics(f"{found.name} on {source}, {rows:,} rows", metrics)
    if options.out is not None:
        with written(options.out) as file:
            file.write(text + "\n")
        print(f"wrote {options.out}")
    return 0


def unchanged(run: Run, trust: tuple[str, ...], advice: str = "") -> None:
    """Raise DataError if a run's data is not what it was trained on, ConfigError if it may not be read here."""
    config = run.trusted(trust)
    if digest(identity(config)) != config["hash"]:
        what = config["data"].get("path") or run.folder / "config.yaml"
        raise DataError(f"{what}: has changed since run {run.name} was trained{advice}")


def _own_test_rows(model: "Model", run: Run, trust: tuple[str, ...]) -> tuple[dict[str, float], int]:
    """Read the run's data again, split as it was, and score the test rows."""
    from dltrain.reading import Views

    test = Views.of_runs(run.members(), trust).rows("test")
    return model.score(test["features"], test), len(test["target"])

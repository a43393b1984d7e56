"""Apply a finished run to a new file: one row of predictions a row, in the order of the file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dltrain.commands import parse
from dltrain.run import find


@dataclass
class Options:
    """What `dltrain predict` takes."""

    run: str  # a folder, the beginning of a run's name, last or best
    input: str  # a file of rows; - is standard input
    out: str = "predictions.csv"  # where predictions go; - is standard output
    rows: int = 65536  # rows read at a time
    trust: list[str] = field(default_factory=list)  # modules of your own that the run's network comes from
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Write `row`, id columns, then `prediction` (and `p_<class>`), or one column a target."""
    options = parse(words, Options)
    bundle = find(options.run, options.output_root).bundle
    from dltrain.bundle import Model  # torch, pandas and scikit-learn: after what was typed is known to be right

    model = Model.load(bundle, tuple(options.trust))
    written = 0
    with _written(options.out) as out:
        for frame in model.predict_file(options.input, options.rows):
            frame.to_csv(out, index=False, header=not written)
            written += len(frame)
    if options.out != "-":
        print(f"wrote {options.out} ({written:,} rows)")
    return 0


@contextmanager
def _written(path: str) -> Iterator[IO[str]]:
    """A text file that is there whole or not at all; `-` is standard output."""
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    final = Path(path).expanduser()
    part = final.with_name(f".{final.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)

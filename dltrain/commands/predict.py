"""Apply a finished run to a new file: one row of predictions a row, in the order of the file."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dltrain.commands import check_out, parse, written
from dltrain.errors import must
from dltrain.launch import external, together
from dltrain.run import find

if TYPE_CHECKING:
    import pandas as pd

    from dltrain.distributed.single import Single


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
    must(options.rows > 0, "rows", "at least 1", options.rows)
    check_out(options.out, options.input)
    must(options.input != "-" or not external(), "input", "a file where several processes read it", options.input)
    bundle = find(options.run, options.output_root).bundle
    with together(["predict", *words]) as ranks:
        done = _predict(options, bundle, ranks)
    if options.out != "-" and ranks.rank == 0:
        print(f"wrote {options.out} ({done:,} rows)")
    return 0


def _predict(options: Options, bundle: Path, ranks: "Single") -> int:
    """Write the predictions, on rank 0, whichever rank made them; returns the number of rows."""
    from dltrain.bundle import Model  # torch, pandas and scikit-learn: after what was typed is known to be right

    model, done = Model.load(bundle, tuple(options.trust)), 0

    def chunks() -> "Iterator[tuple[pd.DataFrame, int]]":
        nonlocal done
        for frame, done in model.frames(options.input, options.rows):
            yield frame, done
            done += len(frame)

    def lines(chunk: "tuple[pd.DataFrame, int]") -> str:
        frame, first = chunk
        source = "standard input" if options.input == "-" else Path(options.input).name
        text: str = model.predict(frame, source, first).to_csv(index=False, header=not first)
        return text

    with written(options.out if ranks.rank == 0 else os.devnull) as out:
        for text in ranks.in_turn(chunks(), lines):
            out.write(text)
    return done

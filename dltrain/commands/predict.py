"""Apply a finished run to a new file: one row of predictions a row, in the order of the file."""

from dataclasses import dataclass, field

from dltrain.commands import check_out, parse, written
from dltrain.errors import must
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
    must(options.rows > 0, "rows", "at least 1", options.rows)
    check_out(options.out, options.input)
    bundle = find(options.run, options.output_root).bundle
    from dltrain.bundle import Model  # torch, pandas and scikit-learn: after what was typed is known to be right

    model = Model.load(bundle, tuple(options.trust))
    done = 0
    with written(options.out) as out:
        for frame in model.predict_file(options.input, options.rows):
            frame.to_csv(out, index=False, header=not done)
            done += len(frame)
    if options.out != "-":
        print(f"wrote {options.out} ({done:,} rows)")
    return 0

"""Make new rows, images or texts with a finished run that has learnt to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dltrain.commands import check_out, parse, written
from dltrain.errors import ConfigError, must, nearest
from dltrain.report import samples
from dltrain.run import find

if TYPE_CHECKING:
    from dltrain.bundle import Model


@dataclass
class Options:
    """What `dltrain sample` takes."""

    run: str  # a folder, the beginning of a run's name, last or best
    n: int = 16  # how many
    prompt: str | None = None  # what a text begins with
    length: int | None = None  # tokens of a text behind its prompt (default 256)
    temperature: float | None = None  # below 1 prefers likelier tokens, 0 takes the likeliest (default 1)
    top_k: int | None = None  # tokens from the likeliest so many alone
    label: str | None = None  # class of the rows, where the run was told classes
    out: str | None = None  # a .csv of rows, a .png of images; - is standard output; left out: by what is made
    seed: int = 0  # of what is drawn
    trust: list[str] = field(default_factory=list)  # modules of your own that the run's network comes from
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Write `samples.csv`, or `samples.png` for images; texts are shown."""
    options = parse(words, Options)
    must(options.n >= 1, "n", "at least 1", options.n)
    must(0 <= options.seed < 2**64, "seed", f"a whole number from 0 to {2**64 - 1}", options.seed)
    bundle = find(options.run, options.output_root).bundle
    from dltrain.bundle import Model  # torch, pandas and scikit-learn: after what was typed is known to be right

    model = Model.load(bundle, tuple(options.trust))
    told = {key: getattr(options, key) for key in ("prompt", "length", "temperature", "top_k")}
    told["label"] = _code(model, options.label)
    rows = model.sample(options.n, options.seed, **{key: value for key, value in told.items() if value is not None})
    shape = model.preparation.shape_in
    kind = samples.kind(rows, shape)
    out = options.out or ("-" if kind == ".txt" else f"samples{kind}")
    check_out(out, "-")
    if out.endswith(".png"):
        must(len(shape) == 3, "out", "a .csv for rows that are no images", out)
        samples.draw(rows, shape, Path(out))
    elif out == "-" and kind == ".txt":
        print(samples.texts(rows), end="")
    else:
        with written(out) as file:
            file.write(rows.to_csv(index=False))
    if out != "-":
        print(f"wrote {out} ({len(rows):,} samples)")
    return 0


def _code(model: "Model", label: str | None) -> int | None:
    """The number of a class; raises ConfigError for one that the run does not know."""
    known = model.preparation.target.classes
    if label is None:
        return None
    if not known:
        raise ConfigError(f"label must be left out: the run was told no classes, got {label}")
    if label not in known:
        raise ConfigError(f"label must be a class of the run, got {label}{nearest(label, known)}")
    return known.index(label)

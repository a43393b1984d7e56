"""Does TPE find good settings sooner than random search? On a table of 2,000 trained networks; nothing is trained.

    python benchmarks/search.py                                  # 60 trials, 100 seeds: two minutes on one core
    python benchmarks/search.py multivariate=true group=true     # with other arguments of Optuna's TPESampler
    python benchmarks/search.py --record                         # train the table again: half an hour on one core

The table holds every combination of SPACE, which was chosen before any of them was trained: residual networks on
scikit-learn's digits, ten epochs each, seed 0; a trial's value is the validation loss of its best epoch. The searches
are those of `dltrain -m sweep=random` and `sweep=tpe`, over SWEPT; the learning rate of the table is that of the middle
of a cell, a tenth of the interval on its logarithmic scale, and stands for the whole cell. A trial that falls where one
fell before costs a trial. Regret is the least value that a search has seen, less the least of the table.

Both searches of a seed are paired; p is of Wilcoxon's signed-rank test that TPE's regret is the smaller. The exit code
is 1 where the median regret of TPE is above 0.6 of that of random search, or p is not below 0.01.
"""

import argparse
import csv
import gzip
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy.stats import wilcoxon

from dltrain.compose import compose
from dltrain.sweeps.records import Line
from dltrain.sweeps.space import Space
from dltrain.sweeps.study import Study

TABLE = Path(__file__).with_name("search.csv.gz")
LOWEST, HIGHEST, CELLS = 1e-4, 1e-1, 10  # of the learning rate
SPACE: dict[str, list[Any]] = {
    "optimizer.lr": [float(f"{LOWEST * (HIGHEST / LOWEST) ** ((cell + 0.5) / CELLS):.4g}") for cell in range(CELLS)],
    "model.width": [16, 32, 64, 128, 256],
    "model.depth": [1, 2, 3, 4],
    "model.dropout": [0.0, 0.1, 0.2, 0.3, 0.4],
    "activation": ["relu", "tanh"],
}
SWEPT = [
    f"optimizer.lr=tag(log,interval({LOWEST},{HIGHEST}))",
    "model.width=16,32,64,128,256",
    "model.depth=range(1,5)",
    "model.dropout=range(0.0,0.5,0.1)",
    "activation=relu,tanh",
]
WORDS = ["data=digits", "model=resmlp", "epochs=10", "monitor=valid/loss", "trainer.threads=1", "trainer.device=cpu"]
SCORES = ["loss", "accuracy"]  # on validation rows, at the best epoch
RATIO, P = 0.6, 0.01  # what must be held


def search(values: np.ndarray, how: str, seed: int, trials: int) -> np.ndarray:
    """The least value seen after each trial of a sweep."""
    space = Space(OverridesParser.create().parse_overrides(SWEPT))
    study = Study(Path(), how, seed, space, defaults())
    lines: dict[int, Line] = {}
    seen = np.empty(trials)
    for number in range(1, trials + 1):
        params = study.propose(number, lines, running=())
        seen[number - 1] = value = values[place(params)]
        about = {"trial": number, "exit": 0, "message": "", "run": None, "status": "finished"}
        lines[number] = {**about, "params": params, "values": {"valid/loss": value}, "better": ["min"]}
    return np.minimum.accumulate(seen)


@cache
def defaults() -> dict[str, Any]:
    """The config in which the sweep's settings have the values that ship."""
    return compose(WORDS)


def place(params: dict[str, str]) -> tuple[int, ...]:
    """Where the table has what was drawn."""
    cell = int(CELLS * math.log(float(params["optimizer.lr"]) / LOWEST) / math.log(HIGHEST / LOWEST))
    known = {key: [str(value) for value in values].index for key, values in SPACE.items()}
    known |= {"optimizer.lr": lambda _: min(cell, CELLS - 1), "model.dropout": lambda rate: round(float(rate) * 10)}
    return tuple(known[key](params[key]) for key in SPACE)


def read(path: Path) -> np.ndarray:
    """The value of every combination, one axis a setting."""
    with gzip.open(path, "rt", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [[line[key] for key in SPACE] for line in lines] == [[str(v) for v in p.values()] for p in points()], path
    return np.array([float(line["loss"]) for line in lines]).reshape([len(known) for known in SPACE.values()])


def record(path: Path) -> None:
    """Train every combination, as `dltrain` would, and write the table; goes on where it was stopped."""
    plain = path.with_suffix("")
    done = max(0, sum(1 for _ in plain.open()) - 1) if plain.is_file() else 0
    base = {name: compose([*WORDS, f"activation={name}"]) for name in SPACE["activation"]}
    with plain.open("a", newline="") as file, once():
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow([*SPACE, *SCORES])
        for point in points()[done:]:
            config = deepcopy(base[point["activation"]])
            for key in (key for key in SPACE if "." in key):
                group, _, name = key.partition(".")
                config[group][name] = point[key]
            scores = trained(config)
            writer.writerow([*point.values(), *(f"{scores[name]:.6g}" for name in SCORES)])
            file.flush()
    with path.open("wb") as packed, gzip.GzipFile("", "wb", mtime=0, fileobj=packed) as whole:
        whole.write(plain.read_bytes())
    plain.unlink()


def points() -> list[dict[str, Any]]:
    """Every combination of SPACE, in the order of the table."""
    return [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())]


@contextmanager
def once() -> Iterator[None]:
    """The rows, which are those of every combination, are split and scaled once."""
    from dltrain.data.bundled import Bundled

    load, kept = Bundled.load, []

    def loaded(part: Bundled) -> Any:
        if not kept:
            kept.append(load(part))
        return kept[0]

    with mock.patch.object(Bundled, "load", loaded):
        yield


def trained(config: dict[str, Any]) -> dict[str, float]:
    """The validation metrics of one run of dltrain, trained in this process and removed."""
    from dltrain.opening import opened
    from dltrain.report.terminal import Terminal
    from dltrain.worker import work

    with tempfile.TemporaryDirectory() as folder, opened({**config, "output_root": folder}, []) as (run, name, whole):
        valid: dict[str, float] = work(run, name, whole, Terminal(quiet=True))["valid"]
    return valid


def compare(options: argparse.Namespace) -> bool:
    """Print the regret of both searches; true if TPE's is as small as it must be."""
    values = read(TABLE)
    settings = {key: json.loads(value) for key, _, value in (word.partition("=") for word in options.settings)}
    with mock.patch("optuna.samplers.TPESampler", partial(optuna.samplers.TPESampler, **settings)):
        regret = {
            how: np.array([search(values, how, seed, options.trials) for seed in range(options.seeds)]) - values.min()
            for how in ("random", "tpe")
        }
    print(f"{values.size:,} combinations, losses from {values.min():.4f} to {values.max():.4f}, ", end="")
    print(f"median {np.median(values):.4f}; {options.seeds} seeds")
    print("trials  median regret  of random  ratio  mean ratio  p (Wilcoxon)  TPE lower  equal")
    for trials in sorted({*range(20, options.trials, 20), options.trials}):
        tpe, other = (regret[how][:, trials - 1] for how in ("tpe", "random"))
        ratio, means = float(np.median(tpe) / np.median(other)), float(tpe.mean() / other.mean())
        p = float(wilcoxon(tpe, other, alternative="less").pvalue)
        lower, equal = (tpe < other).mean(), (tpe == other).mean()
        print(f"{trials:>6}  {np.median(tpe):>13.5f}  {np.median(other):>9.5f}  {ratio:>5.3f}  ", end="")
        print(f"{means:>10.3f}  {p:>12.1e}  {lower:>9.0%}  {equal:>5.0%}")
    return ratio <= RATIO and p < P


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="train the table")
    parser.add_argument("--trials", type=int, default=60, help="of a search")
    parser.add_argument("--seeds", type=int, default=100, help="searches of each kind")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of Optuna's TPESampler")
    options = parser.parse_args()
    if options.record:
        record(TABLE)
        return 0
    return int(not compare(options))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

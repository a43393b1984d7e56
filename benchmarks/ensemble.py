"""Ensembles of a sweep against the member chosen on validation rows, on test rows of scikit-learn's five tables.

python benchmarks/ensemble.py [--seeds 5] [--epochs 30] [--root FOLDER]

Twelve small networks a table and seed, which draws the split as well as the weights. The loss is the log loss, and for
diabetes the error in standard deviations of the target in test rows. With a root, what has been trained is not again.
"""

import argparse
import contextlib
import io
import itertools
import json
import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import torch

from dltrain import cli
from dltrain.commands.train import train
from dltrain.compose import compose

TABLES = ("digits", "wine", "breast_cancer", "iris", "diabetes")
TRIALS = [  # twelve
    (f"optimizer.lr={lr}", f"model.hidden={hidden}", f"model.dropout={dropout}")
    for lr, hidden, dropout in itertools.product((0.01, 0.003), ("[32]", "[128]", "[64,64]"), (0.0, 0.2))
]
METHODS = ("greedy", "average", "stack")


def result(root: Path, name: str) -> dict:
    return json.loads((root / name / "result.json").read_text(encoding="utf-8"))


def measured(root: Path, table: str, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Test metrics of the member chosen on validation rows, and of each kind of ensemble, of one sweep."""
    names = [f"{table}-{seed}-{number:02}" for number in range(len(TRIALS))]
    for name, trial in zip(names, TRIALS, strict=True):
        words = [f"data={table}", f"seed={seed}", f"epochs={epochs}", "batch_size=32", "trainer.threads=1"]
        words += ["trainer.save_every=1h", *trial, f"name={name}", f"output_root={root}"]
        if not (root / name / "result.json").is_file():
            train(compose(words), words)
    trials = [result(root, name) for name in names]
    monitor, direction = trials[0]["monitor"], trials[0]["direction"]
    best = (min if direction == "min" else max)(trials, key=lambda trial: trial["valid"][monitor])
    found = {"chosen": best["test"]}
    for method in METHODS:
        name = f"{table}-{seed}-{method}"
        words = [f"runs={','.join(names)}", f"method={method}", f"name={name}", f"output_root={root}", "fresh=true"]
        assert cli.run(["ensemble", *words]) == 0
        found[method] = result(root, name)["test"]
    return {side: losses(test) for side, test in found.items()}


def losses(test: dict[str, float]) -> dict[str, float]:
    """What a smaller one of is better, and what a larger one: the error is in standard deviations."""
    if "r2" in test:
        return {"loss": math.sqrt(1 - test["r2"]), "right": test["r2"]}
    return {"loss": test["log_loss"], "right": test["accuracy"]}


def shown(values: list[float]) -> str:
    """Mean and standard error."""
    return f"{fmean(values):.4f} ± {stdev(values) / math.sqrt(len(values)):.4f}"


def line(name: str, sides: dict[str, list[float]]) -> str:
    """A row of the table: each side, and the difference of greedy to the member chosen, seed by seed."""
    gap = [ours - chosen for ours, chosen in zip(sides["greedy"], sides["chosen"], strict=True)]
    return f"| {name} | {' | '.join(map(shown, [*sides.values(), gap]))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--root", type=Path, help="a folder to keep the runs in")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, float]]]] = {table: defaultdict(list) for table in TABLES}
    with tempfile.TemporaryDirectory() as folder:
        for seed, table in itertools.product(range(asked.first, asked.first + asked.seeds), TABLES):
            with contextlib.redirect_stdout(io.StringIO()):
                sides = measured(asked.root or Path(folder), table, seed, asked.epochs)
            for side, values in sides.items():
                found[table][side].append(values)
            print(f"{table}, seed {seed}: loss {sides['chosen']['loss']:.4f}, greedy {sides['greedy']['loss']:.4f}")
            sys.stdout.flush()
    for measure, told in {"loss": "log loss, or error in deviations", "right": "accuracy, or R2"}.items():
        print(f"\n| {told} | chosen on validation rows | {' | '.join(METHODS)} | greedy less chosen |")
        print("| --- | " + " | ".join(["---:"] * 5) + " |")
        each = {t: {side: [one[measure] for one in values] for side, values in found[t].items()} for t in TABLES}
        for table, sides in each.items():
            print(line(table, sides))
        mean = {side: [fmean(each[t][side][k] for t in TABLES) for k in range(asked.seeds)] for side in each["iris"]}
        print(line("mean of five", mean))


if __name__ == "__main__":
    main()

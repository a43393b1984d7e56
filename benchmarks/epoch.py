"""One training epoch of dltrain against the same epoch written by hand; prints ratios of time, below 1 is faster.

    python benchmarks/epoch.py [--batch 128 1024] [--rounds 9] [--epochs 2] [--valid 1000] [--parts]

An MLP 40-256-256-10 on 60,000 rows of numbers and 10 classes, float32, one thread. All contestants live in one process,
read the same tensors and take turns (in a rotating order), so that what else the machine does hits them alike.

ours       a run as `dltrain data=csv ...` makes it: composed from YAML, read from a CSV, trained by Training.train_epoch.
           In the time: the epoch's order and gather, every step with its check for non-finite gradients, validation
           metrics every epoch on --valid rows, the moving line on a terminal (its bytes go to /dev/null), metrics.jsonl
           with its fsync, checkpoints as by default (at every improvement: about every epoch here). Out of it: starting,
           reading the CSV, the last checkpoint's wait for the disk (its CPU time is in).
           exact=false, the default, has fused optimizer kernels; exact=true has torch's default ones.
textbook   TensorDataset, DataLoader(shuffle=True), torch.optim.AdamW as it comes, cross_entropy, zero_grad, backward, step.
best       what we can write without any feature: rows permuted by one gather an epoch, batches as views, fused AdamW.
best-plain the same with AdamW's default kernels: what exact=true is made of.

How to read: each cell is the median over rounds of ours / theirs within a round, then (min-max). `cpu` is CPU time of
the whole process, background threads included; `wall` also contains what other processes took from us. `steps` are the
same without the evaluation, which the loops written by hand do not have. --parts says where our CPU time goes.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from dltrain.compose import compose
from dltrain.report.terminal import Terminal
from dltrain.run import opened
from dltrain.train import Training
from dltrain.worker import work

ROWS, TEST = 60_000, 100  # of training, of the test (read, not used)
N_IN, WIDTH, CLASSES = 40, 256, 10


def write_csv(path: Path, rows: int) -> None:
    """Rows of numbers, of which a noisy linear map picks the class."""
    draw = np.random.default_rng(0)
    features = draw.standard_normal((rows, N_IN)).astype(np.float32)
    scores = features @ draw.standard_normal((N_IN, CLASSES)) + 0.5 * draw.standard_normal((rows, CLASSES))
    frame = pd.DataFrame(features, columns=[f"x{i}" for i in range(N_IN)])
    frame.assign(y=[f"c{k}" for k in scores.argmax(1)]).to_csv(path, index=False, float_format="%.4f")


class Ours:
    """A run that dltrain has built, at the point where it would train."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.spent: dict[str, float] = {}
        for part in ("evaluate", "save"):
            setattr(training, part, self._clocked(part, getattr(training, part)))
        training.started = time.monotonic()
        training.next_save = training.started + training.trainer.save_every.number

    def _clocked(self, part: str, verb: Callable) -> Callable:
        def clocked(*given: Any) -> Any:
            before = time.thread_time()
            try:
                return verb(*given)
            finally:
                self.spent[part] = self.spent.get(part, 0) + time.thread_time() - before

        return clocked

    def epoch(self) -> None:
        torch.use_deterministic_algorithms(True)  # as the worker has set it; the loops by hand are spared
        self.training.train_epoch()
        torch.use_deterministic_algorithms(False)

    def settle(self) -> None:
        self.training.checkpoints.wait()


def run(words: list[str], instead: Callable[[Ours], None]) -> None:
    """A run by dltrain's own worker, in which something else stands where it would train."""
    with ExitStack() as stack:
        opened_run, name, config = stack.enter_context(opened(compose(words), words))
        stack.enter_context(mock.patch.object(Training, "train", lambda training: instead(Ours(training))))
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        console = Console(file=nowhere, force_terminal=True, force_interactive=True, width=100)
        work(opened_run, name, config, Terminal(console))


class ByHand:
    """A loop written by hand."""

    def __init__(self, rows: dict[str, Tensor], batch_size: int, loader: bool, fused: bool | None) -> None:
        self.features, self.target, self.batch_size = rows["features"], rows["target"], batch_size
        torch.manual_seed(0)
        layers = [nn.Linear(N_IN, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=fused)
        dataset = TensorDataset(self.features, self.target)
        self.loader = DataLoader(dataset, batch_size, shuffle=True) if loader else None

    def epoch(self) -> None:
        model, optimizer = self.model, self.optimizer
        for features, target in self.loader or self.batches():
            optimizer.zero_grad()
            cross_entropy(model(features), target).backward()
            optimizer.step()

    def batches(self) -> Any:
        order = torch.randperm(len(self.features))
        features, target = self.features.index_select(0, order), self.target.index_select(0, order)
        return zip(features.split(self.batch_size), target.split(self.batch_size), strict=True)

    def settle(self) -> None:
        pass


def measure(contestants: dict[str, Any], options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds an epoch of every contestant in every round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for contestant in contestants.values():  # once to warm up
        contestant.epoch()
        contestant.settle()
        if isinstance(contestant, Ours):
            contestant.spent.clear()
    names = list(contestants)
    for _ in range(options.rounds):
        random.shuffle(names)
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(options.epochs):
                contestants[name].epoch()
            wall = time.perf_counter() - wall
            contestants[name].settle()
            times[name].append((wall / options.epochs, (time.process_time() - cpu) / options.epochs))
    return times


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.2f}-{max(values):.2f})"


def compare(batch_size: int, options: argparse.Namespace, folder: Path) -> list[str]:
    """The lines of the table for one batch size."""
    words = [
        "data=csv",
        f"data.path={folder / 'rows.csv'}",
        "data.target=y",
        f"data.split.test={TEST}",
        "epochs=100000",
    ]
    words += [
        f"data.split.valid={options.valid}",
        f"batch_size={batch_size}",
        "trainer.device=cpu",
        "trainer.threads=1",
    ]
    words += [f"output_root={folder / str(batch_size)}"]
    found: list[str] = []

    def with_both(fused: Ours, plain: Ours) -> None:
        rows = fused.training.train_rows
        assert len(rows["target"]) == ROWS
        assert len(fused.training.valid_rows["target"]) == options.valid
        loops = {
            "textbook": ByHand(rows, batch_size, loader=True, fused=None),
            "best": ByHand(rows, batch_size, loader=False, fused=True),
            "best-plain": ByHand(rows, batch_size, loader=False, fused=None),
        }
        runs = {"false": fused, "true": plain}
        times = measure({**{f"ours {exact}": ours for exact, ours in runs.items()}, **loops}, options)
        found.extend(lines(batch_size, options, runs, times))

    def with_one(fused: Ours) -> None:
        run([*words, "exact=true"], lambda plain: with_both(fused, plain))

    run([*words, "exact=false"], with_one)
    return found


def lines(batch_size: int, options: argparse.Namespace, runs: dict[str, Ours], times: dict[str, Any]) -> list[str]:
    found = []
    for exact, ours in runs.items():
        mine = times[f"ours {exact}"]
        epochs = options.rounds * options.epochs
        evaluation = ours.spent.get("evaluate", 0) / epochs
        for other in ("textbook", "best", "best-plain"):
            walls = [a[0] / b[0] for a, b in zip(mine, times[other], strict=True)]
            cpus = [a[1] / b[1] for a, b in zip(mine, times[other], strict=True)]
            steps = [(a[1] - evaluation) / b[1] for a, b in zip(mine, times[other], strict=True)]
            name = f"{batch_size:>5}  {exact:<5}  {other:<10}"
            found.append(f"{name}  {spread(cpus):<20}  {spread(walls):<20}  {spread(steps):<20}")
        if options.parts:
            cpu = statistics.median(cpu for _, cpu in mine)
            parts = "  ".join(f"{part} {seconds / epochs / cpu:.1%}" for part, seconds in ours.spent.items())
            saved = sum(1 for line in ours.training.checkpoints.folder.glob("step-*"))
            found.append(f"       {cpu * 1e3:.1f} ms an epoch; {parts} of it; {saved} checkpoints kept")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a turn")
    parser.add_argument("--valid", type=int, default=1000, help="validation rows of ours")
    parser.add_argument("--parts", action="store_true", help="say where our CPU time goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder) / "rows.csv", ROWS + options.valid + TEST)
        print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; one thread")
        print(
            f"{ROWS:,} training rows, {options.valid:,} validation rows; {options.rounds} rounds of {options.epochs} epochs"
        )
        print(f"batch  exact  {'against':<10}  {'cpu':<20}  {'wall':<20}  {'cpu, steps':<20}", flush=True)
        for batch_size in options.batch:
            print("\n".join(compare(batch_size, options, Path(folder))), flush=True)


if __name__ == "__main__":
    main()

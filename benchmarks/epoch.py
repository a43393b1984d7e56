"""One training epoch of dltrain against the same epoch written by hand: ratios of time, below 1 is faster.

    python benchmarks/epoch.py [--batch 128 1024] [--rounds 15] [--epochs 1] [--valid 1000]

An MLP 40-256-256-10 on 60,000 rows of numbers and 10 classes, float32, one thread. All contestants live in one process,
read the same tensors and take turns in a random order, so that whatever else the machine does hits them alike.

ours        A run by dltrain's own worker (YAML composed, CSV read and split), trained by Training.epoch. In the
            time: the order and gather of the epoch, every step with its check for gradients that are not finite,
            validation metrics every epoch on --valid rows, the moving line of a terminal whose bytes go to /dev/null,
            metrics.jsonl, and checkpoints as by default (at every improvement, else every 30 s). Not in it: the start,
            reading the CSV, and waiting for the disk after the last epoch of a turn. exact=false, the default, has
            fused optimizer kernels; exact=true has torch's default ones.
textbook    TensorDataset, DataLoader(shuffle=True), torch.optim.AdamW as it comes, cross_entropy, zero_grad, backward,
            step. No validation, nothing saved, nothing shown; the other two neither.
best        The best loop without features: rows permuted by one gather an epoch, batches as views, fused AdamW.
best plain  The same with AdamW's default kernels, which is what exact=true has.

How to read: a cell is the median over rounds of ours / theirs within a round, and (min-max). `thread` is CPU time of
the thread that trains: the robust one, and what the wall shows on an idle machine. `process` adds what the thread that
writes checkpoints takes from another core. `wall` also has what other processes took away. Validation costs a forward
pass and the metrics: its share is printed, and grows with --valid. Nothing is asserted; the exit code is 0.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
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
from dltrain.course import alone
from dltrain.opening import opened
from dltrain.report.terminal import Terminal
from dltrain.train import Training
from dltrain.worker import work

ROWS, TEST = 60_000, 100  # of training, of the test (read, not used)
N_IN, WIDTH, CLASSES = 40, 256, 10
CLOCKS = {"thread": time.thread_time, "process": time.process_time, "wall": time.perf_counter}
PROCESS = list(CLOCKS).index("process")


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
        self.spent = defaultdict[str, float](float)  # seconds of the training thread in what is not a step
        self.calls = Counter[str]()
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
                self.spent[part] += time.thread_time() - before
                self.calls[part] += 1

        return clocked

    def epoch(self) -> None:
        torch.use_deterministic_algorithms(True)  # as the worker has set it; the loops by hand are spared
        alone(self.training.epoch())
        torch.use_deterministic_algorithms(False)

    def settle(self) -> None:
        self.training.checkpoints.wait()


def run(words: list[str], instead: Callable[[Ours], None]) -> None:
    """A run by dltrain's own worker, in which something else stands where it would train."""
    with ExitStack() as stack:
        opened_run, name, config = stack.enter_context(opened(compose(words), words))
        stack.enter_context(mock.patch.object(Training, "course", lambda training: instead(Ours(training)) or ()))
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


def measure(contestants: dict[str, Any], options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Seconds of CLOCKS that every contestant took in every round."""
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant.epoch()  # to warm up
        contestant.settle()
        if isinstance(contestant, Ours):
            contestant.spent.clear()
            contestant.calls.clear()
    names = list(contestants)
    for _ in range(options.rounds):
        random.shuffle(names)
        for name in names:
            started = [clock() for clock in CLOCKS.values()]
            for _ in range(options.epochs):
                contestants[name].epoch()
            spent = [clock() - start for clock, start in zip(CLOCKS.values(), started, strict=True)]
            contestants[name].settle()
            spent[PROCESS] = time.process_time() - started[PROCESS]  # with the last checkpoint
            times[name].append(spent)
    return times


def compare(batch_size: int, options: argparse.Namespace, folder: Path) -> list[str]:
    """The lines of the table for one batch size."""
    words = ["data=csv", f"data.path={folder / 'rows.csv'}", "data.target=y", "data.split.kind=random"]
    words += [f"data.split.valid={options.valid}", f"data.split.test={TEST}", f"batch_size={batch_size}"]
    words += ["epochs=100000", "trainer.device=cpu", "trainer.threads=1", f"output_root={folder / str(batch_size)}"]
    found: list[str] = []

    def with_both(fused: Ours, plain: Ours) -> None:
        rows = fused.training.train_rows
        assert (len(rows["target"]), len(fused.training.valid_rows["target"])) == (ROWS, options.valid)
        loops = {
            "textbook": ByHand(rows, batch_size, loader=True, fused=None),
            "best": ByHand(rows, batch_size, loader=False, fused=True),
            "best plain": ByHand(rows, batch_size, loader=False, fused=None),
        }
        times = measure({"false": fused, "true": plain, **loops}, options)
        for exact, ours in (("false", fused), ("true", plain)):
            found.extend(f"{batch_size:>5}  {exact:<5}  {line}" for line in lines(times, exact, loops))
            found.append(f"{batch_size:>5}  {exact:<5}  {shares(ours, times[exact], options)}")

    def with_one(fused: Ours) -> None:
        run([*words, "exact=true"], lambda plain: with_both(fused, plain))

    run([*words, "exact=false"], with_one)
    return found


def lines(times: dict[str, list[list[float]]], mine: str, loops: Iterable[str]) -> Iterator[str]:
    """One line a loop: our times over its times."""
    for loop in loops:
        ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(times[mine], times[loop], strict=True)]
        cells = [
            f"{statistics.median(found):.3f} ({min(found):.2f}-{max(found):.2f})" for found in zip(*ratios, strict=True)
        ]
        yield "  ".join([f"{loop:<10}", *(f"{cell:<19}" for cell in cells)])


def shares(ours: Ours, times: list[list[float]], options: argparse.Namespace) -> str:
    """An epoch of ours in milliseconds, and the share of what is not training."""
    epochs = options.rounds * options.epochs
    whole = sum(spent[0] for spent in times)
    parts = [f"{part} {seconds / whole:.1%} ({ours.calls[part]} times)" for part, seconds in ours.spent.items()]
    return f"ours takes {whole * 1e3 / epochs:.0f} ms an epoch, of which {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of a turn")
    parser.add_argument("--valid", type=int, default=1000, help="validation rows of ours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder) / "rows.csv", ROWS + options.valid + TEST)
        print(f"torch {torch.__version__}, one thread; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{ROWS:,} training rows, {options.valid:,} for validation; ", end="")
        print(f"{options.rounds} rounds of {options.epochs} epochs")
        print(f"batch  exact  {'against':<10}  " + "  ".join(f"{clock:<19}" for clock in CLOCKS), flush=True)
        for batch_size in options.batch:
            print("\n".join(compare(batch_size, options, Path(folder))), flush=True)


if __name__ == "__main__":
    main()

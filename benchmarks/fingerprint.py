"""What the fingerprint of every step costs: turns of 256 steps with it against turns without.

    python benchmarks/fingerprint.py [--rounds 60] [word=value ...]

Networks on scikit-learn's digits, built as a run builds them, one thread of a CPU. Turns take turns in one process, in
a random order; those with a fingerprint write it to its file at the end. `cost` is the median over rounds of the one
over the other, less 1, of the CPU time of the thread that trains, with the quartiles.
"""

import argparse
import random
import shlex
import statistics
import tempfile
import time
from pathlib import Path

import torch
from health import built

from dltrain.train import Training

RUNS = (
    "'model.hidden=[32,32]' batch_size=32",
    "'model.hidden=[32,32]' batch_size=32 exact=true",
    "model=mlp batch_size=128",
    "model=mlp batch_size=1024",
    "'model.hidden=[1024,1024]' batch_size=128",
    "model=cnn",
    "model=transformer",
    "task=gan",
)
TURN = 256  # steps


def measure(training: Training, folder: Path, rounds: int) -> list[tuple[float, float]]:
    """Of each round, the seconds of a step without a fingerprint, and by how much of that it takes longer with one."""
    step = training.step
    bounds = [pair for pair in training.bounds if pair[1] - pair[0] == training.bounds[0][1]]
    batches = [{key: rows[start:end] for key, rows in training.train_rows.items()} for start, end in bounds]
    sizes = [len(batches[0]["target"])] * TURN
    order = torch.arange(training.n_rows).repeat(-(-sum(sizes) // training.n_rows))[: sum(sizes)]
    step.fingerprint.start(folder, 0, torch.arange(training.n_rows))
    watched, costs = step.fingerprint.watched, []
    training.task.train()
    for number in range(rounds + 2):
        seconds = {}
        for taken in random.sample([False, True], 2):
            step.fingerprint.watched = watched if taken else {}
            before = time.thread_time()
            step.fingerprint.epoch(order, sizes, 0)
            for k in range(TURN):
                step(batches[k % len(batches)], sizes[0], 65 + k % 60)  # steps at which health does not look
            step.fingerprint.write()
            seconds[taken] = time.thread_time() - before
        if number >= 2:
            costs.append((seconds[False] / TURN, seconds[True] / seconds[False] - 1))
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="turns of each kind")
    parser.add_argument("words", nargs="*", help="one run instead, as dltrain takes it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {options.rounds} turns of {TURN} steps of each kind")
    for words in [options.words] if options.words else [shlex.split(run) for run in RUNS]:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(built(words, Path(folder)), Path(folder), options.rounds)
        steps, costs = zip(*found, strict=True)
        low, middle, high = statistics.quantiles(costs, n=4)
        print(
            f"{shlex.join(words):<48}  step {statistics.median(steps) * 1e3:7.3f} ms  "
            f"cost {middle:+.2%} ({low:+.2%} to {high:+.2%})",
            flush=True,
        )


if __name__ == "__main__":
    main()

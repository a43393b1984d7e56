"""Many trials in one process against the same trials one after another, a textbook loop, and a process each.

    python benchmarks/sweep.py [--members 128] [--hidden 32 32] [--batch 32] [--epochs 30] [--rounds 3] [--some 8]

An MLP on 1,500 training rows of 40 numbers and 10 classes (321 more each for validation and the test), one thread;
trials differ in learning rate and seed. All write whole run folders but for the textbook.

together    dltrain.together.train.train_together, which decides by counts whether to stack them.
ours        The same trials by dltrain's own worker, one after another.
textbook    TensorDataset, DataLoader(shuffle=True), torch.optim.AdamW as it comes, cross_entropy, zero_grad, backward,
            step. No validation, nothing saved, nothing shown.
processes   `python -m dltrain` for each trial: it composes its config, imports torch and reads the file.

Configs are composed and checked before the clock starts, but for the processes, which compose their own. Of what takes
long only --some trials are run in a round, the time scaled to all (processes: --some / 4, at least 2); contestants
take turns, so that whatever else the machine does hits them alike. A cell is the median over rounds of theirs over that
of `together`, within a round, and (min-max): CPU seconds of processes and their children, and seconds of the wall,
which also has the disk and what other programs took. Nothing is asserted; the exit code is 0.
"""

import argparse
import contextlib
import copy
import io
import itertools
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from dltrain.commands.train import train
from dltrain.compose import compose
from dltrain.together import lockstep
from dltrain.together.train import train_together

ROWS, N_IN, CLASSES = 2143, 40, 10


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_rows(Path("rows.csv"))
        words = [trial(options, k) for k in range(options.members)]
        first = compose(words[0])
        configs = [first]
        for own in words[1:]:  # as composing each would make them, which takes 0.1 s each
            config = copy.deepcopy(first)
            for word in own[-2:]:
                name, _, value = word.partition("=")
                group, _, key = name.rpartition(".")
                (config[group] if group else config)[key] = float(value) if group else int(value)
            config["data"]["split"]["seed"] = 0
            configs.append(config)
        assert configs[-1] == compose(words[-1])
        contestants = {
            "together": (lambda n: together(configs, words, n), options.members),
            "ours": (lambda n: ours(configs, words, n), options.some),
            "textbook": (lambda n: textbook(options, n), options.some),
            "processes": (lambda n: processes(words, n), max(2, options.some // 4)),
        }
        silently(lambda: together(configs, words, 2))  # what imports cost is paid
        silently(lambda: ours(configs, words, 1))
        report(options, measured(options, contestants))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=128)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 32])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--some", type=int, default=8, help="trials of those that take long")
    parser.add_argument("--without-processes", action="store_true")
    return parser.parse_args()


def write_rows(path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((ROWS, N_IN))
    frame = pd.DataFrame(rows, columns=[f"x{k}" for k in range(N_IN)]).round(4)
    frame["y"] = [f"c{k}" for k in (rows @ draw.standard_normal((N_IN, CLASSES))).argmax(1)]
    frame.to_csv(path, index=False)


def trial(options: argparse.Namespace, number: int) -> list[str]:
    hidden = ",".join(map(str, options.hidden))
    words = ["data=csv", "data.path=rows.csv", "data.target=y", "data.split.seed=0", f"model.hidden=[{hidden}]"]
    words += [f"batch_size={options.batch}", f"epochs={options.epochs}", "trainer.threads=1", "report=false"]
    return [*words, f"seed={number}", f"optimizer.lr={1e-4 * 100 ** (number / options.members):.6g}"]


def together(configs: list, words: list, n: int) -> None:
    assert set(train_together(configs[:n], words[:n])) == {0}


def ours(configs: list, words: list, n: int) -> None:
    for config, own in zip(configs[:n], words[:n], strict=True):
        train(config, own, lambda name: None)


def processes(words: list, n: int) -> None:
    for own in words[:n]:
        subprocess.run([sys.executable, "-m", "dltrain", *own], check=True, stdout=subprocess.DEVNULL)


def textbook(options: argparse.Namespace, n: int) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(1501, N_IN, generator=draw), torch.randint(CLASSES, (1501,), generator=draw))
    for number in range(n):
        torch.manual_seed(number)
        widths = [N_IN, *options.hidden]
        layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
        network = nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(options.epochs):
            for features, target in DataLoader(rows, options.batch, shuffle=True):
                optimizer.zero_grad()
                cross_entropy(network(features), target).backward()
                optimizer.step()


Contestants = dict[str, tuple[Callable[[int], None], int]]
Times = dict[str, list[tuple[float, float]]]


def measured(options: argparse.Namespace, contestants: Contestants) -> Times:
    """CPU and wall seconds of all trials, by contestant and round."""
    if options.without_processes:
        del contestants["processes"]
    times: Times = defaultdict(list)
    for number in range(options.rounds):
        for name in random.Random(number).sample(list(contestants), len(contestants)):
            shutil.rmtree("outputs", ignore_errors=True)
            run, n = contestants[name]
            n = min(n, options.members)
            before, began = spent(), time.perf_counter()
            silently(partial(run, n))
            scale = options.members / n
            times[name].append(((spent() - before) * scale, (time.perf_counter() - began) * scale))
    return times


def spent() -> float:
    """CPU seconds of this process and of those it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def silently(run: Callable[[], None]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        run()


def report(options: argparse.Namespace, times: Times) -> None:
    widths = "-".join(map(str, [N_IN, *options.hidden, CLASSES]))
    print(
        f"{options.members} trials of {widths}, batch {options.batch}, {options.epochs} epochs, {options.rounds} rounds"
    )
    print(
        f"stacked if {lockstep.MEMBERS} or more, of at most {lockstep.PARAMETERS:,} parameters"
        f" and {lockstep.OPERATIONS:,} operations a step"
    )
    print(f"{'':12}{'seconds of CPU':>16}{'of the wall':>14}{'CPU / together':>26}{'wall / together':>26}")
    for name, found in times.items():
        seconds = [statistics.median(each) for each in zip(*found, strict=True)]
        cells = []
        for clock in (0, 1):
            ratios = [own[clock] / base[clock] for own, base in zip(found, times["together"], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        print(f"{name:12}{seconds[0]:16.1f}{seconds[1]:14.1f}{cells[0]:>26}{cells[1]:>26}")


if __name__ == "__main__":
    main()

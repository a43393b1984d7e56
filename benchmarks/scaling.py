"""CPU time of a training step on two ranks against one process at the same global batch: efficiency, 1 is perfect.

    python benchmarks/scaling.py [--width ...] [--batch 128 512 2048 8192] [--rounds 5] [--seconds 20]

MLPs of 80 thousand, 1.3 million and 10 million parameters on rows of 40 numbers and 10 classes, float32, AdamW, one
thread a rank, 2 ranks over gloo. The parts are dltrain's own, put together as its worker does; what is timed is
Training.epoch over a few steps: order and gather of the rows, every step with its check for gradients that are
not finite, and the word that ranks have at the end of an epoch. No validation, no checkpoints. Two processes are forked
once; in each all contestants are alive and take turns in a random order, so that what else the machine does hits them
alike. The clock is the CPU time of the whole process, gloo's threads included: a rank that waits is not charged.

efficiency  CPU time a step of trainer=single in one process, the other asleep / (2 x CPU time a step and rank). A cell
            is the median over rounds of the ratio within a round, and (min-max). With exact=true it is against
            trainer=single with exact=true and the same 2 shards, which computes the same bits.
apart       the same for two processes that train half the batch each and never speak: what two cores that share caches
            and memory can give, with every rank moving all weights. What ddp is below it is what speaking costs.
price       CPU time of a step with exact=true over that with exact=false, same trainer, both on two ranks.

Nothing is asserted; the exit code is 0.
"""

import argparse
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from dltrain import bundle
from dltrain.assembly import assemble
from dltrain.build import Builder
from dltrain.checkpoint import Checkpoints
from dltrain.compose import compose
from dltrain.course import alone
from dltrain.data.encoding import Encoding
from dltrain.data.preparation import Preparation
from dltrain.data.rows import Data, Rows
from dltrain.data.target import Target
from dltrain.order import batch_bounds
from dltrain.settings import Settings
from dltrain.train import Training

RANKS, N_IN, CLASSES = 2, 40, 10
NETWORKS = {"80 thousand": [256, 256], "1.3 million": [640] * 4, "10 million": [1820] * 4}
NEVER = 1_000_000
TURN = 0.4  # seconds that a turn shall take, if a step does not take longer
CONTESTANTS = {  # trainer, exact, on how many ranks at once
    "single": ("single", False, 1),
    "single exact": ("single", True, 1),
    "apart": ("single", False, RANKS),
    "ddp": ("ddp", False, RANKS),
    "ddp exact": ("ddp", True, RANKS),
    "fsdp": ("fsdp", False, RANKS),
    "fsdp exact": ("fsdp", True, RANKS),
}
Times = dict[str, list[float]]  # CPU seconds a step and rank, by contestant and round


def rows(n: int) -> Rows:
    """Random rows, the same in every process."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (n,), generator=draw)
    return {"features": torch.randn(n, N_IN, generator=draw), "target": target}


def build(hidden: list[int], trainer: str, exact: bool, shards: int, stack: ExitStack) -> Training:
    """A run put together as the worker does, at the point where it would train."""
    words = [f"trainer={trainer}", "trainer.threads=1", "trainer.device=cpu", f"trainer.save_every={NEVER}"]
    words += [f"model.hidden={hidden}".replace(" ", ""), f"exact={exact}".lower(), f"shards={shards}"]
    config = compose([*words, f"epochs={NEVER}", f"evaluate_every={NEVER}", "batch_size=64"])
    settings = Settings(**{f.name: config[f.name] for f in fields(Settings)})
    builder = Builder(config)
    builder.handed |= {"exact": exact, "precision": "float32"}
    where = stack.enter_context(builder.part("trainer")())
    classes = tuple(f"c{k}" for k in range(CLASSES))
    target = Target("classes", ("y",), classes, (1,) * CLASSES, "none", (), ())
    data = Data(rows(64), rows(64), rows(0), Preparation(Encoding([], {}), {}, (N_IN,), target, []), {})
    where.seed(0)
    task = bundle.make_task(builder, data.preparation)
    checkpoints = Checkpoints(Path(tempfile.gettempdir()) / "never", print, writes=False)
    training = assemble(settings, builder, where, data, task, checkpoints)
    where.set_threads(1, None)
    return training


def turn(training: Training, batch_size: int, steps: int) -> tuple[float, float]:
    """CPU and wall seconds of a step, over an epoch of some steps."""
    training.train_rows, training.n_rows = rows(batch_size * steps), batch_size * steps
    training.bounds = batch_bounds(training.n_rows, batch_size)
    started, began = time.process_time(), time.perf_counter()
    alone(training.epoch())
    return (time.process_time() - started) / steps, (time.perf_counter() - began) / steps


def measure(contestants: dict[str, Training], batch_size: int, options: argparse.Namespace) -> tuple[Times, int]:
    """CPU seconds a step and rank, in turns; how many steps a turn had."""
    rank, times = dist.get_rank(), defaultdict[str, list[float]](list)
    shuffled, names = random.Random(0), list(contestants)
    steps, rounds, until = 1, -1, time.monotonic() + options.seconds
    while rounds < options.least or (rounds < options.rounds and agreed(time.monotonic() < until)):
        for name in names:
            dist.barrier()
            at_once = CONTESTANTS[name][2]
            size = batch_size // RANKS if name == "apart" else batch_size
            spent, wall = turn(contestants[name], size, steps) if rank < at_once else (0.0, 0.0)
            total = torch.tensor([spent, wall if name == "single" else 0.0], dtype=torch.float64)
            dist.all_reduce(total)
            if rounds >= 0:  # the first was to warm up
                times[name].append(float(total[0]) / at_once)
            elif name == "single":
                more = max(1, min(64, round(TURN / float(total[1]))))
        shuffled.shuffle(names)
        steps, rounds = more, rounds + 1
    return times, steps


def agreed(wish: bool) -> bool:
    """What rank 0 wishes."""
    said = torch.tensor([float(wish)])
    dist.broadcast(said, 0)
    return bool(said)


def rank(number: int, port: int, options: argparse.Namespace, results: Connection) -> None:
    """One of the two processes."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with ExitStack() as stack:
        real = dist.init_process_group
        for name in options.networks:
            contestants: dict[str, Training] = {}
            for contestant, (trainer, exact, _) in CONTESTANTS.items():
                once = real if not dist.is_initialized() else lambda *_, **__: None  # all of them share one group
                shards = 1 if trainer == "single" and not exact else RANKS
                with mock.patch.object(dist, "init_process_group", once):
                    contestants[contestant] = build(NETWORKS[name], trainer, exact, shards, stack)
            torch.use_deterministic_algorithms(True)
            size = sum(p.numel() for p in contestants["single"].task.parameters())
            for batch_size in options.batch:
                times, steps = measure(contestants, batch_size, options)
                if not number:
                    results.send((size, batch_size, steps, dict(times)))
        dist.barrier()
        results.close()
        os._exit(0)  # the group is left as it is


def ratio(over: list[float], under: list[float], factor: float = 1.0) -> str:
    found = [a / (factor * b) for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(found):.3f} ({min(found):.2f}-{max(found):.2f})"


def line(size: int, batch_size: int, steps: int, times: Times) -> str:
    """One line of the table."""
    cells = [ratio(times["single"], times[name], RANKS) for name in ("apart", "ddp", "fsdp")]
    cells += [ratio(times["single exact"], times[name], RANKS) for name in ("ddp exact", "fsdp exact")]
    cells += [ratio(times[f"{name} exact"], times[name]) for name in ("ddp", "fsdp")]
    single = statistics.median(times["single"]) * 1e3
    turns = f"{len(times['single'])} x {steps}"
    return f"{size:>10,}  {batch_size:>5}  {single:>9.1f}  {turns:>7}  " + "  ".join(f"{cell:<17}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="sizes of network")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048, 8192], help="global batch sizes")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant, at most")
    parser.add_argument("--least", type=int, default=3, help="turns of each contestant, at least")
    parser.add_argument("--seconds", type=float, default=20, help="after which a line gets no further round")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    ranks = [fork.Process(target=rank, args=(number, port, options, theirs)) for number in range(RANKS)]
    print(f"torch {torch.__version__}, {RANKS} ranks, one thread each; {os.cpu_count()} cores, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}; ms: CPU time of a step of trainer=single", flush=True)
    names = ("apart", "ddp", "fsdp", "ddp exact", "fsdp exact", "price ddp", "price fsdp")
    print(f"parameters  batch  {'ms':>9}  {'turns':>7}  " + "  ".join(f"{name:<17}" for name in names), flush=True)
    for process in ranks:
        process.start()
    theirs.close()
    try:
        while True:
            print(line(*ours.recv()), flush=True)
    except EOFError:
        pass
    for process in ranks:
        process.join()


if __name__ == "__main__":
    main()

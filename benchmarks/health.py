"""What looking at gradients and units costs: a step that is looked at against one that is not.

    python benchmarks/health.py [--rounds 200] [word=value ...]

Networks on scikit-learn's digits, built as a run builds them, one thread of a CPU. Steps that are looked at and steps
that are not take turns in a random order, in one process. `look / step` is the median time of the former over that of
the latter; `in the long run` is what it adds to a run that looks every 256th step, as runs do after their first.
"""

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import torch

from dltrain import bundle, health
from dltrain.assembly import assemble
from dltrain.build import Builder
from dltrain.checkpoint import Checkpoints
from dltrain.compose import compose
from dltrain.settings import Settings
from dltrain.train import Training

RUNS = ("model=mlp batch_size=128", "model=mlp batch_size=1024", "model=cnn", "model=transformer", "task=gan")


def built(words: list[str], folder: Path) -> Training:
    """A training that has not begun."""
    config = compose([*words, "trainer.threads=1", "trainer.device=cpu"])
    settings = Settings(**{f.name: config[f.name] for f in fields(Settings)})
    builder = Builder(config)
    builder.handed |= {"exact": settings.exact, "precision": settings.precision}
    builder.handed["pipeline"] = builder.parts("pipeline")
    trainer, data = builder.part("trainer")(), builder.part("data")().load()
    trainer.seed(settings.seed)
    task = bundle.make_task(builder, data.preparation)
    return assemble(settings, builder, trainer, data, task, Checkpoints(folder, print))


def measure(training: Training, rounds: int) -> tuple[float, float]:
    """Median seconds of a step that is not looked at, and of one that is."""
    batch = {key: values[: training.bounds[0][1]] for key, values in training.train_rows.items()}
    training.task.train()
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 5):
        for looked in random.sample([False, True], 2):
            health.EVERY = 1 if looked else 2**40
            started = time.perf_counter()
            training.step(batch, len(batch["target"]), 3)  # a step at which no run looks of itself
            if number >= 5:
                times[looked].append(time.perf_counter() - started)
    return statistics.median(times[False]), statistics.median(times[True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="steps of each kind")
    parser.add_argument("words", nargs="*", help="one run instead, as dltrain takes it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = health.EVERY
    print(f"torch {torch.__version__}, one thread, {options.rounds} steps of each kind")
    for words in [" ".join(options.words)] if options.words else RUNS:
        with tempfile.TemporaryDirectory() as folder:
            plain, looked = measure(built(words.split(), Path(folder)), options.rounds)
        share = (looked - plain) / plain / every
        print(
            f"{words:<28}  step {plain * 1e3:7.2f} ms  look / step {looked / plain:5.2f}  in the long run {share:+.2%}"
        )


if __name__ == "__main__":
    main()

"""Whole runs for tests, in this process: what imports cost is paid once."""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from dltrain import cli
from dltrain.build import Builder
from dltrain.bundle import Model
from dltrain.commands.train import train
from dltrain.compose import compose
from dltrain.data import Data

NUMBERS = itertools.count()


@contextlib.contextmanager
def working(folder: Path) -> Iterator[Path]:
    """Work in a folder, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        yield folder
    torch.set_num_threads(before)


@dataclass
class Trained:
    """A run that has ended, and what it printed."""

    folder: Path
    printed: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files."""
        return dict(json.loads((self.folder / name).read_text(encoding="utf-8")))

    @cached_property
    def result(self) -> dict[str, Any]:
        return self.read("result.json")

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def curve(self, name: str) -> list[float]:
        """One entry of every record that has it."""
        return [record[name] for record in self.records if name in record]

    @cached_property
    def model(self) -> Model:
        return Model.load(self.folder / "model")

    @property
    def network(self) -> nn.Module:
        """The network of its bundle."""
        network = self.model.task.network
        assert isinstance(network, nn.Module)
        return network

    @cached_property
    def data(self) -> Data:
        """The rows it was trained on, read again."""
        builder = Builder(yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8")))
        builder.handed["pipeline"] = builder.parts("pipeline")
        loaded: Data = builder.part("data")().load()
        return loaded

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of its bundle's network, by name."""
        return of_network(load_file(self.folder / "model" / "model.safetensors"))

    @property
    def steps(self) -> list[int]:
        """The steps of its checkpoints."""
        return sorted(int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*"))

    def weights_at(self, step: int) -> dict[str, Tensor]:
        """The tensors of a checkpoint's network."""
        return of_network(load_file(self.folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors"))


def of_network(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a supervised task's one network."""
    return {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}


def launch(*words: str, name: str | None = None) -> Trained:
    """Train what some words say, under a name."""
    name = name or f"run{next(NUMBERS)}"
    typed = [*words, f"name={name}", *(["report=false"] if "report=true" not in words else [])]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train(compose(typed), typed) == 0
    return Trained(Path("outputs") / name, printed.getvalue())


def command(*words: str) -> str:
    """Run a command line that must go well; returns what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.run(list(words)) == 0
    return printed.getvalue()


def predict(run: Trained, source: str | Path, *words: str) -> pd.DataFrame:
    """What `dltrain predict` writes for a file."""
    out = run.folder.parent / f"{run.name}.csv"
    command("predict", f"run={run.name}", f"input={source}", f"out={out}", *words)
    return pd.read_csv(out)

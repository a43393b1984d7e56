"""Predict the target from the features."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.metrics import best_threshold, check_monitor, default_monitor, direction, load, score
from dltrain.tasks.task import Columns, Move, Task


class Supervised(Task):
    """Predict the target from the features; `threshold` turns the probability of a binary target into a decision.

    `threshold=auto` picks the one with the best F1 on the validation rows, after training.
    """

    def __init__(self, data: Any, model: Callable, loss: Callable, threshold: float | str = 0.5) -> None:
        super().__init__()
        self.target = data.target
        if self.target.kind == "none":
            raise ConfigError("data.target must be a column to predict with task=supervised, got null")
        self.loss = loss()
        self.network: nn.Module = model(data.shape_in, self.loss.shape_out)
        self.tuned = threshold == "auto"
        if not self.tuned and not (isinstance(threshold, int | float) and 0 < threshold < 1):
            raise ConfigError(f"task.threshold must be between 0 and 1, or auto, got {threshold}")
        if threshold != 0.5 and self.target.kind != "binary":
            raise ConfigError(f"task.threshold must be left out for a target of {self.target.kind}, got {threshold}")
        # a buffer, so that a tuned threshold is part of the model's weights file
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(0.5 if self.tuned else float(threshold), dtype=torch.float64))

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        yield "network", *self.loss(self.network(batch["features"]).float(), batch["target"], batch.get("weight"))

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.target.decode(self.loss.predict(self.network(batch["features"]).float()))

    def assess(self, batch: Mapping[str, Tensor]) -> tuple[list[Move], Tensor]:
        output = self.network(batch["features"]).float()
        total, count = self.loss(output, batch["target"], batch.get("weight"))
        return [("network", total, count)], self.target.decode(self.loss.predict(output))

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        return score(self.target, predictions, self.target.decode(rows["target"]), float(self.threshold))

    def monitor(self, name: str | None) -> tuple[str, str]:
        load()
        metric = check_monitor(name or default_monitor(self.target.kind), self.target)
        return metric, direction(metric)

    def conclude(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> None:
        if self.tuned:
            self.threshold.fill_(best_threshold(predictions, rows["target"]))

    def columns(self, predictions: Tensor) -> Columns:
        kind, names = self.target.kind, self.target.names
        values = predictions.numpy()
        if kind == "number":
            return {"prediction": values[:, 0]} if len(names) == 1 else dict(zip(names, values.T, strict=True))
        if kind == "multilabel":
            chosen = dict(zip(names, (values > float(self.threshold)).astype(int).T, strict=True))
            return chosen | {f"p_{name}": p for name, p in zip(names, values.T, strict=True)}
        if kind == "binary":
            values = np.concatenate([1 - values, values], axis=1)
            choice = (values[:, 1] > float(self.threshold)).astype(int)
        else:
            choice = values.argmax(1)
        chosen = {"prediction": np.asarray(self.target.classes, dtype=object)[choice]}
        return chosen | {f"p_{label}": p for label, p in zip(self.target.classes, values.T, strict=True)}

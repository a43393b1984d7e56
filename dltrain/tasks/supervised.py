"""Predict the target from the features."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dltrain.curves import curves
from dltrain.errors import ConfigError
from dltrain.metrics import best_threshold, check_monitor, default_monitor, direction, load, score, score_each
from dltrain.tasks.task import Columns, Move, Task


class Supervised(Task):
    """Predict the target from the features; `threshold` turns the probability of a binary target into a decision.

    `threshold=auto` picks the one with the best F1 on the validation rows, after training. A network that has `members`
    is an ensemble: with `each` it gives (batch, members, *shape_out). Each member learns by a loss of its own, and the
    mean of their predictions is what is predicted. A network may ask for the features of the training rows as `rows`.
    """

    averages = True

    def __init__(
        self,
        data: Any,
        model: Callable,
        loss: Callable,
        threshold: float | str = 0.5,
        train: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.target = data.target
        if self.target.kind == "none":
            raise ConfigError("data.target must be a column to predict with task=supervised, got null")
        self.loss = loss()
        known = {} if train is None else {"rows": train["features"]}
        self.network: nn.Module = model(data.shape_in, self.loss.shape_out, **known)
        self.asked = {"each": True} if hasattr(self.network, "members") else {}
        self.tuned = threshold == "auto"
        if not self.tuned and not (isinstance(threshold, int | float) and 0 < threshold < 1):
            raise ConfigError(f"task.threshold must be between 0 and 1, or auto, got {threshold}")
        if threshold != 0.5 and self.target.kind != "binary":
            raise ConfigError(f"task.threshold must be left out for a target of {self.target.kind}, got {threshold}")
        # a buffer, so that a tuned threshold is part of the model's weights file
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(0.5 if self.tuned else float(threshold), dtype=torch.float64))

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        yield "network", *self._loss(self._output(batch), batch)

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._predicted(self._output(batch))

    def assess(self, batch: Mapping[str, Tensor]) -> tuple[list[Move], Tensor]:
        output = self._output(batch)
        return [("network", *self._loss(output, batch))], self._predicted(output)

    def _output(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, *shape_out), or of an ensemble (batch, members, *shape_out)."""
        output: Tensor = self.network(batch["features"], **self.asked).float()
        return output

    def _loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
        target, weight = batch["target"], batch.get("weight")
        if not self.asked:
            return self.loss(output, target, weight)
        n = output.shape[1]
        weights = None if weight is None else weight.repeat_interleave(n)
        total, count = self.loss(output.flatten(0, 1), target.repeat_interleave(n, 0), weights)
        return total / n, count / n

    def _predicted(self, output: Tensor) -> Tensor:
        if not self.asked:
            return self.target.decode(self.loss.predict(output))
        each = self.loss.predict(output.flatten(0, 1)).unflatten(0, output.shape[:2])
        return self.target.decode(each.mean(1))

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        return score(self.target, predictions, self.target.decode(rows["target"]), float(self.threshold))

    def curves(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Any]:
        return curves(self.target, predictions, self.target.decode(rows["target"]), float(self.threshold))

    def metrics_each(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> list[dict[str, float]]:
        return score_each(self.target, predictions, self.target.decode(rows["target"]), float(self.threshold))

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

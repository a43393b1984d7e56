"""What every learning problem offers to the loop."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from dltrain.errors import ConfigError

Move = tuple[str, Tensor, Tensor | float]
Columns = Mapping[str, np.ndarray | list[Any]]


class Task(nn.Module):
    """A learning problem. Every child module is a player, with an optimizer and a loss of its own."""

    reads = "features"  # networks of another kind say so and are refused
    draws = False  # True if losses draws random numbers of its own
    widens = 1  # numbers that one of the features becomes on its way, where they are many: as a token, the vocabulary
    measures: Mapping[str, str] = {}  # metrics that may pick the best epoch besides the loss: min or max
    concludes_on = "valid"  # the split whose rows `conclude` learns from, valid or train
    measured_on: tuple[str, ...] = ("target",)  # fields of rows that metrics reads
    averages = False  # True if the mean of what several networks predict is a prediction
    player_settings: Mapping[str, Any] = {}  # by player: settings of its own optimizer and scheduler
    place: str | None = None  # of the network that the group `model` made, among the modules; None of none or several
    moves_a_step: Mapping[str, int] = {}  # by player: how often it moves in a step, where that is not once

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        """Yield (player, sum of its loss over the rows, what that is a mean over) in the order in which players move.

        Each player has stepped before the next loss is asked for.
        """
        raise NotImplementedError

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What is scored and written, one row a row of the batch."""
        raise NotImplementedError

    def assess(self, batch: Mapping[str, Tensor]) -> tuple[list[Move], Tensor]:
        """Losses and predictions of rows that are not trained on; overridden where one forward pass gives both."""
        return list(self.losses(batch)), self.predictions(batch)

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of predictions over whole rows, by name."""
        return {}

    def curves(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a report draws of predictions over whole rows, as JSON can hold it."""
        return {}

    def metrics_each(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> list[dict[str, float]]:
        """As `metrics`, of several predictions (several, rows, ...); overridden where that is faster."""
        return [self.metrics(each, rows) for each in predictions]

    def monitor(self, name: str | None) -> tuple[str, str]:
        """The metric that picks the best epoch and its direction, min or max; ConfigError for an unknown name."""
        known, metric = {"loss": "min", **self.measures}, (name or "loss").removeprefix("valid/")
        if metric not in known:
            which = "one of " * (len(known) > 1) + ", ".join(known)
            raise ConfigError(f"monitor must be {which} for task={type(self).__name__.lower()}, got {name}")
        return metric, known[metric]

    def conclude(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Learn from rows of the split `concludes_on` what no gradient teaches, once training is over."""

    def sample(self, n: int) -> Tensor | list[str]:
        """New features (n, *shape_in), or texts, drawn by torch's generator; ConfigError for a task that makes none."""
        raise ConfigError(f"run must be of a task that makes rows, got task={type(self).__name__.lower()}")

    def columns(self, predictions: Tensor) -> Columns:
        """Predictions as named columns of the file that `predict` writes."""
        raise NotImplementedError

"""What several trained tasks predict together."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.tasks.task import Columns, Task


class Ensemble(Task):
    """The weighted mean of what trained tasks predict: probabilities, or numbers in the target's own units.

    A row's features are those of several views, one after the other: `shapes` says which, `of` which view a member
    reads. The first member says what is measured and how predictions are written.
    Raises ConfigError for tasks whose predictions have no mean.
    """

    def __init__(self, members: Sequence[Task], shapes: Sequence[Sequence[int]], of: Sequence[int]) -> None:
        super().__init__()
        for member in members:
            if not member.averages:
                name = type(member).__name__.lower()
                raise ConfigError(f"runs must be of a task whose predictions have a mean, got task={name}")
        self.members = cast(Sequence[Task], nn.ModuleList(members))
        self.shapes, self.of = [tuple(shape) for shape in shapes], list(of)
        self.weights: Tensor  # they sum to one
        equal = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
        self.register_buffer("weights", equal)

    @property
    def first(self) -> Task:
        return self.members[0]

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        flat = batch["features"].flatten(1).split([math.prod(shape) for shape in self.shapes], 1)
        views = [{"features": one.unflatten(1, shape)} for one, shape in zip(flat, self.shapes, strict=True)]
        found = [member.predictions(views[view]) for member, view in zip(self.members, self.of, strict=True)]
        return self.combined(found)

    def combined(self, found: Sequence[Tensor]) -> Tensor:
        """The weighted mean of the members' predictions, in their dtype."""
        total = torch.zeros_like(found[0], dtype=torch.float64)
        for weight, one in zip(self.weights, found, strict=True):
            total += weight * one.double()
        return total.to(found[0].dtype)

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        return self.first.metrics(predictions, rows)

    def conclude(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> None:
        self.first.conclude(predictions, rows)

    def columns(self, predictions: Tensor) -> Columns:
        return self.first.columns(predictions)

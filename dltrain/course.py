"""What a training asks for on its course: stretches of steps, and looks at rows that are not trained on.

Whoever walks the courses of several runs together may do what they ask for, for all at once; what nobody has done, the
training does itself when it is asked to go on.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from dltrain.faults import point
from dltrain.order import epoch_order, row_seeds

if TYPE_CHECKING:
    from dltrain.train import Training

Rows = dict[str, Tensor]
Made = TypeVar("Made")


class Epoch:
    """The rest of an epoch: its rows in their order, cut into batches."""

    def __init__(self, training: "Training") -> None:
        position, settings = training.position, training.settings
        self.number, rest = position.epoch, training.bounds[position.batch :]
        self.sizes = [end - start for start, end in rest]
        self.order = epoch_order(training.n_rows, settings.seed, self.number)[rest[0][0] :]
        self.training = training

    @cached_property
    def batches(self) -> dict[str, tuple[Tensor, ...]]:
        """The fields of all batches, each gathered once."""
        training, order = self.training, self.order.to(self.training.trainer.device)
        found = {key: values.index_select(0, order).split(self.sizes) for key, values in training.train_rows.items()}
        if training.step.row_parts:
            found["seed"] = row_seeds(order, training.settings.seed, self.number).split(self.sizes)
        return found


@dataclass
class Stretch:
    """Batches [start, end) of the rest of an epoch, after the last of which something may be due."""

    epoch: Epoch
    start: int
    end: int
    step: int  # number of the first step
    done: int = 0  # batches that were trained on by somebody else

    @property
    def left(self) -> int:
        """Batches that are still to be trained on."""
        return self.end - self.start - self.done

    def walk(self) -> None:
        """Train on what is left."""
        training = self.epoch.training
        for number in range(self.start + self.done, self.end):
            point("batch")
            batch = {key: pieces[number] for key, pieces in self.epoch.batches.items()}
            training.step(batch, self.epoch.sizes[number], self.step + number - self.start)


@dataclass
class Look:
    """Rows that are not trained on, whose losses and metrics are wanted; these, where somebody else has made them."""

    rows: Rows
    metrics: dict[str, float] | None = None


def alone(course: Generator[object, None, Made] | Iterator[object]) -> Made:
    """Walk a course to its end, which does all by itself, and return what it returns."""
    while True:
        try:
            next(course)
        except StopIteration as end:
            made: Made = end.value
            return made

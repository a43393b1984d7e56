"""A few samples every so many epochs, by which one can watch a task learn to make rows."""

import copy
import inspect
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dltrain.bundle import Model
from dltrain.distributed import Single
from dltrain.errors import DiskError
from dltrain.player import Player
from dltrain.report.samples import written
from dltrain.tasks.task import Task

N = {"features": 16, "tokens": 3}  # samples of tasks that read that
LENGTH = 200  # tokens of a text


class Sampler:
    """A copy of a task, on rank 0, whose networks no trainer has wrapped: it is given the weights and makes rows."""

    def __init__(self, task: Task, preparation: Any, trainer: Single, every: int | None) -> None:
        self.trainer, self.every = trainer, every if type(task).sample is not Task.sample else None
        self.twin = copy.deepcopy(task) if self.every and trainer.rank == 0 else None
        self.preparation = preparation

    def cease(self) -> None:
        """Write no more; this rank goes on to join in what all ranks do."""
        self.twin = None

    def due(self, epoch: int) -> bool:
        """Whether samples are written after so many epochs."""
        return self.every is not None and epoch % self.every == 0

    def write(self, task: Task, players: dict[str, Player], folder: Path, epoch: int) -> Path | None:
        """Write `samples/epoch-00010.png` (.csv, .txt) of the weights as evaluation has them; every rank must ask.

        The path on rank 0. Raises DiskError, and ConfigError for rows that cannot be told as a file has them.
        """
        with ExitStack() as stack:
            for player in players.values():
                stack.enter_context(player.averaged())
            own = {} if self.twin is None else self.twin.state_dict()
            for key, value in task.state_dict().items():  # one by one: a whole network may be more than a rank holds
                whole = self.trainer.whole(self.trainer.local(value), value)
                if own:
                    own[key].copy_(whole)
        if self.twin is None:
            return None
        model = Model(self.twin.to(self.trainer.device), self.preparation, {})
        length = {"length": LENGTH} if "length" in inspect.signature(self.twin.sample).parameters else {}
        rows = model.sample(N[self.twin.reads], **length)
        try:
            (folder / "samples").mkdir(exist_ok=True)
            return written(rows, self.preparation.shape_in, folder / "samples" / f"epoch-{epoch:05d}")
        except OSError as error:
            raise DiskError(f"cannot write {folder / 'samples'}: {error.strerror or error}") from error

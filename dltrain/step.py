"""One training step: every player moves once, on the sum over the shards of a global batch."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dltrain.distributed import Single
from dltrain.faults import point
from dltrain.fingerprint.taken import Fingerprint
from dltrain.health import Health
from dltrain.order import noise_seed, shard_bounds
from dltrain.player import Finite, Player
from dltrain.regularizers import Regularizer
from dltrain.sums import BatchSums, own
from dltrain.tasks.task import Move, Task

Rows = Mapping[str, Tensor]


class Step:
    """Steps a task's players, and keeps their running losses on the device until somebody looks."""

    def __init__(
        self,
        task: Task,
        players: Mapping[str, Player],
        trainer: Single,
        regularizers: Sequence[Regularizer],
        activation: type[nn.Module],
        seed: int,
        shards: int,
    ) -> None:
        self.task, self.players, self.trainer = task, players, trainer
        self.seed, self.shards = seed, shards
        self.kind = torch.float32 if trainer.device.type == "mps" else torch.float64  # of sums; mps has no float64
        self.row_parts = [part for part in regularizers if type(part).rows is not Regularizer.rows]
        self.readers = [part for part in regularizers if part.reads_activations]
        self.draws = task.draws or any(part.draws for part in regularizers) or any(map(_drops, task.modules()))
        norms = (module for module in task.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        self.least = 2 if any(module.training for module in norms) else 1  # a frozen one reads no other rows
        self.finite = Finite(trainer.device, scaled=trainer.dtype is torch.float16)
        self.health = Health(players, trainer, activation)
        self.fingerprint = Fingerprint(trainer, players)
        self.losses: dict[str, list[Tensor | float]] = {}  # player: [sum, count] since they were last taken
        self.activations: list[Tensor] = []
        if self.readers:
            for module in task.modules():
                if isinstance(module, activation):
                    module.register_forward_hook(self._seen)

    def _seen(self, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            self.activations.append(output)

    def __call__(self, batch: Rows, n_rows: int, step: int) -> None:
        """Train on a global batch; `step` is its number in the run."""
        shards = [(shard, rows, self._moves(piece)) for shard, rows, piece in self._pieces(batch, n_rows)]
        self.fingerprint.begin(step)
        move = 0
        with self.health.look(step):
            while self._move(shards, step, move):
                move += 1

    def _pieces(self, batch: Rows, n_rows: int) -> Iterator[tuple[int, int, Rows]]:
        if self.shards == 1:
            yield 0, n_rows, batch
            return
        bounds = shard_bounds(n_rows, self.shards, self.least)
        for shard, rows, start, end in own(bounds, self.trainer.owned(self.shards)):
            yield shard, rows, {key: values[start:end] for key, values in batch.items()}

    def _moves(self, shard: Rows) -> Iterator[Move]:
        """The losses of one shard, with what regularizers make of its rows and activations."""
        for part in self.row_parts:
            shard = part.rows(dict(shard))
        for name, total, count in self.task.losses(shard):
            for part in self.readers:
                penalty = part.penalty(self.players[name].network, self.activations)
                total = total if penalty is None else total + penalty
            self.activations.clear()
            yield name, total, count

    def _move(self, shards: list[tuple[int, int, Iterator[Move]]], step: int, move: int) -> bool:
        """Let the next player move; False if there is none."""
        sums = BatchSums(self.task.children(), self.kind) if self.shards > 1 else None
        for number, (shard, rows, moves) in enumerate(shards, 1):
            if self.draws:
                self.trainer.seed(noise_seed(self.seed, step, move, shard))
            self.trainer.begin(last=number == len(shards))
            self.health.counting = rows > 0
            with self.trainer.autocast():
                made = next(moves, None)
            if made is None:
                return False
            name, total, count = made
            player = self.players[name]
            if number == 1:
                player.zero_grad()
            if not rows:  # it only stands in
                total, count = total * 0, 0
            if point("backward"):
                total = total * math.nan
            self.trainer.backward(total if self.finite.scale is None else total * self.finite.scale, player.parameters)
            if sums is not None:
                sums.add(total, count, rows)
        self.trainer.close(player.parameters)
        whole, over = (total.detach().float(), count) if sums is None else sums.close(self.trainer.across)
        self._count(name, whole, over)
        with self.health.watch(player):
            player.step(whole, over, self.finite)
        self.fingerprint.moved(player, whole)
        return True

    def _count(self, name: str, total: Tensor, count: Tensor | float) -> None:
        if name not in self.losses:
            self.losses[name] = [torch.zeros((), dtype=self.kind, device=self.trainer.device), 0.0]
        sums = self.losses[name]
        sums[0] += total
        sums[1] += count

    def mean_losses(self) -> dict[str, float]:
        """The mean loss of each player since the last `losses.clear()`."""
        return {name: float(total) / float(count) for name, (total, count) in self.losses.items()}

    def load_losses(self, losses: Mapping[str, Sequence[float]]) -> None:
        """Take up running losses that were saved in the middle of an epoch."""
        self.losses.clear()
        for name, (total, count) in losses.items():
            self._count(name, torch.zeros((), device=self.trainer.device), count)
            self.losses[name][0] += total


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0

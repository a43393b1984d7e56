"""Takes the fingerprint of every step while a run trains, for less than a fiftieth of a step."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from dltrain.distributed import Single
from dltrain.fingerprint.file import MOVE, File
from dltrain.order import ROW_STRIDE
from dltrain.player import Player

ALL_EVERY = 64  # steps between two checksums of the weights
FEW = 2**14  # numbers of all gradients of a player, of which those of several steps are summed together
TOGETHER = 2**15  # numbers: smaller tensors are copied into one, which takes less time than to sum each
PLACE_STRIDE = 0xD1B54A32D192ED03 - 2**64  # an odd number without a pattern, as 64 signed bits
KEPT = 64  # vectors that are summed together
AT_MOST = 2**12  # moves until they are written


class Kept:
    """Vectors of one length, kept until many are there, whose bits are then summed together."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.vectors = torch.zeros(KEPT, length, device=device)
        self.slots = list(self.vectors)
        self.n = 0
        self.summed: list[Tensor] = []

    def slot(self) -> Tensor:
        """Where to put the next."""
        if self.n == KEPT:
            self._sum()
        self.n += 1
        return self.slots[self.n - 1]

    def _sum(self) -> None:
        self.summed.append(self.vectors[: self.n].view(torch.int32).sum(1, dtype=torch.int32))
        self.n = 0

    def taken(self) -> Tensor:
        """The sums of all, (n,) int32; none are kept any more."""
        self._sum()
        found, self.summed = torch.cat(self.summed), []
        return found


class Watched:
    """The tensors that a player's optimizer moves, and its settings."""

    def __init__(self, number: int, player: Player, device: torch.device) -> None:
        self.number, self.optimizer = number, player.optimizer
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.small, self.large = parted(held)
        few = sum(p.numel() for p in self.small)
        self.kept = Kept(few, device) if few <= FEW and not self.large else None
        self.summed: list[Tensor] = []
        self.keys = [
            ["lr", *(key for key, value in group.items() if key not in ("lr", "initial_lr") and _numeric(value))]
            for group in self.optimizer.param_groups
        ]

    def take(self) -> None:
        """Take the gradients."""
        small = [g for p in self.small if (g := p.grad) is not None]
        if self.kept is not None:
            self.kept.slot().copy_(_flatten_dense_tensors(small))
        else:
            self.summed.append(sum_of(small, [g for p in self.large if (g := p.grad) is not None]))

    def taken(self) -> Tensor:
        """The sum of the bits of the gradients of each move: (moves,) int32."""
        if self.kept is not None:
            return self.kept.taken()
        found, self.summed = torch.stack(self.summed), []
        return found

    def settings(self) -> list[list[Any]]:
        """All numbers of the optimizer; those of a group begin with its lr."""
        groups = self.optimizer.param_groups
        return [[group[key] for key in keys] for group, keys in zip(groups, self.keys, strict=True)]


class Fingerprint:
    """Takes what is in a file's MOVE; everything stays on the device until it is written.

    Sums of bits are the same whichever rank holds which piece, so with exact=true every trainer gives the same.
    """

    def __init__(self, trainer: Single, players: Mapping[str, Player]) -> None:
        self.trainer, self.players = trainer, players
        self.file: File | None = None
        self.watched: dict[str, Watched] = {}  # empty: nothing is taken
        self.sharded = False
        self.numbers = torch.empty(0, dtype=torch.int64)  # of the training rows, in their file
        self.rows: list[int] = []  # checksums of the batches of the epoch under way, from the end
        self.made: list[np.ndarray] = []  # moves that are not written yet
        self._clear()

    def _clear(self) -> None:
        self.facts: list[tuple[int, ...]] = []  # step, move, player, rows of every move
        self.settings: list[list[list[Any]]] = []  # of every move, by group of its optimizer
        self.losses: list[Tensor] = []
        self.weights: dict[int, Tensor] = {}  # the sum of all, by step

    def start(self, folder: Path, step: int, numbers: Tensor) -> None:
        """Begin, in a run's folder, at a step; `numbers` are those of the training rows in their file, (rows,)."""
        self.parameters = [p for player in self.players.values() for p in player.network.parameters()]
        self.sharded = any(self.trainer.local(p) is not p for p in self.parameters)
        if self.trainer.rank == 0:
            self.file = File(folder, step)
        elif not self.sharded:  # rank 0 knows all
            return
        device = self.trainer.device
        self.numbers = numbers
        self.watched = {name: Watched(i, player, device) for i, (name, player) in enumerate(self.players.items())}

    def epoch(self, order: Tensor, sizes: Sequence[int], first: int) -> None:
        """Take the rows that are left of an epoch: their places among the training rows, and the sizes of batches.

        `first` is the place of the first of them in the epoch.
        """
        if self.watched:
            self.rows = row_checksums(self.numbers[order], sizes, first).tolist()[::-1]

    def begin(self, step: int) -> None:
        """Take what a step begins with."""
        if not self.watched:
            return
        if step % ALL_EVERY == 0:
            self.weights[step] = sum_of(*parted(self.trainer.local(p).detach() for p in self.parameters))
        self.now = step, self.rows.pop() if self.rows else 0
        self.begun = {name: watched.settings() for name, watched in self.watched.items()}
        self.move = 0

    def moved(self, player: Player, loss: Tensor) -> None:
        """Take what a player's move did; its gradients are still there."""
        if not self.watched:
            return
        watched, (step, rows) = self.watched[player.name], self.now
        watched.take()
        self.losses.append(loss)
        self.facts.append((step, self.move, watched.number, rows))
        self.settings.append(self.begun[player.name])
        self.move += 1
        if len(self.losses) == AT_MOST:
            self.write()

    def settled(self) -> tuple[int, float]:
        """A checksum of the settings of the only player's optimizer, and its largest lr."""
        [watched] = self.watched.values()
        return next(_settled([watched.settings()]))

    def given(self, moves: np.ndarray) -> None:
        """Take moves that somebody else has watched, (moves,) of MOVE, all but the rows of each."""
        self._make()
        moves["rows"] = [self.rows.pop() for _ in moves]
        self.made.append(moves)

    def write(self, sync: bool = False) -> None:
        """Write all that was taken; every rank must ask."""
        self._make()
        if self.file is not None:
            self.file.append(self.made, sync)
        self.made.clear()

    def _make(self) -> None:
        """Turn what was taken into moves of a file."""
        if not self.facts:
            return
        moved = {fact[2] for fact in self.facts}
        sums = [watched.taken() for watched in self.watched.values() if watched.number in moved]
        found = torch.cat([*sums, *(known.view(1) for known in self.weights.values())])
        found = self.trainer.across(found) if self.sharded else found
        if self.file is not None:
            moves = np.zeros(len(self.facts), MOVE)
            moves["together"] = 1
            moves["step"], moves["move"], moves["player"], moves["rows"] = np.array(self.facts).T
            gradients, weights = np.split(found.cpu().numpy().view(np.uint32), [len(moves)])
            moves["gradient"][np.argsort(moves["player"], kind="stable")] = gradients
            for step, known in zip(self.weights, weights, strict=True):
                moves["weights"][moves["step"] == step] = known
            moves["loss"] = torch.stack(self.losses).cpu().numpy()
            moves["settings"], moves["lr"] = zip(*_settled(self.settings), strict=True)
            self.made.append(moves)
        self._clear()


def parted(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of which it takes less time to copy all into one than to sum each, and the others."""
    small: list[Tensor] = []
    large: list[Tensor] = []
    for tensor in tensors:
        (small if tensor.dtype is torch.float32 and tensor.numel() < TOGETHER else large).append(tensor)
    return small, large


def sum_of(small: Sequence[Tensor], large: Sequence[Tensor]) -> Tensor:
    """The sum of the bits of all numbers, modulo 2^32, as (): int32."""
    whole = [_flatten_dense_tensors(small), *large] if small else large
    found = [_whole_numbers(tensor).sum(dtype=torch.int32) for tensor in whole]
    return found[0] if len(found) == 1 else torch.stack(found).sum(dtype=torch.int32)


def _whole_numbers(tensor: Tensor) -> Tensor:
    """The bits of numbers as whole numbers."""
    size = tensor.element_size()
    return (
        tensor.contiguous().view(-1).view(torch.int32 if size % 4 == 0 else torch.int16 if size == 2 else torch.uint8)
    )


def row_checksums(numbers: Tensor, sizes: Sequence[int], first: int) -> Tensor:
    """A checksum below 2^32 of the rows of each batch and their places in the epoch: (batches,) int64.

    `numbers` are those of all rows in their order, of which the first has the place `first`.
    """
    places = torch.arange(first, first + len(numbers), device=numbers.device)
    mixed = (numbers * ROW_STRIDE) ^ (places * PLACE_STRIDE)
    mixed = (mixed ^ (mixed >> 29)) * ROW_STRIDE  # all wrap around
    ends = torch.tensor(sizes, device=numbers.device).cumsum(0)
    totals = mixed.cumsum(0)[ends - 1]
    totals[1:] -= totals[:-1].clone()
    return (totals ^ (totals >> 32)) & 0xFFFFFFFF


def _numeric(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, tuple) and all(isinstance(v, float) for v in value)
    )


def _settled(settings: Sequence[list[list[Any]]]) -> Iterator[tuple[int, float]]:
    """A checksum of the settings of each move, and the largest lr; most are as they were before."""
    known: list[list[Any]] = []
    for groups in settings:
        if groups != known:
            flat = [x for group in groups for value in group for x in (value if isinstance(value, tuple) else (value,))]
            known, found = groups, (zlib.crc32(np.array(flat, np.float64).tobytes()), max(group[0] for group in groups))
        yield found

"""Losses and predictions of rows that are not trained on."""

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from dltrain.distributed import Single
from dltrain.player import Player
from dltrain.tasks.task import Task

CHUNK_NUMBERS = 2**20  # numbers in the features of one evaluation pass
CHUNK_ROWS = 2048  # at most: with more, the outputs of a layer leave a core's cache (an MLP is 15 % slower with 8192)


def chunk_size(features: Tensor, widens: int = 1) -> int:
    """Rows of one pass: fixed by the shape of a row alone, so that it does not depend on where a run computes.

    `widens` as in Task.
    """
    return max(16, min(CHUNK_ROWS, CHUNK_NUMBERS // max(1, features.shape[1:].numel() * widens)))


@torch.no_grad()
def assess(
    task: Task, players: Mapping[str, Player], rows: Mapping[str, Tensor], trainer: Single
) -> tuple[dict[str, float], Tensor]:
    """Mean loss by player, and all predictions on the CPU in the order of the rows; with averaged weights if kept.

    Of several ranks each passes over a share of the rows; rank 0 has the whole of it, the others what is their own.
    """
    names: list[str] = []
    sums: list[Tensor] = []
    parts: list[Tensor] = []
    n_rows, size = len(rows["features"]), chunk_size(rows["features"], task.widens)
    task.eval()
    with ExitStack() as stack:
        for player in players.values():
            stack.enter_context(player.averaged())
        for start, end in trainer.chunks(n_rows, size):
            if task.draws:
                trainer.seed(start)  # the same noise at every evaluation
            with trainer.autocast():
                moves, predictions = task.assess({key: v[start:end].to(trainer.device) for key, v in rows.items()})
            names = [name for name, _, _ in moves]
            pairs = [
                torch.stack([total.cpu().double(), torch.as_tensor(count).cpu().double()]) for _, total, count in moves
            ]
            sums.append(torch.stack(pairs).unsqueeze(0))
            parts.append(predictions.cpu())
    task.train()
    n_chunks = -(-n_rows // size)
    losses = torch.zeros(len(names), 2, dtype=torch.float64)
    for chunk in trainer.gather(sums, n_chunks, 1):
        losses += chunk
    means = {name: float(total / count) for name, (total, count) in zip(names, losses, strict=True)}
    return means, trainer.gather(parts, n_rows, size)


def named(split: str, losses: Mapping[str, float]) -> dict[str, float]:
    """Losses under the names of a record: `loss`, and one a player if there are several."""
    record = {f"{split}loss": sum(losses.values())} if losses else {}
    return record | ({f"{split}{name}_loss": value for name, value in losses.items()} if len(losses) > 1 else {})

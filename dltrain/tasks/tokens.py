"""What tasks of tokens share. Token 0 is padding: nothing is told there."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 0
Loss = tuple[Tensor, Tensor | float]  # a sum, and what it is a mean over


def nats(logits: Tensor, target: Tensor) -> Tensor:
    """(batch, steps, vocabulary) and (batch, steps) to the loss of every token (batch, steps), 0 of padding."""
    flat = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=PADDING, reduction="none"
    )  # of two dimensions, whose backward pass is deterministic on CUDA
    return flat.view_as(target)


def summed(loss: Callable[..., Loss], logits: Tensor, target: Tensor) -> Loss:
    """The loss of (batch, steps, vocabulary) summed over tokens that are not padding, and how many those are."""
    return loss(logits.float().flatten(0, 1), target.flatten(), (target != PADDING).flatten().float())


def tally(logits: Tensor, target: Tensor) -> Tensor:
    """(batch, 3): the loss of a row in nats, its tokens, and those guessed right."""
    told = target != PADDING
    right = told & (logits.argmax(2) == target)
    return torch.stack([nats(logits, target).sum(1), told.sum(1), right.sum(1)], 1)


def search(
    step: Callable[[Tensor, Tensor], Tensor], begin: Tensor, last: int, steps: int, beam: int, penalty: float = 0.0
) -> Tensor:
    """The likeliest sequences that a beam finds for each row: (rows, steps), padded behind `last`.

    With a length `penalty` above 0 the logarithm of a sequence's probability is divided by ((5 + length) / 6)^penalty,
    by which long ones lose less (https://arxiv.org/abs/1609.08144, equation 14); `last` counts.

    Every row keeps `beam` sequences that begin with its token of `begin` (rows,). All take the same number of steps,
    so that ranks which share a network make the same calls. `step(tokens, parents)` gives logits
    (rows * beam, vocabulary) of what follows tokens (rows * beam, 1); each goes on from one of those before, `parents`.
    """
    rows, told = len(begin), begin.repeat_interleave(beam)[:, None]
    scores = torch.full((rows, beam), -torch.inf, device=begin.device)
    scores[:, 0] = 0  # the others begin the same
    lengths = torch.zeros_like(scores)
    parents = base = torch.arange(rows * beam, device=begin.device)
    for _ in range(steps):
        chances = step(told[:, -1:], parents).float().log_softmax(1)
        chances[:, PADDING] = -torch.inf
        ended = (told[:, -1] == last) | (told[:, -1] == PADDING)
        chances[ended] = -torch.inf
        chances[ended, PADDING] = 0
        lengths = lengths + ~ended.view(rows, beam)
        found = scores[:, :, None] + chances.view(rows, beam, -1)
        chosen = (found / ((5 + lengths) / 6)[:, :, None] ** penalty).flatten(1).topk(beam).indices
        scores, lengths = found.flatten(1).gather(1, chosen), lengths.gather(1, chosen // chances.shape[1])
        parents = (base.view(rows, beam)[:, :1] + chosen // chances.shape[1]).flatten()
        told = torch.cat([told[parents], (chosen % chances.shape[1]).view(-1, 1)], 1)
    return told.view(rows, beam, -1)[:, 0, 1:]

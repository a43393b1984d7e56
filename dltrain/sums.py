"""Sums over the shards of a batch that come out the same however the shards are spread over processes."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


class Tree:
    """The sum of equal lists of tensors over a complete binary tree, taken leaf by leaf as a binary counter counts.

    Leaves that are missing at the end count as zeros, so the result depends on the leaves alone.
    """

    def __init__(self) -> None:
        self.partial: list[tuple[int, list[Tensor]]] = []  # height of a subtree and its sum; heights fall

    def add(self, leaf: list[Tensor]) -> None:
        """Take the next leaf, whose tensors are the tree's from now on."""
        height = 0
        while self.partial and self.partial[-1][0] == height:
            left = self.partial.pop()[1]
            torch._foreach_add_(left, leaf)
            leaf, height = left, height + 1
        self.partial.append((height, leaf))

    def close(self) -> list[Tensor]:
        """The sum of all leaves; the tree is empty again."""
        _, total = self.partial.pop()
        while self.partial:
            left = self.partial.pop()[1]
            torch._foreach_add_(left, total)
            total = left
        return total


class BatchSums:
    """What one move sums over a batch's shards besides gradients: its loss, what that is a mean over, batch statistics.

    Running statistics advance once, by the row-weighted mean over the shards.
    """

    def __init__(self, networks: Iterable[nn.Module], kind: torch.dtype) -> None:
        buffers = [buffer for network in networks for buffer in network.buffers()]
        self.buffers = [b for b in buffers if b.is_floating_point()]
        self.before = [b.clone() for b in self.buffers]
        self.counters = [b for b in buffers if not b.is_floating_point()]
        self.counted: list[Tensor] = []
        self.kind = kind
        self.tree = Tree()

    def add(self, total: Tensor, count: Tensor | float, rows: int) -> None:
        """Take the next shard, whose backward pass has just been made; one of no rows only stands in."""
        facts = [total.detach(), torch.as_tensor(count, device=total.device), torch.tensor(rows, device=total.device)]
        facts = [fact.to(self.kind).view(1) for fact in facts]
        facts += [buffer.to(self.kind).flatten() * rows for buffer in self.buffers]
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)
        self.counted = self.counted or [counter.clone() for counter in self.counters]
        for counter, once in zip(self.counters, self.counted, strict=True):
            counter.copy_(once)
        self.tree.add([torch.cat(facts)])

    def close(self, across: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The loss and the count of the whole batch, given what sums a vector over all processes."""
        [facts] = self.tree.close()
        total, count, rows, *statistics = across(facts).split([1, 1, 1, *(b.numel() for b in self.buffers)])
        for buffer, statistic in zip(self.buffers, statistics, strict=True):
            buffer.copy_((statistic / rows).view_as(buffer))
        return total.view(()).float(), count.view(())


def own(bounds: Sequence[tuple[int, int]], owned: range) -> list[tuple[int, int, int, int]]:
    """The shards that a process computes: (shard, rows, start, end), leaving out empty ones, which come last.

    Every process makes as many passes as the first, which has the most: a pass may be a collective. One that has fewer
    shards with rows computes the first shard as one of no rows: it adds nothing.
    """
    filled = [(shard, end - start, start, end) for shard, (start, end) in enumerate(bounds) if end > start]
    mine = [shard for shard in filled if shard[0] in owned]
    return mine + [(0, 0, *bounds[0])] * (min(len(filled), len(owned)) - len(mine))

"""A task's forward pass of all members at once, in which each draws by its own generator and counts by its own numbers.

The functions of torch that draw are met on their way, within `torch.func.vmap`: each member's draw is what it would be
alone, from a generator that was seeded as its own is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.together.numbers import Disagree, Function, Numbers, Varied

FEW = 32  # classes, up to which one log_softmax is faster over another dimension


class Given(torch.autograd.Function):
    """A tensor (members, ...) that comes from outside, one row a member, within vmap."""

    @staticmethod
    def forward(members: Tensor, make: Callable[[], Tensor]) -> Tensor:
        return make()[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        return None, None

    @staticmethod
    def vmap(info: Any, dims: tuple, members: Tensor, make: Callable[[], Tensor]) -> tuple[Tensor, int]:
        return make(), 0


class Draws(Numbers):
    """Within, what is drawn by a function that vmap maps is each member's own, by generators one a member."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generators = generators
        self.members = torch.empty(0)  # (members,), of which vmap hands on one a member

    def tensor(self, numbers: Varied, like: Tensor) -> Tensor:
        each = torch.from_numpy(numbers.each).to(like.device, like.dtype)
        made: Tensor = Given.apply(self.members, lambda: each)
        return made

    def __torch_function__(self, func: Function, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in DRAWN and given.get("generator") is None:
            return DRAWN[func](self, *args, **given)
        return super().__torch_function__(func, types, args, given)

    def each(self, shape: Sequence[int], like: Tensor, fill: Callable[[Tensor, torch.Generator], Any]) -> Tensor:
        """One tensor of a shape for each member, which is filled by its generator."""

        def filled() -> Tensor:
            made = torch.empty(len(self.generators), *shape, dtype=like.dtype, device=like.device)
            for row, generator in zip(made.unbind(), self.generators, strict=True):
                fill(row, generator)
            return made

        found: Tensor = Given.apply(self.members, filled)
        return found

    def randn_like(self, x: Tensor) -> Tensor:
        return self.each(x.shape, x, lambda row, generator: row.normal_(generator=generator))

    def rand(self, *size: Any, device: Any = None) -> Tensor:
        like = torch.empty(0, device=device)
        return self.each(_shape(size), like, lambda row, generator: row.uniform_(generator=generator))

    def randint(self, high: int, size: Sequence[int], device: Any = None) -> Tensor:
        like = torch.empty(0, dtype=torch.long, device=device)
        return self.each(size, like, lambda row, generator: row.random_(0, high, generator=generator))

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """As torch's on a CPU: whether a number stays is drawn, then all are divided by the share that stays."""
        if not training or not p:
            return x
        stays = 1.0 - p
        each = stays.each.tolist() if isinstance(stays, Varied) else [stays] * len(self.generators)
        shares = iter(each)
        mask = self.each(x.shape, x, lambda row, generator: row.bernoulli_(next(shares), generator=generator))
        return x * (mask / (self.tensor(stays, x) if isinstance(stays, Varied) else stays))

    def cross_entropy(
        self,
        output: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        **given: Any,
    ) -> Tensor:
        """As torch's, but for two things: smoothing may be by a share of each member, and few classes take less time.

        log_softmax over a short last dimension takes eight times as long as over any other.
        """
        share, varied = label_smoothing, isinstance(label_smoothing, Varied)
        plain = output.ndim != 2 or reduction == "mean" or ignore_index != -100
        if plain and varied:  # which torch would take for no smoothing
            raise Disagree("label_smoothing differs")
        if plain or (not varied and output.shape[1] > FEW):
            given |= {"reduction": reduction, "label_smoothing": share, "ignore_index": ignore_index}
            return F.cross_entropy(output, target, weight, **given)
        unlikely = -output.t().contiguous().log_softmax(0).t()
        unlikely = unlikely if weight is None else unlikely * weight
        if target.is_floating_point():
            rows = (unlikely * target).sum(1)
        else:
            rows = unlikely.gather(1, target.unsqueeze(1)).squeeze(1)
        if varied or share:
            by = self.tensor(share, output) if isinstance(share, Varied) else share
            rows = (1 - by) * rows + by * unlikely.mean(1)
        return rows.sum() if reduction == "sum" else rows


def _shape(size: tuple) -> Sequence[int]:
    return size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size


DRAWN: Mapping[Any, Function] = {
    torch.randn_like: Draws.randn_like,
    torch.rand: Draws.rand,
    torch.randint: Draws.randint,
    F.dropout: Draws.dropout,
    F.cross_entropy: Draws.cross_entropy,
}

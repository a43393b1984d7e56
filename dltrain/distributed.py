"""Where a run computes. A single device is a world of one, so nothing outside this file asks which trainer runs."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError, must, whole
from dltrain.settings import PRECISIONS, Every

SMALL = 2**26  # multiply-adds of a step below which a second thread costs more than it brings (measured on MLPs)


class Single:
    """One process on one device; every collective is the identity."""

    rank, world_size = 0, 1

    def __init__(
        self,
        device: str = "auto",
        threads: int | None = None,
        save_every: int | str = "30s",
        compile: bool = False,
        deterministic: bool = True,
        exact: bool = False,
        precision: str = "float32",
    ) -> None:
        fits = threads is None or whole(threads, 1)
        must(fits, "trainer.threads", "a whole number of at least 1, or null", threads)
        self.device = _device(device)
        self.threads, self.compile, self.deterministic, self.exact = threads, compile, deterministic, exact
        self.save_every = Every.parse("trainer.save_every", save_every, ("epochs", "steps", "s"))
        self.dtype = getattr(torch, precision) if precision in PRECISIONS else torch.float32
        if self.dtype is torch.float16 and self.device.type == "cpu":
            raise ConfigError("precision must be float32 or bfloat16 on a CPU, got float16")

    def __enter__(self) -> "Single":
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
            torch.use_deterministic_algorithms(True)
            # nothing here reads memory it has not written, and filling all of it first costs time
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)

    def set_threads(self, multiply_adds: int, recorded: int | None) -> int:
        """Fix the threads: as set, as recorded when the run started, one if exact, else by the size of a step."""
        small = self.exact or multiply_adds < SMALL
        torch.set_num_threads(self.threads or recorded or (1 if small else torch.get_num_threads()))
        return torch.get_num_threads()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Move a player to the device and make it run as this trainer runs things."""
        network.to(self.device)
        if self.compile:
            network.compile()
        return network

    def owned(self, shards: int) -> range:
        """The shards of a global batch that this rank computes."""
        return range(self.rank * shards // self.world_size, (self.rank + 1) * shards // self.world_size)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Forward passes in `precision`; the weights, losses and the optimizer stay float32."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def seed(self, seed: int) -> None:
        """Seed whatever draws next, here and on the device."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def chunks(self, n_rows: int, size: int) -> Iterator[tuple[int, int]]:
        """The chunks [start, end) of rows that this rank evaluates."""
        for start in range(0, n_rows, size):
            yield start, min(start + size, n_rows)

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """The results of all chunks, from every rank, in the order of the rows."""
        return torch.cat(list(parts))

    def any(self, flag: bool) -> bool:
        """True everywhere if the flag is true on one rank."""
        return flag


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"trainer.device must be a device of this machine, such as cpu, got {name}") from None
    return device


class ShardSum:
    """The sum over a batch's shards of one player's gradients, loss, count and batch statistics.

    With `exact`, sums are taken over the complete binary tree of the shards by a stack of partial sums, as in a binary
    counter: the result depends on the shards alone, not on how many of them one process owns. Otherwise autograd's own
    accumulation adds the gradients up. Running statistics advance once, by the row-weighted mean over the shards.
    """

    def __init__(self, task: nn.Module, shards: int, exact: bool) -> None:
        self.tree = exact and shards > 1
        self.buffers = [b for b in task.buffers() if b.is_floating_point()] if shards > 1 else []
        self.before = [b.clone() for b in self.buffers]
        self.counters = [b for b in task.buffers() if not b.is_floating_point()] if shards > 1 else []
        self.stack: list[tuple[int, list[Tensor]]] = []
        self.count: Tensor | float = 0
        self.rows = 0

    def add(self, parameters: Sequence[Tensor], total: Tensor, count: Tensor | float, rows: int) -> None:
        """Take the next shard, whose backward pass has just been made."""
        statistics = [b * rows for b in self.buffers]
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)
        if not self.rows:
            self.counted = [c.clone() for c in self.counters]
        for counter, once in zip(self.counters, self.counted, strict=True):
            counter.copy_(once)
        leaves = [total.detach().float(), *statistics]
        if self.tree:
            leaves += [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            for parameter in parameters:
                parameter.grad = None
        self.count, self.rows = self.count + count, self.rows + rows
        self._push(leaves)

    def _push(self, leaves: list[Tensor]) -> None:
        height = 0
        while self.stack and (self.stack[-1][0] == height or not self.tree):
            left = self.stack.pop()[1]
            torch._foreach_add_(left, leaves)
            leaves, height = left, height + 1
        self.stack.append((height, leaves))

    def close(self, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor | float]:
        """Leave the summed gradients in `.grad` and return the summed loss and count."""
        while len(self.stack) > 1:  # the tree is not full: shards without rows would have added zeros
            right = self.stack.pop()[1]
            torch._foreach_add_(self.stack[-1][1], right)
        [(_, [total, *leaves])] = self.stack
        for buffer, mean in zip(self.buffers, leaves[: len(self.buffers)], strict=True):
            buffer.copy_(mean / self.rows)
        if self.tree:
            for parameter, gradient in zip(parameters, leaves[len(self.buffers) :], strict=True):
                parameter.grad = gradient
        return total, self.count

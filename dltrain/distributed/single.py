"""One process on one device: a world of one, so that nothing outside this room asks which trainer runs."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from dltrain.errors import ConfigError, must, whole
from dltrain.settings import PRECISIONS, Every
from dltrain.sums import Tree

SMALL = 2**26  # multiply-adds of a step below which a second thread costs more than it brings (measured on MLPs)
Made = TypeVar("Made")
Item = TypeVar("Item")


class Single:
    """One process on one device; every collective is the identity."""

    rank, world_size, local_size = 0, 1, 1

    def __init__(
        self,
        device: str = "auto",
        threads: int | None = None,
        save_every: int | str = "30s",
        compile: bool = False,
        activation_checkpointing: bool = False,
        deterministic: bool = True,
        exact: bool = False,
        precision: str = "float32",
    ) -> None:
        fits = threads is None or whole(threads, 1)
        must(fits, "trainer.threads", "a whole number of at least 1, or null", threads)
        self.device = find_device(device)
        self.threads, self.compile, self.deterministic, self.exact = threads, compile, deterministic, exact
        self.activation_checkpointing = activation_checkpointing
        self.save_every = Every.parse("trainer.save_every", save_every, ("epochs", "steps", "s"))
        self.dtype = getattr(torch, precision) if precision in PRECISIONS else torch.float32
        self.tree = Tree()  # of the gradients of the move under way
        self.last = True  # whether the shard under way is this rank's last of the move
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
        share = max(1, torch.get_num_threads() // self.local_size)
        torch.set_num_threads(self.threads or recorded or (1 if small else share))
        return torch.get_num_threads()

    def wrap(self, network: nn.Module) -> None:
        """Move a player to the device and make it run as this trainer runs things, under the names it has."""
        network.to(self.device)
        for part in [*blocks(network), network] if self.exact else []:
            part.register_forward_pre_hook(_views, with_kwargs=True)
        if self.activation_checkpointing:
            for block in blocks(network):
                if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in block.modules()):
                    block.forward = _recomputed(block.forward)  # its statistics would advance twice
        if self.compile:
            network.compile()

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

    # Gradients: autograd adds those of a rank's shards up, unless exact: then the tree does.

    def begin(self, last: bool) -> None:
        """Prepare for the forward and backward passes of a shard; `last` if it is this rank's last of the move."""
        self.last = last

    def backward(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        """The backward pass of a shard, for the player of these parameters."""
        loss.backward()
        if self.exact:
            self.take(parameters)

    def take(self, parameters: Sequence[Tensor]) -> None:
        """Move the gradients of a shard into the tree."""
        self.tree.add([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        for parameter in parameters:
            parameter.grad = None

    def close(self, parameters: Sequence[Tensor]) -> None:
        """Leave the gradients of the whole batch, summed, in `.grad`."""
        if self.exact:
            for parameter, gradient in zip(parameters, self.tree.close(), strict=True):
                parameter.grad = gradient
            self.unsign(parameters)

    def unsign(self, parameters: Sequence[Tensor]) -> None:
        """Turn -0 into 0: a shard without rows adds zeros on its own rank, and nothing where it shares one."""
        torch._foreach_add_([self.local(p.grad) for p in parameters if p.grad is not None], 0.0)

    def across(self, vector: Tensor) -> Tensor:
        """The sum of a short vector over all ranks, in an order that does not depend on their number."""
        return vector

    def agree_finite(self, flag: Tensor) -> None:
        """Raise the flag on every rank if it is raised on one."""

    def clip(self, parameters: Sequence[Tensor], limit: float) -> None:
        """Scale gradients down to a norm of at most `limit` over all of them."""
        nn.utils.clip_grad_norm_(parameters, limit)

    # Tensors that a trainer spreads over ranks: here they are whole.

    def local(self, tensor: Tensor) -> Tensor:
        """What this rank holds of a tensor, in the same memory."""
        return tensor

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        """The whole of which this rank holds a part, spread as `like` is; every rank must ask."""
        return part

    def spread(self, whole: Tensor, like: Tensor) -> Tensor:
        """A whole tensor, spread as `like` is."""
        return whole

    def check(self, optimizer: Optimizer) -> None:
        """Raise ConfigError if the optimizer cannot do with the parts that a rank holds."""

    # What ranks tell each other.

    def agree(self, wishes: list[float]) -> list[float]:
        """The largest of every rank's wishes, one by one."""
        return wishes

    def tell(self, make: Callable[[], Made]) -> Made:
        """What rank 0 makes (what JSON can hold), on every rank."""
        return make()

    def share(
        self, make: Callable[[], Made], save: Callable[[Made, Path], Made], load: Callable[[Path], Made], folder: Path
    ) -> Made:
        """What one rank of each node makes and saves in a folder of its own; the others load it."""
        return make()

    def barrier(self) -> None:
        """Wait for all ranks."""

    def chunks(self, n_rows: int, size: int) -> Iterator[tuple[int, int]]:
        """The chunks [start, end) of rows that this rank evaluates: r, r + W, ... of W ranks."""
        for start in range(0, n_rows, size):
            yield start, min(start + size, n_rows)

    def gather(self, parts: Sequence[Tensor], n_rows: int, size: int) -> Tensor:
        """The results of all chunks of n_rows rows, `size` each, in the order of the rows; whole on rank 0 alone."""
        return torch.cat(list(parts))

    def in_turn(self, items: Iterable[Item], make: Callable[[Item], str]) -> Iterator[str]:
        """What is made of every item, in their order: by all ranks in turn, whole on rank 0, nothing elsewhere."""
        return map(make, items)


def find_device(name: str) -> torch.device:
    """The device of that name; raises ConfigError if this machine does not have it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"trainer.device must be a device of this machine, such as cpu, got {name}") from None
    return device


def blocks(network: nn.Module) -> list[nn.Module]:
    """The parts that a network repeats: what stands in its outermost lists and sequences, and has parameters."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += blocks(child)
    return found


def _views(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Inputs as views: what a part adds to their gradients is summed up first, as FSDP orders these sums."""

    def view(value: Any) -> Any:
        return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value

    return tuple(map(view, args)), {key: view(value) for key, value in kwargs.items()}


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass whose activations are computed again in the backward pass instead of being kept."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run

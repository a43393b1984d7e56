"""A network as a list of its layers, with the shape that leaves each and the parameters in it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A module that computes: where it stands in the network, what it is, what leaves it, and what it alone learns."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # of one row; None if the module was not called as one
    parameters: int


def layers(network: nn.Module, shape_in: tuple[int, ...]) -> list[Layer]:
    """List the modules without children or with parameters of their own, in the order in which they were made."""
    shapes = _shapes(network, shape_in)
    counted: set[Tensor] = set()  # a tied weight is counted where it first stands
    found = []
    for name, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if p not in counted]
        counted.update(own)
        if own or not any(module.children()):
            kind = type(module).__name__
            found.append(Layer(name, kind, shapes.get(module), sum(p.numel() for p in own)))
    return found


def _shapes(network: nn.Module, shape_in: tuple[int, ...]) -> dict[nn.Module, tuple[int, ...]]:
    """Send one row of zeros through the network and note the shape, without the batch, that leaves each module."""
    seen: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, given: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            seen[module] = tuple(first.shape[1:])

    parameter = next(network.parameters(), torch.zeros(()))
    tokens = getattr(network, "reads", None) == "tokens"
    row = torch.zeros(1, *shape_in, dtype=torch.long if tokens else parameter.dtype, device=parameter.device)
    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        # The listing is worth less than a run: a network that cannot take a single row is listed without shapes.
        with _untouched(network), contextlib.suppress(Exception):
            network(row)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextlib.contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; put the modes, the buffers and the random generators back as they were."""
    training = {module: module.training for module in network.modules()}
    buffers = {buffer: buffer.clone() for buffer in network.buffers()}
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            network.eval()
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            for buffer, before in buffers.items():
                buffer.copy_(before)

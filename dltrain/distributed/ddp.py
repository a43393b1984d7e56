"""Every rank has the whole network; torch's DistributedDataParallel sums the gradients."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dltrain.distributed.processes import Processes
from dltrain.errors import ConfigError
from dltrain.sums import Tree


class DDP(Processes):
    """A network on every rank; gradients are summed while the backward pass goes on.

    With `exact` they are summed over the tree of all shards (see dltrain.sums).
    """

    def __enter__(self) -> "DDP":
        super().__enter__()
        self.replicas: list[DistributedDataParallel] = []
        self.places: dict[int, int] = {}  # of the parameters of the player that moves, by id
        return self

    def wrap(self, network: nn.Module) -> None:
        """As Single; calls of the network go through DDP from now on, while its tensors keep their names."""
        compiled, self.compile = self.compile, False
        super().wrap(network)
        self.compile = compiled
        inner = _Inner(network)
        if self.compile:
            inner.compile()
        with warnings.catch_warnings():  # newer versions of torch have another name for broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            replica = DistributedDataParallel(inner, broadcast_buffers=False, gradient_as_bucket_view=True)
        replica.register_comm_hook(None, self._sum)
        network.forward = _said_well(replica)
        self.replicas.append(replica)

    def begin(self, last: bool) -> None:
        super().begin(last)
        for replica in self.replicas:
            replica.require_backward_grad_sync = last

    def backward(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        if self.exact and self.last:
            self.places = {id(parameter): place for place, parameter in enumerate(parameters)}
        loss.backward()
        if self.exact and not self.last:
            for parameter in parameters:  # in DDP's own memory, perhaps
                parameter.grad = None if parameter.grad is None else parameter.grad.clone()
            self.take(parameters)

    def close(self, parameters: Sequence[Tensor]) -> None:
        self.tree = Tree()
        if self.exact:
            self.unsign(parameters)

    def _sum(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Sum a bucket of gradients over the ranks; DDP itself would take their mean."""
        buffer = bucket.buffer()
        if not self.last:  # a forward pass of another player's move, never followed by a backward pass, armed DDP
            return _done(buffer)
        if not self.exact:
            work = dist.all_reduce(buffer, async_op=True)
            return work.get_future().then(lambda done: done.value()[0])
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if id(parameter) in self.places:
                for _height, left in reversed(self.tree.partial):
                    gradient.add_(left[self.places[id(parameter)]])
        self.sum_tree(buffer)
        return _done(buffer)


def _done(buffer: Tensor) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(buffer)
    return future


def _said_well(replica: DistributedDataParallel) -> Callable[..., Any]:
    """Calls a replica; raises ConfigError where the step before left parameters without a gradient."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return replica(*args, **kwargs)
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            raise ConfigError(
                "trainer must be single or fsdp for a network of which a step leaves some parameters unused, got ddp"
            ) from error

    return forward


class _Inner(nn.Module):
    """The network as DDP sees it: its own forward pass, and its parameters."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.run = network, network.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

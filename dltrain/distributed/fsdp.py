"""Every rank has a piece of each parameter; torch's FSDP2 brings the blocks together as they are needed."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from dltrain.distributed.processes import Processes
from dltrain.distributed.single import blocks
from dltrain.errors import ConfigError
from dltrain.sums import Tree

# optimizers for which a piece of a tensor moves as it would in the whole
ELEMENTWISE = (
    *(optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad, optim.Adadelta, optim.Adamax, optim.NAdam),
    *(optim.RAdam, optim.RMSprop, optim.Rprop, optim.ASGD),
)


class FSDP(Processes):
    """Parameters, gradients and optimizer state in pieces, one a rank, along the first dimension.

    The blocks of a network are gathered one by one, then the rest (https://arxiv.org/abs/2304.11277). With `precision`
    below float32 the blocks are gathered in that type, and gradients are summed in float32.
    """

    def __enter__(self) -> "FSDP":
        super().__enter__()
        # heads give views, and no task or loss here works in place on what a network gives
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor")
        self.mesh = init_device_mesh(self.device.type, (self.world_size,))
        self.networks: list[FSDPModule] = []
        return self

    def wrap(self, network: nn.Module) -> None:
        super().wrap(network)
        low = None if self.exact or self.dtype is torch.float32 else self.dtype  # exact: rounded where Single rounds
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        for module in [*blocks(network), network]:
            fully_shard(module, mesh=self.mesh, mp_policy=policy)
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                if self.exact:
                    module.set_custom_reduce_scatter(cast(Any, TreeScatter(self)))
                self.networks.append(module)

    def begin(self, last: bool) -> None:
        super().begin(last)
        for module in self.networks:
            module.set_requires_gradient_sync(last or self.exact, recurse=False)

    def backward(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        if self.world_size == 1:  # FSDP scatters nothing then
            super().backward(loss, parameters)
        else:
            loss.backward()

    def close(self, parameters: Sequence[Tensor]) -> None:
        if self.world_size == 1:
            super().close(parameters)
        elif self.exact:
            self.unsign(parameters)

    def agree_finite(self, flag: Tensor) -> None:
        dist.all_reduce(flag, dist.ReduceOp.MAX)

    @torch.no_grad()
    def clip(self, parameters: Sequence[Tensor], limit: float) -> None:
        """As Single. With exact, norms are of whole tensors: a norm of pieces rounds differently."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.exact:
            norm = nn.utils.get_total_norm([self.whole(self.local(g), g) for g in gradients])
        else:
            mine = nn.utils.get_total_norm([self.local(g) for g in gradients])
            norm = self.across(mine.square().view(1)).sqrt().view(())
        held = [nn.Parameter(self.local(p)) for p in parameters]
        for part, gradient in zip(held, gradients, strict=True):
            part.grad = self.local(gradient)
        nn.utils.clip_grads_with_norm_(held, limit, norm)

    @torch.no_grad()
    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    @torch.no_grad()
    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor) or part.shape != like.to_local().shape:
            return part
        spread = DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return spread.full_tensor()

    @torch.no_grad()
    def spread(self, whole: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor) or whole.shape != like.shape:
            return whole
        if isinstance(whole, DTensor):
            return whole.redistribute(placements=like.placements)
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def check(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, ELEMENTWISE):
            name = type(optimizer).__name__.lower()
            known = ", ".join(kind.__name__.lower() for kind in ELEMENTWISE)
            raise ConfigError(
                f"optimizer must be one of {known} with trainer=fsdp, got {name}, which looks at whole tensors;"
                " trainer=ddp keeps them whole"
            )


class TreeScatter:
    """Sums the gradients of one group of parameters over the tree of all shards; each rank keeps its piece.

    FSDP asks after every shard's backward pass and adds the answers up: they are zeros until the last. What it asks is
    torch's ReduceScatter, a private class, so we are like it without deriving from it.
    """

    def __init__(self, trainer: FSDP) -> None:
        self.trainer, self.tree = trainer, Tree()

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        self.tree.add([input_tensor.clone()])
        if not self.trainer.last:
            output_tensor.zero_()
            return
        [summed] = self.tree.close()
        self.trainer.sum_tree(summed)
        output_tensor.copy_(summed.chunk(self.trainer.world_size)[self.trainer.rank])

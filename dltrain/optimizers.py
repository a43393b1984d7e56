"""Optimizers beside torch's own."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer


class Muon(Optimizer):
    """Hidden matrices and kernels by torch.optim.Muon, everything else by AdamW, behind one list of parameter groups.

    As https://kellerjordan.github.io/posts/muon advises, the first and the last matrix, embeddings, heads, biases and
    norms are AdamW's; a convolution's kernel is a matrix of (channels out, the rest). With
    `adjust_lr_fn=match_rms_adamw` (https://arxiv.org/abs/2502.16982) one lr and weight decay serve both.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[Tensor],
        lr: float = 0.001,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        one = [torch.zeros(1, 1)]  # torch checks settings only where there is a parameter
        self.muon = torch.optim.Muon(
            one, lr, weight_decay, momentum, nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn
        )
        self.adamw = AdamW(one, lr, betas, eps, weight_decay, fused=fused)
        listed = list(params)
        # groups in the order of the parameters: the number of a state is the number of its parameter
        groups = [
            {**(self.muon if hidden else self.adamw).defaults, "params": list(chosen), "hidden": hidden}
            for hidden, chosen in groupby(listed, key=hidden_among(listed))
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["hidden"]:
                self.step_hidden(group)
            else:
                self.adamw.param_groups, self.adamw.state = [group], self.state
                self.adamw.step()
        return loss

    def step_hidden(self, group: dict[str, Any]) -> None:
        """Step torch's Muon on matrix views, so that the state keeps the shapes of the parameters."""
        views, state = [], defaultdict[Tensor, Any](dict)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            view = parameter.detach().view(len(parameter), -1)
            view.grad = parameter.grad.reshape(len(parameter), -1)
            state[view] = {"momentum_buffer": buffer.view(len(parameter), -1)}
            views.append(view)
        self.muon.param_groups, self.muon.state = [{**group, "params": views}], state
        self.muon.step()


def hidden_among(params: list[Any]) -> Callable[[Any], bool]:
    """Tells the hidden matrices from the rest; parameters stand alone or as (name, parameter)."""

    def parts(item: Any) -> tuple[str, Tensor]:
        return item if isinstance(item, tuple) else ("", item)

    matrices = [parts(item) for item in params if parts(item)[1].ndim > 1]
    hidden = {
        id(matrix)
        for name, matrix in matrices[1:-1]
        if not any(word.startswith(("embed", "head")) for word in name.split("."))
    }
    return lambda item: id(parts(item)[1]) in hidden

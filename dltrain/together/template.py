"""The task that stands for those of all members: what differs between theirs is in it a number of each."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.health import activations
from dltrain.regularizers import Regularizer
from dltrain.tasks.task import Task
from dltrain.together.numbers import Disagree, Varied
from dltrain.train import Training

Tensors = dict[str, Tensor]


class Template(nn.Module):
    """The task of all members without weights of its own; what differs in their parts are numbers of each."""

    def __init__(self, task: Task, members: Sequence[Training]) -> None:
        super().__init__()
        self.task = task
        first = members[0]
        self.player = next(iter(first.players))
        self.parts = [copy.copy(part) for part in _regularizers(first)]
        self.activation = first.step.health.activation
        self.activations: list[Tensor] = []  # outputs, of which regularizers make a penalty
        self.seen: dict[str, list[Tensor]] | None = None  # inputs of activations, while they are looked at
        self.axes: dict[str, tuple[nn.Module, int]] = {}
        for where, module, axis in activations(self.network, self.activation):
            self.axes[where] = module, axis
            module.register_forward_hook(self._hook(where))
        for part, own in zip(self.parts, zip(*map(_regularizers, members), strict=True), strict=True):
            vary(part, own)
        vary(task, [member.task for member in members])

    @property
    def network(self) -> nn.Module:
        found: nn.Module = getattr(self.task, self.player)
        return found

    def _hook(self, where: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.seen is not None:
                self.seen.setdefault(where, []).append(inputs[0].detach().clone())
            if module.training and any(part.reads_activations for part in self.parts):
                self.activations.append(output)

        return hook

    def forward(self, verb: str, batch: Mapping[str, Tensor]) -> Any:
        """What one of the verbs below makes of a batch: functional_call knows only this."""
        return getattr(self, verb)(batch)

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, Tensor | None]:
        """The sum of the loss, what it is a mean over, and what regularizers add to the mean."""
        try:
            [(_, total, count)] = self.task.losses(batch)
            extra: Tensor | None = None
            for part in self.parts:
                penalty = part.penalty(self.network, self.activations)
                if penalty is not None and part.reads_activations:
                    total = total + penalty
                elif penalty is not None:
                    extra = penalty if extra is None else extra + penalty
        finally:
            self.activations.clear()
        return total, count, extra

    def assess(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, Tensor]:
        """The sum of the loss, what it is a mean over, and predictions."""
        [(_, total, count)], predictions = self.task.assess(batch)
        return total, count, predictions

    def constrain(self, batch: Mapping[str, Tensor]) -> None:
        """What regularizers do after a step."""
        for part in self.parts:
            part.constrain(self.network)


def _regularizers(member: Training) -> list[Regularizer]:
    """Those of a member that move its network; what they make of rows is made member by member."""
    [player] = member.players.values()
    verbs: list[Any] = [*player.penalties, *player.constraints]
    return list({id(part): part for part in (*member.step.readers, *(verb.__self__ for verb in verbs))}.values())


def vary(thing: Any, members: Sequence[Any]) -> None:
    """Put the numbers of all members where a thing of one has its own; raises Disagree at any other difference."""
    for key, value in list(vars(thing).items()):
        others = [vars(member).get(key) for member in members]
        if key == "_modules":
            for name, module in value.items():
                vary(module, [other[name] for other in others if other is not None])
        elif key.startswith("_") or key in ("target", "often", "look"):  # of data, of which a step asks nothing
            continue
        elif type(value) in (int, float, bool, str):
            if any(type(other) is not type(value) for other in others):
                raise Disagree(f"{key} is of several kinds")
            if any(other != value for other in others):
                if type(value) is not float:
                    raise Disagree(f"{key} differs")
                setattr(thing, key, Varied.of([float(other) for other in others if other is not None]))
        elif isinstance(value, Tensor):
            if any(not torch.equal(value, other) for other in others if other is not None):
                raise Disagree(f"{key} differs")
        elif type(value).__module__.startswith("dltrain.losses"):
            setattr(thing, key, own := copy.copy(value))
            vary(own, others)

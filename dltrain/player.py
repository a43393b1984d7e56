"""One network and what moves it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dltrain.distributed import Single
from dltrain.errors import NonFinite
from dltrain.regularizers import Regularizer


class Finite:
    """Notices, on the device, the first gradient or loss that is not finite; from then on no optimizer moves.

    The flag is read once in a while (logging, evaluation, before a save), so that no step waits for the device. With
    float16 a step that overflows is skipped and the scale of the loss halved, as torch's GradScaler does.
    """

    def __init__(self, device: torch.device, scaled: bool) -> None:
        self.flag = torch.zeros((), device=device)
        self.bad_steps = torch.zeros((), device=device)
        self.scale = torch.full((), 2.0**16, device=device) if scaled else None
        self.growth = torch.zeros((), dtype=torch.int32, device=device)

    def divide(self, tensors: list[Tensor], count: Tensor | float) -> None:
        """Divide in place by the count (and the scale of the loss), raising the flag if anything is not finite."""
        if isinstance(count, Tensor):
            factor = count.detach().to(torch.float32).reciprocal()
        else:
            factor = torch.full((), 1.0 / count, device=self.flag.device)
        if self.scale is not None:
            self.flag.zero_()
            factor = factor / self.scale
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, self.flag, factor)

    def stepped(self) -> None:
        """Count a step that was skipped, and move the scale."""
        if self.scale is not None:
            torch._amp_update_scale_(self.scale, self.growth, self.flag, 2.0, 0.5, 2000)
        else:
            self.bad_steps.add_(self.flag)

    def state(self) -> list[float]:
        """The scale and its growth, for a checkpoint."""
        return [] if self.scale is None else [self.scale.item(), self.growth.item()]

    def load(self, state: Sequence[float]) -> None:
        """Take up a saved scale."""
        if self.scale is not None and state:
            self.scale.fill_(state[0])
            self.growth.fill_(int(state[1]))

    def check(self, step: int) -> None:
        """Raise NonFinite naming the first bad step, if there was one; `step` steps have been taken."""
        lost = self.scale is not None and self.scale.item() < 1e-6
        if lost or self.bad_steps.item() > 0:
            first = step - int(self.bad_steps.item()) + 1
            raise NonFinite(
                f"step {first}: the loss or a gradient became infinite or not a number; no weight was changed by it. "
                "Try a smaller optimizer.lr, or clip_norm=1"
            )


class Player:
    """A network, its optimizer and scheduler, and the regularizers that apply to it."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        every_step: bool,
        regularizers: Sequence[Regularizer],
        clip_norm: float | None,
        ema: float | None,
        trainer: Single,
        pieces: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        self.name, self.network, self.optimizer, self.scheduler = name, network, optimizer, scheduler
        self.trainer, self.every_step, self.clip_norm, self.decay = trainer, every_step, clip_norm, ema
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.pieces = pieces  # parameters that are spread over ranks, and what the optimizer moves of each
        self.penalties = [
            r.penalty for r in regularizers if not r.reads_activations and type(r).penalty is not Regularizer.penalty
        ]
        self.constraints = [r.constrain for r in regularizers if type(r).constrain is not Regularizer.constrain]
        self.average = {k: v.clone() for k, v in self.held().items()} if ema is not None else {}
        fused = optimizer.param_groups[0].get("fused") and getattr(optimizer, "_step_supports_amp_scaling", False)
        on_cpu = all(p.device.type == "cpu" for p in self.parameters)  # where reading the flag waits for nothing
        self.conditional = bool(fused) and not on_cpu

    def zero_grad(self) -> None:
        for parameter in self.parameters:  # as the optimizer's own, which takes six times as long
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """The gradients of all parameters; zeros for one that no loss reached, so that every rank has the same list."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self.parameters if p.grad is not None]

    def step(self, total: Tensor, count: Tensor | float, finite: Finite) -> None:
        """Turn summed gradients into their mean and move: penalties, clipping, optimizer, constraints, average."""
        finite.divide([*map(self.trainer.local, self.gradients()), total], count)
        self.trainer.agree_finite(finite.flag)
        for penalty in self.penalties:
            extra = penalty(self.network, [])
            if extra is not None:
                self._add(torch.autograd.grad(extra, self.parameters, allow_unused=True))
        if self.clip_norm is not None:
            self.trainer.clip(self.parameters, self.clip_norm)
        for parameter, piece in self.pieces:
            piece.grad = None if parameter.grad is None else self.trainer.local(parameter.grad)
        if self.conditional:
            self.optimizer.found_inf = finite.flag  # type: ignore[attr-defined]  # how torch's GradScaler hands it over
            self.optimizer.step()
        elif not finite.flag.item():
            self.optimizer.step()
        if self.every_step:
            self.scheduler.step()
        if self.constraints:
            with torch.no_grad():
                for constrain in self.constraints:
                    constrain(self.network)
        if self.decay is not None:
            self._update_average()
        finite.stepped()

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients to those of the parameters; how they are spread over ranks may differ."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if parameter.grad is not None and gradient is not None:
                self.trainer.local(parameter.grad).add_(self.trainer.local(self.trainer.spread(gradient, parameter)))

    def held(self) -> dict[str, Tensor]:
        """What this rank holds of all weights and buffers, by name, in the same memory."""
        return {key: self.trainer.local(value).detach() for key, value in self.network.state_dict().items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the exponential moving average of the weights (https://arxiv.org/abs/1803.05407 and older)."""
        assert self.decay is not None
        for key, value in self.held().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - self.decay)
            else:
                self.average[key].copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the averaged weights, if they are kept."""
        if self.decay is None:
            yield
            return
        own = {key: value.clone() for key, value in self.held().items()}
        self.use_average()
        try:
            yield
        finally:
            self._hold(own)

    def use_average(self) -> None:
        """Put the averaged weights in place for good, if they are kept."""
        if self.decay is not None:
            self._hold(self.average)

    @torch.no_grad()
    def _hold(self, values: Mapping[str, Tensor]) -> None:
        for key, held in self.held().items():
            held.copy_(values[key])

    def end_epoch(self) -> None:
        """Move a scheduler that counts epochs."""
        if not self.every_step and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def evaluated(self, value: float | None) -> None:
        """Tell a scheduler that waits for a plateau the monitored value."""
        if value is not None and isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)

    @property
    def lr(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

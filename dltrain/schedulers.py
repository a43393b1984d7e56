"""Learning-rate schedules beside torch's own; each is told the number of steps of the run and moves at every step."""

from math import cos, pi
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from dltrain.errors import ConfigError


class WarmupCosine(LRScheduler):
    """Linear to the optimizer's lr over the first `warmup` of the steps, then a cosine down to `floor` times it."""

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.1, floor: float = 0.0) -> None:
        share("warmup", warmup)
        share("floor", floor)
        self.total_steps = total_steps
        self.warmup_steps = int(warmup * total_steps)
        self.floor = floor
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [lr * self.factor(self.last_epoch) for lr in self.base_lrs]

    def factor(self, step: int) -> float:
        """What multiplies the lr at a step counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.floor + (1 - self.floor) * (1 + cos(pi * done)) / 2


class OneCycle(OneCycleLR):
    """torch's OneCycleLR with its peak at `peak` times the optimizer's lr; https://arxiv.org/abs/1708.07120."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        peak: float = 1.0,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 10000.0,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = False,
    ) -> None:
        share("pct_start", pct_start)
        if not peak > 0:
            raise ConfigError(f"scheduler.peak must be above 0, got {peak}")
        super().__init__(
            optimizer,
            [group["lr"] * peak for group in optimizer.param_groups],
            total_steps,
            # torch divides by zero where the rise is a single step
            pct_start=float(pct_start) if pct_start * total_steps > 1 else 0.0,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            anneal_strategy=anneal_strategy,  # type: ignore[arg-type]  # torch says what else it may be
            cycle_momentum=cycle_momentum,
        )


def share(setting: str, value: float) -> None:
    """Raise ConfigError unless the value is in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"scheduler.{setting} must be in [0, 1), got {value}")

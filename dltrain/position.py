"""Where a run stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dltrain.errors import real, whole


@dataclass
class Position:
    """Where a run stands: all that a restart must know besides tensors."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches done of the epoch under way
    step: int = 0
    seconds: float = 0.0  # of training, over all restarts
    rows: int = 0  # trained on, over all restarts
    recorded_rows: int = 0  # of which the last record knew
    recorded_seconds: float = 0.0
    losses: dict[str, list[float]] = field(default_factory=dict)  # player: [sum, count] since the last record
    best_step: int | None = None
    best_epoch: int | None = None
    best_value: float | None = None
    since_best: int = 0  # evaluations
    stopped_early: bool = False
    pruned: bool = False

    @property
    def ended(self) -> bool:
        """Whether training ends here, whatever the number of epochs."""
        return self.stopped_early or self.pruned

    @classmethod
    def of(cls, state: Mapping[str, Any], batches: int) -> "Position":
        """That of a checkpoint's state, in epochs of so many batches.

        Raises ValueError for what no run can have, and what else follows from values that are of another kind.
        """
        p, scaler = cls(**state["position"]), state["scaler"]
        counts = [p.epoch, p.step, p.rows, p.recorded_rows, p.since_best]
        counts += [best for best in (p.best_step, p.best_epoch) if best is not None]
        possible = (
            all(whole(count, 0) and count < 2**53 for count in counts)
            and whole(p.batch, 0)
            and p.batch < batches
            and all(real(number) for number in (p.seconds, p.recorded_seconds, *scaler))
            and (p.best_value is None or isinstance(p.best_value, float) or real(p.best_value))
            and isinstance(p.stopped_early, bool)
            and isinstance(p.pruned, bool)
            and all(len(pair) == 2 and all(map(real, pair)) and pair[1] > 0 for pair in p.losses.values())
            and isinstance(scaler, list)
            and len(scaler) in (0, 2)
            and whole(state["threads"], 1)
            and state["threads"] < 2**15
        )
        if not possible:
            raise ValueError("a position that no run can have")
        return p

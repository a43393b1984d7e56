"""Where two fingerprints part: the first step of which anything differs, and what of it differs first."""

from dataclasses import dataclass

import numpy as np

NAMES = {  # in the order in which a step comes to them
    "player": "the moves of players",
    "rows": "rows",
    "weights": "weights",
    "settings": "hyperparameter",
    "loss": "loss",
    "gradient": "gradient",
}
CLOSE = 1e-3  # of the loss: how far apart the same rows and hyperparameters may lead and still count as equal within


@dataclass(frozen=True)
class Compared:
    """Two runs, step by step."""

    steps: int  # that both have
    lengths: tuple[int, int]  # steps of each
    began: int  # the first step that both know
    first: int | None  # step at which they part, None if they do not
    move: int  # of that step
    what: str  # a key of NAMES
    values: tuple[float, float] | None  # of the loss or the learning rate
    equal_weights: int | None  # the last step up to it at which the weights were compared, and equal
    apart: float  # the largest difference of a loss, over the larger of the two
    together: tuple[int, int]  # steps of each that were taken together with other runs, where the other's were not
    same_course: bool  # no rows, hyperparameters or moves differ

    @property
    def equal(self) -> bool:
        return self.first is None and self.lengths[0] == self.lengths[1]

    @property
    def close(self) -> bool:
        """Whether nothing but rounding seems to lie between them."""
        return self.same_course and self.apart <= CLOSE and self.lengths[0] == self.lengths[1]

    def told(self) -> str:
        """What differs first, in words."""
        if self.first is None:
            return ""
        at = f"{self.first:,}" + (f", move {self.move}" if self.move else "")
        what = NAMES[self.what]
        if self.what == "weights" and self.first == 0:
            what = "initial weights"
        if self.what == "settings":
            what = "hyperparameter, learning rate" if self.values else "hyperparameter, other than the learning rate"
        digits = 6 if self.what == "settings" else 9
        values = f" {self.values[0]:.{digits}g}, {self.values[1]:.{digits}g}" if self.values else ""
        return f"{at}: {what}{values}{self._therefore()}"

    def _therefore(self) -> str:
        """What follows from what was equal before."""
        if self.what not in ("loss", "weights") or not self.first:
            return ""
        if self.what == "loss" and self.equal_weights == self.first:
            return "; rows and weights are equal, so the loss is computed otherwise"
        since = "" if self.equal_weights is None else f" since step {self.equal_weights}"
        causes = f"something else than gradients has changed the weights{since}"
        causes += "" if self.what == "weights" else ", or the loss is computed otherwise"
        return f"; rows, hyperparameters and gradients before are equal, so {causes}"


def compare(mine: np.ndarray, other: np.ndarray) -> Compared | None:
    """Compare the moves of two fingerprints, (moves,) of MOVE; None if they have no step in common."""
    lengths = int(mine["step"][-1]) + 1 if len(mine) else 0, int(other["step"][-1]) + 1 if len(other) else 0
    began = max(int(mine["step"][0]), int(other["step"][0])) if len(mine) and len(other) else 0
    mine, other = mine[mine["step"] >= began], other[other["step"] >= began]
    n = min(len(mine), len(other))
    if not n:
        return None
    mine, other = mine[:n], other[:n]
    differ = {
        name: mine[name].view(np.uint32) != other[name].view(np.uint32) for name in ("rows", "settings", "weights")
    }
    differ |= {name: _bits(mine[name]) != _bits(other[name]) for name in ("loss", "gradient")}
    differ["player"] = (mine["player"] != other["player"]) | (mine["step"] != other["step"])
    places = {name: int(found.argmax()) for name, found in differ.items() if found.any()}
    place = min(places.values(), default=None)
    what = next((name for name in NAMES if places.get(name) == place), "") if places else ""
    shown = {"loss": "loss", "settings": "lr"}.get(what)
    if shown == "lr" and mine["lr"][place] == other["lr"][place]:
        shown = None
    checked = mine["step"][: (place or 0) + 1][
        ~differ["weights"][: (place or 0) + 1] & (mine["weights"][: (place or 0) + 1] > 0)
    ]
    with np.errstate(invalid="ignore"):
        gaps = np.abs(mine["loss"].astype(float) - other["loss"]) / np.maximum(
            np.abs(mine["loss"]), np.abs(other["loss"])
        )
    gaps = gaps[_bits(mine["loss"]) != _bits(other["loss"])]
    return Compared(
        steps=len(np.unique(mine["step"])),
        lengths=lengths,
        began=began,
        first=None if place is None else int(mine["step"][place]),
        move=0 if place is None else int(mine["move"][place]),
        what=what,
        values=(float(mine[shown][place]), float(other[shown][place])) if shown and place is not None else None,
        equal_weights=int(checked[-1]) if len(checked) else None,
        apart=float(np.max(np.nan_to_num(gaps, nan=np.inf), initial=0.0)),
        together=(int((mine["together"] > other["together"]).sum()), int((mine["together"] < other["together"]).sum())),
        same_course=not differ["rows"].any() and not differ["settings"].any() and not differ["player"].any(),
    )


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint32)

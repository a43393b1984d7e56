"""The fingerprints of runs side by side: one operation takes a step's numbers of all of them."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from dltrain.fingerprint.file import MOVE
from dltrain.fingerprint.taken import ALL_EVERY, Fingerprint


class Fingerprints:
    """Keeps what steps do until it is handed out to each run's own fingerprint, which writes it as if it went alone."""

    def __init__(self, each: Sequence[Fingerprint]) -> None:
        self.each = each
        self._clear()

    def _clear(self) -> None:
        self.weights: dict[int, Tensor] = {}  # (members,) by number of the step among those taken
        self.losses: list[Tensor] = []  # (members,) of each step
        self.gradients: list[Tensor] = []
        self.settings: list[list[tuple[int, float]]] = []

    def begin(self, step: int, weights: Tensor, moved: bool) -> None:
        """Take what a step begins with: all weights (members, n); optimizers' settings, if they have `moved`."""
        if step % ALL_EVERY == 0:
            self.weights[len(self.losses)] = _sums(weights)
        known = self.settings[-1] if self.settings and not moved else [own.settled() for own in self.each]
        self.settings.append(known)

    def moved(self, gradients: Tensor, losses: Tensor) -> None:
        """Take what a step did: gradients (members, n) as the optimizer saw them, and mean losses (members,)."""
        self.gradients.append(_sums(gradients))
        self.losses.append(losses.detach().float())

    def hand_out(self, first: int, lost: Collection[int]) -> None:
        """Give each run its moves, of which number 0 was step `first`; those of `lost` have not made the last one."""
        n = len(self.losses)
        moves = np.zeros((len(self.each), n), MOVE)
        moves["step"], moves["together"] = first + np.arange(n), len(self.each)
        moves["loss"] = torch.stack(self.losses, 1).cpu().numpy()
        moves["gradient"] = torch.stack(self.gradients, 1).cpu().numpy().view(np.uint32)
        for number, sums in self.weights.items():
            moves["weights"][:, number] = sums.cpu().numpy().view(np.uint32)
        settings = np.array(self.settings)
        moves["settings"], moves["lr"] = settings[..., 0].T, settings[..., 1].T
        for k, own in enumerate(self.each):
            own.given(moves[k, : n - (k in lost)])
        self._clear()


def _sums(values: Tensor) -> Tensor:
    """The sum of the bits of each member's numbers (members, n), modulo 2^32: (members,) int32."""
    size = values.element_size()
    return values.detach().contiguous().view(torch.int32 if size % 4 == 0 else torch.int16).sum(1, dtype=torch.int32)

"""What reaches the layers of a network: gradients, updates, and units that no row moves any more."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.distributed import Single
from dltrain.errors import real, whole
from dltrain.player import Player

EVERY = 256  # steps between two looks
EARLY = (1, 4, 16, 64)  # steps that are looked at besides
SETTLED = 2  # step from which a look is judged: layers that begin at zero have let gradients through by then
FAINT = 1e-6  # of the strongest layer's gradient: what is below does not learn
STRONG = 1e3  # by how much the loss would change, at that slope, if a layer's weights doubled
STUCK = 0.8  # share of units that are dead, or of values that are saturated, that lets next to nothing through
FLAT = 0.05  # of an activation's steepest slope: what is below is flat
FEWEST = 32  # rows from which on a unit that is flat for all of them is called dead


@dataclass
class Layer:
    """One weight of at least two dimensions, at one step."""

    player: str
    name: str
    size: int  # numbers in it
    gradient: float  # norm
    weight: float  # norm
    update: float  # norm of what the step added, over the norm of the weight


@dataclass
class Units:
    """One activation layer, at one step."""

    player: str
    name: str
    bounded: bool  # it saturates: its values stay within bounds on both sides
    seen: Tensor  # (1 + units,): rows (of maps, rows and places), then for each unit those for which it is flat

    @property
    def rows(self) -> float:
        return float(self.seen[0])

    @property
    def dead(self) -> float:
        """The share of units that are flat for every row."""
        return float((self.seen[1:] == self.seen[0]).double().mean())

    @property
    def flat(self) -> float:
        """The share of values at which the activation is flat."""
        return float((self.seen[1:] / self.seen[0]).mean())


class Health:
    """Looks at a step now and then, and leaves everything as it is; the numbers are of all rows and whole tensors.

    A look costs about as much as one to two steps, and the memory of one more copy of a player's weights. Of networks
    that `trainer.compile` compiles, gradients and updates alone are looked at.
    """

    def __init__(self, players: Mapping[str, Player], trainer: Single, activation: type[nn.Module]) -> None:
        self.players, self.trainer, self.activation = players, trainer, activation
        self.looking = False
        self.counting = True  # False while a rank computes rows that only stand in
        self.layers: dict[str, Layer] = {}
        self.units: dict[str, Units] = {}
        self.numbers: dict[str, float] = {}  # of the last look, until a record takes them
        self.advised: Callable[[str], str] = lambda ailment: ailment  # adds the words that may help
        self.text = ""  # what the last look found, in words: `healthy: ...`, or what is wrong with it
        self.looks = 0  # in a row that found the same

    @staticmethod
    def due(step: int) -> bool:
        """Whether a step is looked at."""
        return step % EVERY == 0 or step in EARLY

    def take(self, step: int, layers: Mapping[str, Layer], units: Mapping[str, Units]) -> None:
        """Judge a step by what somebody else saw of it."""
        self.layers, self.units = dict(layers), dict(units)
        self._conclude(step)

    @contextmanager
    def look(self, step: int) -> Iterator[None]:
        """Within, a step is taken, and looked at if it is time; every rank must do so."""
        if not self.due(step):
            yield
            return
        self.layers, self.units, self.looking = {}, {}, True
        hooks = [] if self.trainer.compile else [*self._hooks()]
        try:
            yield
        finally:
            self.looking = False
            for hook in hooks:
                hook.remove()
        self._conclude(step)

    def _hooks(self) -> Iterator[Any]:
        for player in self.players.values():
            for where, module, axis in activations(player.network, self.activation):
                yield module.register_forward_hook(self._seen(player.name, where, axis))

    def _seen(self, player: str, name: str, axis: int) -> Any:
        """Count rows, and those at which each unit is flat; a unit is a place along the axis."""

        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not module.training:
                return
            where_flat, bounded = flats(module, inputs[0])
            flat = where_flat.movedim(axis, 0).flatten(1)
            kind = torch.float32 if flat.device.type == "mps" else torch.float64
            found = torch.cat([torch.full_like(flat[:1, 0], flat.shape[1], dtype=kind), flat.sum(1).to(kind)])
            units = self.units.setdefault(f"{player}.{name}", Units(player, name, bounded, torch.zeros_like(found)))
            units.seen = units.seen + found * self.counting

        return seen

    @contextmanager
    def watch(self, player: Player) -> Iterator[None]:
        """Within, a player's gradients turn into its step."""
        if not self.looking:
            yield
            return
        weights = {n: p for n, p in player.network.named_parameters() if p.ndim > 1 and p.requires_grad}
        before = {name: self.trainer.local(weight).detach().clone() for name, weight in weights.items()}
        yield
        with torch.no_grad():
            for name, weight in weights.items():
                after = self.trainer.local(weight).detach()
                parts = [after, after - before[name]]
                parts += [] if weight.grad is None else [self.trainer.local(weight.grad)]
                norms = torch.stack([self.trainer.whole(part, weight).norm() for part in parts]).tolist()
                size, moved, gradient = [*norms, 0.0][:3]
                update = moved / size if size else 0.0
                layer = Layer(player.name, name.removesuffix(".weight"), weight.numel(), gradient, size, update)
                self.layers[f"{player.name}.{name}"] = layer

    def _conclude(self, step: int) -> None:
        """Turn what was seen into numbers and words."""
        layers, units = [*self.layers.values()], [*self.units.values()]
        if units:
            sums = self.trainer.across(torch.cat([unit.seen for unit in units])).cpu()
            for unit, seen in zip(units, sums.split([len(unit.seen) for unit in units]), strict=True):
                unit.seen = seen
        numbers = {f"gradient/{self._named(layer)}": layer.gradient for layer in layers}
        numbers |= {f"update/{self._named(layer)}": layer.update for layer in layers}
        numbers |= {f"dead/{self._named(unit)}": unit.dead for unit in units}
        numbers |= {f"saturated/{self._named(unit)}": unit.flat for unit in units if unit.bounded}
        if not all(map(math.isfinite, numbers.values())):  # the step took no effect, and the run ends with it
            return
        found = self._judged(layers, units)
        again = self.looks if _kind(found) == _kind(self.text) else 0
        self.numbers, self.text, self.looks = numbers, found, again + (step >= SETTLED)

    def _named(self, part: Layer | Units) -> str:
        return part.name if len(self.players) == 1 else f"{part.player}.{part.name}"

    def _judged(self, layers: Sequence[Layer], units: Sequence[Units]) -> str:
        """The first player's ailment, or how healthy all are."""
        weakest = 1.0
        for name in self.players:
            mine = [layer for layer in layers if layer.player == name]
            if found := ailment(mine, [unit for unit in units if unit.player == name]):
                of = "" if len(self.players) == 1 else f" ({name})"
                return self.advised(found + of)
            weakest = min([weakest, *shares(mine)])
        updates = max((layer.update for layer in layers), default=0.0)
        dead = max((unit.dead for unit in units), default=0.0)
        return (
            f"healthy: every layer gets at least {weakest:.2g} of the strongest gradient,"
            f" a step changes none by more than {updates:.2%}, at most {dead:.0%} of a layer's units are dead"
        )

    @property
    def suspicion(self) -> str:
        """What the last look found to be wrong."""
        return "" if _kind(self.text) == "healthy" else self.text

    @property
    def ailment(self) -> str:
        """What two looks in a row found to be wrong; one may be chance."""
        return self.suspicion if self.looks > 1 else ""

    def verdict(self) -> str:
        """What to say at the end; nothing where one look alone found something."""
        return self.ailment if self.suspicion else self.text

    def taken(self) -> dict[str, float]:
        """The numbers of the last look, once."""
        numbers, self.numbers = self.numbers, {}
        return numbers

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that records are the same whatever interrupts a run."""
        return {"numbers": self.numbers, "text": self.text, "looks": self.looks}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint kept; raises ValueError for what can be none."""
        numbers, text, looks = (state[key] for key in ("numbers", "text", "looks"))
        if not (isinstance(text, str) and whole(looks, 0) and all(map(real, dict(numbers).values()))):
            raise ValueError("health that no network can have")
        self.numbers, self.text, self.looks = dict(numbers), text, looks


def activations(network: nn.Module, activation: type[nn.Module]) -> Iterator[tuple[str, nn.Module, int]]:
    """Where a network has activations, and the dimension of their output that counts units."""
    for parent_name, parent in network.named_modules():
        maps = any(isinstance(m, nn.modules.conv._ConvNd) for m in parent.children())
        for name, module in parent.named_children():
            if isinstance(module, activation):
                yield ".".join(filter(None, (parent_name, name))), module, 1 if maps else -1


def flats(module: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """At which of its inputs an activation is flat, and whether its values are bounded."""
    slopes, steepest, bounded = _slopes(module, x)
    return slopes < FLAT * steepest, bounded


def ailment(layers: Sequence[Layer], units: Sequence[Units]) -> str:
    """What is wrong with a player at one step, as `kind: what was seen`; nothing of a healthy one."""
    loudest = max(layers, key=lambda layer: layer.gradient * layer.weight, default=None)
    if loudest and (change := loudest.gradient * loudest.weight / 1000) > STRONG / 1000:
        return f"exploding: one thousandth more of {loudest.name} would change the loss by {change:.3g}"
    dead = [unit for unit in units if not unit.bounded and unit.rows >= FEWEST and unit.dead >= STUCK]
    if dead:
        return f"dead: {dead[0].dead:.0%} of the units of {dead[0].name} are flat for every row"
    stuck = max((unit for unit in units if unit.bounded), key=lambda unit: unit.flat, default=None)
    saturated = stuck is not None and stuck.flat >= STUCK
    where = f"{stuck.flat:.0%} of the values of {stuck.name} are flat" if stuck else ""
    if faint := [number for number, share in enumerate(shares(layers), 1) if share < FAINT]:
        which = f"layer{'s' * (len(faint) > 1)} {_ranges(faint)} of {len(layers)}"
        share = f"{FAINT:.0e}".replace("e-0", "e-")
        return f"vanishing: {which} get less than {share} of the strongest gradient" + (
            f", saturated: {where}" if saturated else ""
        )
    return f"saturated: {where}" if saturated else ""


def shares(layers: Sequence[Layer]) -> list[float]:
    """The gradient of each layer over the strongest, as root mean squares: layers differ in size."""
    slopes = [layer.gradient / layer.size**0.5 for layer in layers]
    return [slope / max(slopes) if max(slopes) else 1.0 for slope in slopes]


def _kind(text: str) -> str:
    return text.partition(":")[0]


def _ranges(numbers: Sequence[int]) -> str:
    """1-4, 7 for 1 2 3 4 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _slopes(module: nn.Module, x: Tensor) -> tuple[Tensor, float, bool]:
    """The slope of an activation at each of its inputs, its steepest, and whether its values are bounded."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):  # some draw
        points = torch.linspace(-6, 6, 25, device=x.device).view(-1, *[1] * (x.ndim - 1)).expand(-1, *x.shape[1:])
        steepest = float(_slope(module, points).max())
        with torch.no_grad():
            far = module.forward(points * 1e4)
        return _slope(module, x), steepest, bool(far.abs().max() < 1e3)


def _slope(module: nn.Module, x: Tensor) -> Tensor:
    kind = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    with torch.enable_grad():
        x = x.detach().to(kind).requires_grad_()
        [slope] = torch.autograd.grad(module.forward(x.clone()).sum(), x)  # a clone: some work in place
    return slope.abs()

"""Several runs' networks as one: the weights of all lie side by side, and a step moves all of them.

Each member keeps its own task, optimizer and scheduler, whose tensors are views of what is stacked, so that whatever
looks at a member (a checkpoint, an evaluation) finds it as it would be alone.
"""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dltrain.course import Rows, Stretch
from dltrain.evaluate import named
from dltrain.faults import point
from dltrain.health import Health, Layer, Units, flats
from dltrain.order import noise_seed, row_seeds
from dltrain.player import Player
from dltrain.together.draws import Draws
from dltrain.together.fingerprints import Fingerprints
from dltrain.together.numbers import Numbers, Varied
from dltrain.together.template import Template, Tensors
from dltrain.train import Training


class Stack:
    """The members' tensors side by side, and the steps that move them."""

    def __init__(self, template: Template, members: Sequence[Training], trial: bool = False) -> None:
        self.template, self.members = template, list(members)
        self.players = [next(iter(member.players.values())) for member in members]
        self.first = members[0]
        self.device, self.n = self.first.trainer.device, len(members)
        self.draws = Draws([torch.Generator(self.device) for _ in members])
        self.draws.members = torch.arange(self.n, device=self.device)
        names = [name for name, _ in self.first.task.named_parameters()]
        self.shapes = {name: p.shape for name, p in self.first.task.named_parameters()}
        ends = list(itertools.accumulate(shape.numel() for shape in self.shapes.values()))
        self.bounds = dict(zip(names, zip([0, *ends], ends, strict=False), strict=True))
        self.flat = torch.stack([_flat(p.detach() for p in member.task.parameters()) for member in members])
        self.leaves = {name: self.part(self.flat, name).detach().requires_grad_() for name in names}
        self.buffers = _stacked([dict(member.task.named_buffers()) for member in members])
        prefix = f"{self.template.player}."
        averages = [{prefix + key: value for key, value in player.average.items()} for player in self.players]
        self.average = _stacked([{k: v for k, v in average.items() if k in self.buffers} for average in averages])
        self.flat_average = torch.stack([_flat(a[n] for n in names) for a in averages]) if averages[0] else None
        self.optimizer = self._optimizer()
        self.schedulers_move = self.players[0].every_step and not trial
        self.fingerprints = None if trial else Fingerprints([member.step.fingerprint for member in members])
        if not trial:  # which moves copies
            self.hand_out()
        rows = [member.train_rows for member in members]
        self.shared = all(each["features"] is rows[0]["features"] for each in rows)
        self.rows = rows[0] if self.shared else {k: torch.cat([each[k] for each in rows]) for k in rows[0]}
        self.counts: Any = 0.0
        self.totals = torch.zeros(self.n, dtype=self.first.step.kind, device=self.device)
        self.offsets = torch.zeros(self.n, 1, dtype=torch.long)
        if not self.shared:
            self.offsets += torch.arange(self.n).unsqueeze(1) * self.first.n_rows

    def part(self, flat: Tensor, name: str) -> Tensor:
        """One parameter of all members (members, *shape), in the memory of all of them (members, n)."""
        start, end = self.bounds[name]
        return flat[:, start:end].view(len(flat), *self.shapes[name])

    # The optimizer of all: torch's own, of one parameter (members, n), whose numbers are of each member.

    def _optimizer(self) -> torch.optim.Optimizer:
        player = self.players[0]
        kind = type(player.optimizer)
        self.whole = nn.Parameter(self.flat)
        known = inspect.signature(kind).parameters
        plain = {key: value for key, value in player.optimizer.defaults.items() if key in known}
        optimizer = kind([self.whole], **{**plain, "foreach": False, "fused": False} if "fused" in known else plain)
        optimizer.param_groups[0] |= {
            key: value
            for key, value in player.optimizer.param_groups[0].items()
            if key not in ("params", "param_names", "foreach", "fused")
        }
        optimizer.param_groups[0]["foreach"] = False
        self.state = optimizer.state[self.whole]
        kept = [player.optimizer.state for player in self.players]
        for key, value in kept[0].get(player.parameters[0], {}).items():
            if isinstance(value, Tensor) and value.ndim:
                states = zip(kept, self.players, strict=True)
                self.state[key] = torch.stack([_flat(own[p][key] for p in each.parameters) for own, each in states])
            else:
                self.state[key] = value.clone() if isinstance(value, Tensor) else value
        return optimizer

    def numbers(self) -> None:
        """Take the members' learning rates and other numbers, as their schedulers have set them."""
        groups = [player.optimizer.param_groups[0] for player in self.players]
        own = self.optimizer.param_groups[0]
        for key, value in groups[0].items():
            if type(value) in (int, float):
                own[key] = Varied.of([group[key] for group in groups])
            elif isinstance(value, tuple | list) and key == "betas":
                own[key] = tuple(map(Varied.of, zip(*(group[key] for group in groups), strict=True)))

    # What members hold of it.

    def hand_out(self) -> None:
        """Let every tensor of every member be its row of what is stacked."""
        for k, (member, player) in enumerate(zip(self.members, self.players, strict=True)):
            parameters = dict(member.task.named_parameters())
            for name, leaf in self.leaves.items():
                parameters[name].data = leaf.data[k]
            for name, buffer in self.buffers.items():
                place, _, last = name.rpartition(".")
                setattr(member.task.get_submodule(place), last, buffer[k])
            for name in player.average:
                whole = f"{self.template.player}.{name}"
                stacked = self.average[whole] if whole in self.average else self._averaged(whole)
                player.average[name] = stacked[k]
            self._hand_state(k, player, parameters)

    def _averaged(self, name: str) -> Tensor:
        assert self.flat_average is not None
        return self.part(self.flat_average, name)

    def _hand_state(self, k: int, player: Player, parameters: Mapping[str, Tensor]) -> None:
        """A member's part of the optimizer's state."""
        for name, parameter in parameters.items():
            player.optimizer.state[parameter] = {
                key: self.part(value, name)[k] if isinstance(value, Tensor) and value.ndim else value
                for key, value in self.state.items()
            }
        player.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers look whether it has stepped

    @staticmethod
    def own(member: Training) -> None:
        """Give a member that leaves tensors of its own."""
        for tensor in (*member.task.parameters(),):
            tensor.data = tensor.data.clone()
        for name, buffer in list(member.task.named_buffers()):
            place, _, last = name.rpartition(".")
            setattr(member.task.get_submodule(place), last, buffer.clone())
        for player in member.players.values():
            player.average = {key: value.clone() for key, value in player.average.items()}
            for state in player.optimizer.state.values():
                state |= {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}

    # Steps.

    def walk(self, stretches: Sequence[Stretch], n: int) -> list[int]:
        """Train all members on the next n batches of their stretches; those who must go on alone, without the last."""
        self.numbers()
        epoch, first = stretches[0].epoch, stretches[0].start + stretches[0].done
        sizes = epoch.sizes[first : first + n]
        start = sum(epoch.sizes[:first])
        order = torch.stack([stretch.epoch.order[start : start + sum(sizes)] for stretch in stretches])
        place, step, lost = (order + self.offsets).to(self.device), stretches[0].step + stretches[0].done, []
        self.totals, self.counts = torch.zeros_like(self.totals), 0.0
        fresh = not self.state
        self.template.task.train()
        done = 0
        for done, (size, rows) in enumerate(zip(sizes, place.split(sizes, 1), strict=True), 1):
            point("batch")
            lost = self.step(self.batch(rows, epoch.number), size, step + done - 1)
            if lost:
                break
        self._settle(stretches, done, lost, fresh)
        if self.fingerprints:
            self.fingerprints.hand_out(step, lost)
        return lost

    def _settle(self, stretches: Sequence[Stretch], done: int, lost: Sequence[int], fresh: bool) -> None:
        """Tell the members what they have done."""
        counts = self.counts.tolist() if isinstance(self.counts, Tensor) else [self.counts] * self.n
        totals = self.totals.unbind()
        for k, (stretch, player) in enumerate(zip(stretches, self.players, strict=True)):
            stretch.done += done - (k in lost)
            self.members[k].step._count(self.template.player, totals[k], counts[k])
            if fresh and self.state:
                self._hand_state(k, player, dict(self.members[k].task.named_parameters()))

    def batch(self, rows: Tensor, epoch: int) -> Tensors:
        """The fields (members, batch, ...) of rows (members, batch)."""
        flat = rows.reshape(-1)
        found = {key: v.index_select(0, flat).unflatten(0, rows.shape) for key, v in self.rows.items()}
        if self.first.step.row_parts:
            own = rows - self.offsets.to(rows.device)
            seeds = [row_seeds(each, m.settings.seed, epoch) for each, m in zip(own, self.members, strict=True)]
            found["seed"] = torch.stack(seeds)
        return found

    def some(self) -> tuple[Tensors, int]:
        """The first batch of all, in the order of the rows."""
        n = self.first.bounds[0][1]
        return self.batch((torch.arange(n).expand(self.n, n) + self.offsets).to(self.device), 0), n

    def seed(self, step: int) -> None:
        """Seed each member's draws."""
        for member, generator in zip(self.members, self.draws.generators, strict=True):
            generator.manual_seed(noise_seed(member.settings.seed, step, 0, 0))

    def regularized(self, batch: Tensors, step: int) -> Tensors:
        """What each member's regularizers make of its rows; what draws after them goes on where they stopped."""
        made: list[dict[str, Tensor]] = []
        for k, member in enumerate(self.members):
            member.trainer.seed(noise_seed(member.settings.seed, step, 0, 0))
            rows = {key: values[k] for key, values in batch.items()}
            for part in member.step.row_parts:
                rows = part.rows(rows)
            made.append(rows)
            if self.device.type == "cpu":
                self.draws.generators[k].set_state(torch.default_generator.get_state())
        return {key: torch.stack([rows[key] for rows in made]) for key in made[0]}

    def step(self, batch: Tensors, n_rows: int, step: int) -> list[int]:
        """Move all members once; those whose loss or gradient is not finite do not move, and are named."""
        if self.first.step.row_parts:
            batch = self.regularized(batch, step)
        elif self.first.step.draws:
            self.seed(step)
        looking = Health.due(step)
        self.template.seen = {} if looking else None
        total, count, extra, seen = self.forward("losses", batch)
        self.template.seen = None
        mean = total * _share(count).to(total.dtype)
        (mean if extra is None else mean + extra).sum().backward()
        gradient = self.gradient()
        norms = torch.linalg.vector_norm(gradient, dim=1)
        good = total.detach().isfinite() & norms.isfinite()
        lost = [] if good.all() else (~good).nonzero().flatten().tolist()
        before = self.flat.clone() if looking else None
        if self.fingerprints:
            self.fingerprints.begin(step, self.flat, self.schedulers_move)
        with self._kept(lost):
            self.move(gradient, norms)
        if self.fingerprints:
            self.fingerprints.moved(gradient, mean.detach())
        self.totals = self.totals + torch.where(good, total.detach(), 0)
        self.counts = self.counts + (torch.where(good, count, 0) if lost else count)
        if before is not None and not lost:
            self._judge(step, gradient, before, seen)
        return lost

    def forward(self, verb: str, batch: Tensors, given: Tensors | None = None, shared: bool = False) -> tuple:
        """What the template makes of all members' batches: of each (members, ...), and what is the same for all."""
        same: dict[int, Any] = {}

        def one(weights: Tensors, buffers: Tensors, rows: Tensors, member: Tensor) -> Any:
            self.draws.members = member
            named = {f"task.{key}": value for key, value in {**weights, **buffers}.items()}
            out = functional_call(self.template, named, (verb, rows))
            seen = {where: torch.stack(each) for where, each in (self.template.seen or {}).items()}
            parts = [*(out or ()), seen]
            same.update({k: part for k, part in enumerate(parts) if not isinstance(part, Tensor | dict)})
            return [member if k in same else part for k, part in enumerate(parts)]

        members = torch.arange(self.n, device=self.device)
        dims = (0, 0, None if shared else 0, 0)
        with self.draws:
            out = vmap(one, dims)(self.leaves if given is None else given, self.buffers, batch, members)
        return tuple(same.get(k, part) for k, part in enumerate(out))

    def gradient(self) -> Tensor:
        """The gradients of all parameters (members, n)."""
        parts = []
        for leaf in self.leaves.values():
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            parts.append(grad.flatten(1))
            leaf.grad = None
        return torch.cat(parts, 1)

    @torch.no_grad()
    def move(self, gradient: Tensor, norms: Tensor) -> None:
        """Turn gradients into a step: clipping, optimizer, schedulers, constraints, average."""
        player = self.players[0]
        if player.clip_norm is not None:
            gradient.mul_((player.clip_norm / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))
        self.whole.grad = gradient
        with Numbers():
            self.optimizer.step()
        if self.schedulers_move:
            for each in self.players:
                each.scheduler.step()
            self.numbers()
        if player.constraints:
            self.forward("constrain", {})
        if player.decay is not None:
            self._average(1 - player.decay)

    def _average(self, share: float) -> None:
        assert self.flat_average is not None
        self.flat_average.lerp_(self.flat, share)
        for name, average in self.average.items():
            if average.is_floating_point():
                average.lerp_(self.buffers[name], share)
            else:
                average.copy_(self.buffers[name])

    @contextmanager
    def _kept(self, lost: Sequence[int]) -> Iterator[None]:
        """Within, a step is taken that some members do not take."""
        state = [value for value in self.state.values() if isinstance(value, Tensor) and value.ndim]
        tensors = [self.flat, *state, *([] if self.flat_average is None else [self.flat_average])] if lost else []
        kept = [tensor[list(lost)].clone() for tensor in tensors]
        yield
        with torch.no_grad():
            for tensor, values in zip(tensors, kept, strict=True):
                tensor[list(lost)] = values

    def _judge(self, step: int, gradient: Tensor, before: Tensor, seen: Mapping[str, Tensor]) -> None:
        """Let each member judge the step by what reached its layers."""
        names = [name for name, shape in self.shapes.items() if len(shape) > 1]
        player = self.template.player
        norms = {}
        for name in names:
            parts = [self.part(flat, name).flatten(1) for flat in (self.flat, self.flat - before, gradient)]
            norms[name] = torch.stack([part.norm(dim=1) for part in parts], 1).tolist()
        units = {where: self._units(where, x) for where, x in seen.items()}
        for k, member in enumerate(self.members):
            layers, own = {}, {}
            for name, each in norms.items():
                size, moved, slope = each[k]
                short = name.removeprefix(f"{player}.")
                update, numbers = moved / size if size else 0.0, self.shapes[name].numel()
                layers[name] = Layer(player, short.removesuffix(".weight"), numbers, slope, size, update)
            for where, (bounded, counted) in units.items():
                own[f"{player}.{where}"] = Units(player, where, bounded, counted[k])
            member.step.health.take(step, layers, own)

    def _units(self, where: str, x: Tensor) -> tuple[bool, Tensor]:
        """Of one activation, whether it is bounded, and (members, 1 + units): rows, and those for which a unit is flat.

        x: what it read, (members, times, batch, ...).
        """
        module, axis = self.template.axes[where]
        flat, bounded = flats(module, x.flatten(0, 2))
        flat = flat.unflatten(0, (self.n, -1)).movedim(axis + (axis > 0), 1).flatten(2)
        rows = torch.full((self.n, 1), float(flat.shape[2]), dtype=torch.float64)
        return bounded, torch.cat([rows, flat.sum(2).double().cpu()], 1)

    # Looks at rows that are not trained on.

    @torch.no_grad()
    def assess(self, rows: Rows, chunks: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
        """Losses and metrics of the same rows, of all members."""
        task, device = self.template.task.eval(), self.device
        averaged = {name: self._averaged(name) for name in self.leaves} if self.flat_average is not None else None
        buffers, self.buffers = self.buffers, {**self.buffers, **self.average}
        sums, found = torch.zeros(self.n, 2, dtype=torch.float64), []
        for start, end in chunks:
            if task.draws:
                for generator in self.draws.generators:
                    generator.manual_seed(start)
            batch = {key: values[start:end].to(device) for key, values in rows.items()}
            total, count, predictions, _ = self.forward("assess", batch, averaged, shared=True)
            count = count if isinstance(count, Tensor) else torch.full((self.n,), float(count))
            sums += torch.stack([total.cpu().double(), count.cpu().double()], 1)
            found.append(predictions.cpu())
        self.buffers = buffers
        task.train()
        truth = {key: values.cpu() for key, values in rows.items()}
        metrics = task.metrics_each(torch.cat(found, 1), truth)
        means = (sums[:, 0] / sums[:, 1]).tolist()
        return [named("", {self.template.player: mean}) | own for mean, own in zip(means, metrics, strict=True)]


def _share(count: Tensor | float) -> Tensor:
    """One over a count, rounded as where a player alone divides."""
    return count.detach().to(torch.float32).reciprocal() if isinstance(count, Tensor) else torch.tensor(1.0 / count)


def _flat(tensors: Iterator[Tensor] | Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _stacked(each: Sequence[Mapping[str, Tensor]]) -> Tensors:
    return {key: torch.stack([own[key] for own in each]) for key in each[0]}

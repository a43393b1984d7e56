"""Puts the parts of a run together: players of a task's networks, their regularizers, and the rows they train on."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dltrain import transfer
from dltrain.build import Builder
from dltrain.checkpoint import Checkpoints
from dltrain.data.rows import Data, Rows
from dltrain.distributed import Single
from dltrain.errors import ConfigError
from dltrain.player import Player
from dltrain.regularizers import ORDER, EarlyStopping, Regularizer
from dltrain.report.advice import advice
from dltrain.settings import Settings, Transfer
from dltrain.step import Step
from dltrain.tasks.task import Task
from dltrain.train import Training

NEVER = 2**62  # evaluations without a better one


def assemble(
    settings: Settings, builder: Builder, trainer: Single, data: Data, task: Task, checkpoints: Checkpoints
) -> Training:
    """The players of a task, their regularizers, and the rows they train on."""
    regularizers = _regularizers(builder, task)
    stopping = next((r for r in regularizers if isinstance(r, EarlyStopping)), EarlyStopping(patience=NEVER))
    shards = settings.shards or trainer.world_size
    rows = {split: _resident(getattr(data, split), trainer) for split in ("train", "valid")}
    for network in task.children():
        trainer.wrap(network)
    task.to(trainer.device)
    activation = type(builder.part("activation")())
    players: dict[str, Player] = {}
    step = Step(task, players, trainer, regularizers, activation, settings.seed, shards)
    step.health.advised = lambda ailment: _advised(builder, ailment)
    training = Training(settings, trainer, task, players, rows, step, stopping, checkpoints)
    builder.handed["mode"] = training.direction
    slower = transfer.rates(task, Transfer.of(builder.config["model"]).layer_decay)
    steps = len(training.bounds) * settings.epochs
    for name, network in task.named_children():
        own, moves = task.player_settings.get(name, {}), steps * task.moves_a_step.get(name, 1)
        players[name] = _player(name, network, builder, settings, regularizers, own, moves, trainer, slower)
    if step.least > 1 and min(end - start for start, end in training.bounds) < step.least:
        raise ConfigError(f"batch_size must be at least 2 with batch normalisation, got {settings.batch_size}")
    return training


def _player(
    name: str,
    network: nn.Module,
    builder: Builder,
    settings: Settings,
    regularizers: list[Regularizer],
    own: Mapping[str, Any],
    steps: int,
    trainer: Single,
    slower: Mapping[str, float],
) -> Player:
    """A network with an optimizer and a scheduler, some of whose settings may be its own."""
    counts = dict.fromkeys(("total_steps", "T_max"), steps)  # what schedulers call the number of steps
    learnt = [(key, parameter) for key, parameter in network.named_parameters() if parameter.requires_grad]
    held = [(key, trainer.local(parameter)) for key, parameter in learnt]
    pieces = [(whole, piece) for (_, whole), (_, piece) in zip(learnt, held, strict=True) if whole is not piece]
    mine = {group: {key: value for key, value in part.items() if value is not None} for group, part in own.items()}
    # fused kernels round the tail of a tensor differently, and a sharded tensor has other tails
    optimizer = builder.part("optimizer", **mine.get("optimizer", {}))(held, fused=None if settings.exact else True)
    trainer.check(optimizer)
    if slower:
        transfer.scale(optimizer, {key: slower[f"{name}.{key}"] for key, _ in learnt if f"{name}.{key}" in slower})
    scheduler: LRScheduler = builder.part("scheduler", **mine.get("scheduler", {}))(optimizer, **counts)
    every_step = any(builder.accepts("scheduler", word) for word in counts)
    applied = [r for r in regularizers if r.players is None or name in r.players]
    return Player(
        name, network, optimizer, scheduler, every_step, applied, settings.clip_norm, settings.ema, trainer, pieces
    )


def _regularizers(builder: Builder, task: Task) -> list[Regularizer]:
    """The regularizers in the order of their table, whatever was typed; a user's own come last."""
    made = {name: make() for name, make in builder.parts("regularizer").items()}
    for name, part in made.items():
        if part.reads != task.reads and type(part).rows is not Regularizer.rows:
            raise ConfigError(f"regularizer={name} must go with rows of {part.reads}, got rows of {task.reads}")
    return sorted(made.values(), key=lambda part: ORDER.index(type(part)) if type(part) in ORDER else len(ORDER))


def _resident(rows: Rows, trainer: Single) -> Rows:
    """The fields that training reads, on the device."""
    return {key: values.to(trainer.device) for key, values in rows.items() if key != "row"}


def _advised(builder: Builder, ailment: str) -> str:
    """What ails a network, and the words that may help it."""
    return advice(
        ailment,
        builder.config,
        lambda part: builder.accepts("model", part) or (part == "model" and builder.kind("task").reads == "features"),
    )

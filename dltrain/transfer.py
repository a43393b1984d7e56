"""Begin with weights that there are, freeze parts of a network, and let what lies deep in it learn slowly.

All of it is about the network that the group `model` made, wherever it stands in its task: an autoencoder's encoder is
what a classifier begins with, and the other way round.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dltrain.bundle import Model
from dltrain.checkpoint import Damaged
from dltrain.data.rows import Data
from dltrain.errors import ConfigError, must, nearest, show
from dltrain.settings import Transfer, own_settings
from dltrain.tasks.task import Task

BODY = "body"  # all of a network but its head
SHOWN = 5  # tensors of a kind that a sentence names
FREE = ("init", "dropout")  # settings that give the same weights no other meaning


def begin(
    task: Task,
    transfer: Transfer,
    source: Path,
    parts: Mapping[str, Any],
    data: Data,
    trust: tuple[str, ...],
    warn: Callable[[str], None],
) -> None:
    """Do with a task that was just made what `model` is told of every network; `source` is the run's copy.

    Raises ConfigError for weights that do not fit, and for names of parts that there are not.
    """
    if task.place is None and not transfer.chosen():
        return
    network = model_of(task)
    if transfer.from_run:
        copy_run(network, transfer, source / "model", parts, data, trust, warn)
    if transfer.weights:
        copy(network, tensors_of(source / "weights.safetensors", transfer.weights), "weights", transfer.head == "new")
    if not transfer.from_run and not transfer.weights and getattr(network, "pretrained", False):
        warn("the network begins at random: model.weights or model.from_run would say what it has learnt")
    if transfer.freeze:
        freeze(task, transfer.freeze)


def model_of(task: Task) -> nn.Module:
    """The network of a task that the group `model` made; raises ConfigError if there is not just one."""
    if task.place is None:
        name = type(task).__name__.lower()
        raise ConfigError(f"model.from_run, weights, freeze and layer_decay need a task of one model, got task={name}")
    return task.get_submodule(task.place)


# Weights: from an earlier run, or from a file.


def copy_run(
    network: nn.Module,
    transfer: Transfer,
    folder: Path,
    parts: Mapping[str, Any],
    data: Data,
    trust: tuple[str, ...],
    warn: Callable[[str], None],
) -> None:
    """Begin with the network of a run's bundle; raises ConfigError if it is another, or learnt from other rows."""
    try:
        theirs = Model.read(folder, trust)
    except Damaged as error:
        raise ConfigError(f"model.from_run must have an undamaged model, got {transfer.from_run}: {error}") from error
    if theirs.parts is None:  # a stranger's source folder: what is named is checked where the run is opened
        raise ConfigError(f"model.from_run must be a run that was trained, got {transfer.from_run}, an ensemble")
    was, now = (described["model"]["_target_"].rpartition(".")[2] for described in (theirs.parts, parts))
    must(was == now, "model.from_run", f"a run of a network {now}", f"one of {was}")
    columns = check_rows(theirs.preparation, data, warn)
    tensors = model_of(theirs.task).state_dict()
    try:
        copy(network, tensors, "from_run", transfer.head == "new")
    except ConfigError as error:
        raise ConfigError(f"{error}{columns}") from error
    for text in other_settings(theirs.parts, parts):
        warn(text)


def check_rows(theirs: Any, data: Data, warn: Callable[[str], None]) -> str:
    """Compare what features stand for; gives what to add to a sentence about tensors that do not fit.

    Raises ConfigError where the same columns stand in another order, and for other tokens: weights would be wrong.
    """
    if hasattr(theirs, "tokenizer"):
        same = getattr(data.preparation, "tokenizer", theirs.tokenizer).state() == theirs.tokenizer.state()
        must(same, "model.from_run", "a run whose tokens are those of this text", "one of another vocabulary")
    left_out = data.description.get("left_out", {})
    here = [c["name"] for c in data.description.get("columns", []) if c["name"] not in left_out]
    there = list(getattr(theirs, "columns", []))
    if here == there or not here or not there:
        return ""
    if sorted(here) == sorted(there):
        columns = [", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN) for names in (here, there)]
        raise ConfigError(f"model.from_run must be of columns in the order of these, {columns[0]}, got {columns[1]}")
    sides = [("these rows lack", set(there) - set(here)), ("that run lacks", set(here) - set(there))]
    text = "; ".join(f"{side} the columns {named(sorted(names))}" for side, names in sides if names)
    if len(here) == len(there):
        warn(f"the network has learnt from other columns, and takes one for another by their order: {text}")
    return f"; {text}"


def other_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterable[str]:
    """A sentence about settings of the network that are not those with which its weights were learnt."""
    sides = [
        own_settings(parts["model"]) | {"activation": parts["activation"]["_target_"].rpartition(".")[2]}
        for parts in (theirs, ours)
    ]
    keys = [key for key in {**sides[0], **sides[1]} if key not in FREE and sides[0].get(key) != sides[1].get(key)]
    changed = [f"{key} was {show(sides[0].get(key))} and is {show(sides[1].get(key))}" for key in keys]
    if changed:
        yield f"the weights of model.from_run were learnt with other settings: {', '.join(changed)}"


def tensors_of(path: Path, typed: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises ConfigError if it is none."""
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        first = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.weights must be a file of safetensors, got {typed} ({first})") from error
    return found


@torch.no_grad()
def copy(network: nn.Module, tensors: Mapping[str, Tensor], setting: str, new_head: bool) -> None:
    """Give a network other tensors, by their names; its head stays as it is if that is to be new.

    Of a network that does nothing but hold another, that one's names are known too. Raises ConfigError that lists names
    and shapes.
    """
    inner = [name for name, _ in network.named_children()]
    if len(inner) == 1 and not any(name.startswith(f"{inner[0]}.") for name in tensors):
        tensors = {f"{inner[0]}.{name}": tensor for name, tensor in tensors.items()}
    heads = heads_of(network)
    must(bool(heads) or not new_head, "model.head", "kept with a network without a head", "new")
    own = {name: tensor for name, tensor in network.state_dict().items() if not (new_head and within(name, heads))}
    given = {name: tensor for name, tensor in tensors.items() if not (new_head and within(name, heads))}
    shapes = [name for name in own if name in given and own[name].shape != given[name].shape]
    missing, others = [name for name in own if name not in given], [name for name in given if name not in own]
    if wrong := [*shapes, *missing, *others]:
        sizes = [f"{name} {list(given[name].shape)} where {list(own[name].shape)} is" for name in shapes]
        lists = [(sizes, "{}"), (missing, "no {}"), (others, "{} besides")]
        said = "; ".join(form.format(named(names)) for names, form in lists if names)
        hint = "; model.head=new begins the head anew" if all(within(name, heads) for name in wrong) else ""
        raise ConfigError(f"model.{setting} must have the tensors of this network, got {said}{hint}")
    for name, tensor in own.items():
        tensor.copy_(given[name])


def named(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def heads_of(network: nn.Module) -> list[str]:
    """The names of a network's head; one that is not called so says what it is called."""
    wanted = getattr(network, "heads", ("head",))
    return [name for name, _ in network.named_modules() if name in wanted]


def within(name: str, parts: Collection[str]) -> bool:
    """True of the name of one of some parts, or of what stands in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


# What does not learn.


def freeze(task: Task, patterns: list[str]) -> None:
    """Parameters of the named parts get no gradient; batch norms there keep their statistics, and normalise by them.

    A name is of a module or a parameter of the network, or a pattern as of files. Raises ConfigError for one that
    names nothing, and if a player would have nothing left to learn.
    """
    network = model_of(task)
    heads, modules = heads_of(network), [name for name, _ in network.named_modules() if name]
    names = list(dict.fromkeys([*modules, *(name for name, _ in network.named_parameters(remove_duplicate=False))]))
    frozen: list[str] = []
    for pattern in patterns:
        below = [name for name in names if not within(name, heads) and not any(within(head, [name]) for head in heads)]
        found = below if pattern == BODY else [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(
                f"model.freeze must name parts of the network, got {pattern}{nearest(pattern, [BODY, *names])}"
            )
        frozen += found
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if within(name, frozen):
            parameter.requires_grad_(False)
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own = list(module.parameters(recurse=False))
            if within(name, frozen) or (own and not any(parameter.requires_grad for parameter in own)):
                _hold(module)
    for name, player in task.named_children():
        learns = any(parameter.requires_grad for parameter in player.parameters())
        must(learns, "model.freeze", f"parts that leave task.{name} something to learn", patterns)


def _hold(module: nn.Module) -> None:
    """Keep a module as it is in evaluation, whatever is said to all of its network."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]


# What learns slowly.


def rates(task: Task, decay: float | None) -> dict[str, float]:
    """By parameter of a task: what multiplies the optimizer's lr, decay^k in a block k steps below the head.

    As BEiT does (https://arxiv.org/abs/2106.08254). Parameters of other networks learn at the whole lr.
    """
    if decay is None:
        return {}
    found = levels(model_of(task))
    return {f"{task.place}.{name}": decay**steps for steps, level in enumerate(reversed(found)) for name in level}


def levels(network: nn.Module) -> list[list[str]]:
    """The names of a network's parameters, from what it reads with to its head.

    Each of its repeated blocks is a level, or each child where nothing is repeated. What stands before the first block
    is a level below it, between two belongs to the upper one, behind the last is the head; so does a norm.
    """
    chosen = {part for part in parts_of(network) if any(parameter.ndim > 1 for parameter in part.parameters())}
    places = [name for name, module in network.named_modules() if module in chosen]
    loose: list[str] = []
    found: list[list[str]] = []
    last = None
    for name, _ in network.named_parameters():
        place = next((place for place in places if within(name, [place])), None)
        if place is None:
            loose.append(name)
        elif place == last:
            found[-1].append(name)
        else:
            found += [[*loose, name]] if found or not loose else [loose, [name]]
            loose, last = [], place
    return [*found, loose] if loose else found


def parts_of(network: nn.Module) -> list[nn.Module]:
    """What stands in a network's lists and sequences, or its children; if it only holds another, that one's."""
    children = [child for child in network.children() if any(True for _ in child.parameters())]
    lists = [child for child in (network, *children) if isinstance(child, nn.ModuleList | nn.Sequential)]
    if lists:
        return list(lists[0]) if lists[0] is network else list(chain(*lists))
    return parts_of(children[0]) if len(children) == 1 else children


def scale(optimizer: Optimizer, factors: Mapping[str, float]) -> None:
    """Split an optimizer's groups, in the order of its parameters, into such as have one factor of the lr."""
    groups = []
    for group in optimizer.param_groups:
        members = zip(group["params"], group["param_names"], strict=True)
        for factor, chosen in groupby(members, key=lambda member: factors.get(member[1], 1.0)):
            parameters, names = map(list, zip(*chosen, strict=True))
            groups.append({**group, "params": parameters, "param_names": names, "lr": group["lr"] * factor})
    optimizer.param_groups = groups

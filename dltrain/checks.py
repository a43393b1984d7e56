"""Everything that can be wrong with a composed config and is seen without building it.

The shipped YAML file of a chosen option is the reference: its keys are the settings that there are, its values their
types. Ranges of common numbers and the allow-list of targets are checked too. Constructors check the rest at build.
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dltrain.choices import SEVERAL, configs_dir, groups, options, package
from dltrain.errors import ConfigError, nearest, real, show, whole
from dltrain.settings import Every, Settings, Transfer

ROOT = tuple(setting.name for setting in fields(Settings))
MUST = ("data", "model", "activation", "task", "loss", "optimizer", "scheduler", "trainer")  # groups of every run
STEPS = "pipeline"  # the group whose option is a mapping of several components
TRUSTED = ("dltrain.", "torch.nn.", "torch.optim.", "sklearn.")
NULLABLE = ("norm",)  # settings that may be null though what ships is not
FORBIDDEN = ("_args_", "_partial_", "_recursive_", "_convert_")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """What a number must be: between `low` and `high`, which belong to it unless open; `also` are words for one."""

    must: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: tuple[str, ...] = ()

    def holds(self, value: float) -> bool:
        """True of a finite number in the range."""
        low = self.low < value if self.open_low else self.low <= value
        high = value < self.high if self.open_high else value <= self.high
        return low and high and math.isfinite(value)


POSITIVE = Range("above 0", 0, open_low=True)
FROM_0 = Range("at least 0", 0)
FROM_1 = Range("at least 1", 1)
FRACTION = Range("in [0, 1)", 0, 1, open_high=True)
RANGES = {  # by the setting's last word, or by its group and last word where that is not enough
    "lr": POSITIVE,
    "weight_decay": FROM_0,
    "momentum": FRACTION,
    "betas": FRACTION,
    "eps": FROM_0,
    "dropout": FRACTION,
    "label_smoothing": FRACTION,
    "patience": FROM_1,
    "optimizer.alpha": FRACTION,
    "regularizer.alpha": POSITIVE,
    "regularizer.weight": FROM_0,
    "regularizer.std": FROM_0,
    "scheduler.step_size": FROM_1,
    "trainer.threads": FROM_1,
    "trainer.max_restarts": FROM_0,
    "sweep.n_trials": FROM_1,
    "sweep.seed": FROM_0,
    "sweep.slots": FROM_1,
    "split.valid": FROM_0,  # a fraction, or a count of rows
    "split.test": FROM_0,
    "pipeline.n_components": Range("a count, a fraction of the variance or all", 0, open_low=True, also=("all",)),
    "task.threshold": Range("between 0 and 1, or auto", 0, 1, open_low=True, open_high=True, also=("auto",)),
}


@dataclass
class Option:
    """A chosen option: its own settings, where they stand, and what its file sets elsewhere."""

    group: str
    name: str
    path: tuple[str, ...]
    settings: Tree
    elsewhere: Tree


@dataclass
class Found:
    """The problems of a config by kind, so that they are told in one order."""

    keys: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def problems(
    config: Tree, choices: Mapping[str, Any], closed: Collection[str] = (), incomplete: bool = False
) -> list[str]:
    """One sentence for everything wrong with a config, which is coerced to the declared types in place.

    `closed` are settings that were typed as if they existed, and do not.
    """
    wrong = [text for group, option in choices.items() for text in not_options(group, option)]
    gone = [group for group in MUST if group not in config or group not in choices]  # by a word such as ~optimizer
    wrong += [f"{group} must be one of {', '.join(options(group))}, got none" for group in gone]
    if wrong:
        return wrong
    chosen = _options(choices)
    checker = _Checker(config, chosen, closed)
    root = checker.run()
    found = checker.found
    trust = config.get("trust")
    _targets(config, [t for t in trust if isinstance(t, str)] if isinstance(trust, list) else [], found)
    return found.keys + found.types + root + found.ranges + found.targets + ([] if incomplete else found.missing)


def not_options(group: str, option: Any) -> list[str]:
    """A sentence for every choice of a group that is none."""
    name = group.partition("@")[0]
    known = options(name)
    if option is None or (isinstance(option, list) and name not in SEVERAL):
        return [f"{name} must be one of {', '.join(known)}, got {show(option)}"]
    names = option if isinstance(option, list) else [option]
    return [f"{name}={n}: no such {name}{nearest(str(n), known)}" for n in names if str(n) not in known]


def _options(choices: Mapping[str, Any]) -> list[Option]:
    """Read the files of all choices."""
    chosen = []
    for key, names in choices.items():
        group, _, where = key.partition("@")
        for name in names if isinstance(names, list) else [names]:
            file = options(group)[str(name)]
            home = tuple((where or group).split("."))
            if group in SEVERAL:
                home = (group, str(name))
            tree = _at(where if where else package(file, group), _read(file))
            own, elsewhere = _split(tree, home)
            chosen.append(Option(group, str(name), home, own, elsewhere))
    return chosen


def _read(file: Path) -> Tree:
    """A file's settings over those of the files of its own group that its defaults list names."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(tree, dict):
        return {}
    base: Tree = {}
    for other in _inherited(file, tree.pop("defaults", [])):
        base |= _read(other)
    return {str(key): value for key, value in (base | tree).items()}


def _inherited(file: Path, entries: list[Any]) -> list[Path]:
    """The files of the same group that a defaults list names."""
    names = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return [other for name in names if (other := file.parent / f"{name}.yaml").is_file()]


def overridden(file: Path) -> dict[str, Any]:
    """The choices of groups that a file's defaults list overrides, such as an experiment's."""
    if "override" not in (text := file.read_text(encoding="utf-8")) and "defaults" not in text:
        return {}
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    entries = tree.get("defaults", []) if isinstance(tree, dict) else []
    found: dict[str, Any] = {}
    for other in _inherited(file, entries):
        found |= overridden(other)
    for entry in entries:
        for key, option in entry.items() if isinstance(entry, dict) else ():
            if key.startswith("override /") and key.removeprefix("override /") in SEVERAL:
                found[key.removeprefix("override /")] = option
    return found


def _at(where: str, tree: Tree) -> Tree:
    for part in reversed(where.split(".") if where else []):
        tree = {part: tree}
    return tree


def _split(tree: Tree, home: tuple[str, ...]) -> tuple[Tree, Tree]:
    """The part of a tree at `home`, and the rest."""
    if not home:
        return tree, {}
    head, *tail = home
    inner = tree.get(head, {})
    if not isinstance(inner, dict):
        return {}, tree
    own, rest = _split(inner, tuple(tail))
    return own, {key: value for key, value in {**tree, head: rest}.items() if value != {}}


def _find(tree: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


class _Checker:
    """Walks a config beside the files of its options."""

    def __init__(self, config: Tree, chosen: list[Option], closed: Collection[str]) -> None:
        self.config, self.chosen, self.closed = config, chosen, closed
        self.found = Found()
        self.reference: Tree = {}
        for option in chosen:
            node = self.reference
            for part in option.path:
                node = node.setdefault(part, {})
            node |= option.settings
        for group, common in _read(configs_dir() / "config.yaml").items():  # what stands beside any choice of a group
            if isinstance(common, dict) and group != "hydra":
                own = self.reference.get(group, {})
                names = [option.name for option in chosen if option.path == (group,)]
                both = [key for key in common if key in own]
                self.found.keys += [
                    f"{group}={n} must not have a setting {key}: every {group} has" for key in both for n in names
                ]
                self.reference[group] = {**own, **common}

    def run(self) -> list[str]:
        """Check all groups; returns the problems of the root settings."""
        for key, value in self.config.items():
            if key in self.reference:
                self.config[key] = self.value((key,), value, self.reference[key])
            elif key not in ROOT:
                self.unknown((key,))
        return [*self.transfer(), *self.root()]

    def transfer(self) -> list[str]:
        """What is wrong with the settings of every network, but for their types."""
        told = {text.split(" ")[0] for text in self.found.types}
        try:
            Transfer.of(self.config["model"] if isinstance(self.config["model"], dict) else {})
        except ConfigError as error:
            return [text for text in str(error).splitlines() if text.split(" ")[0] not in told]
        return []

    def root(self) -> list[str]:
        settings = {key: value for key, value in self.config.items() if key in ROOT}
        for setting in fields(Settings):
            value = settings.get(setting.name)
            if "float" in str(setting.type) and whole(value) and real(value):
                settings[setting.name] = float(value)  # type: ignore[arg-type]
            elif "list" in str(setting.type) and isinstance(value, str):
                settings[setting.name] = [value]
        self.config.update(settings)
        try:
            Settings(**settings)
        except ConfigError as error:
            return str(error).splitlines()
        return []

    def mapping(self, path: tuple[str, ...], value: Tree, default: Tree) -> None:
        own = default.get("_target_")
        free = not default or value.get("_target_") != own
        foreign = isinstance(own, str) and not own.startswith("dltrain.")  # its constructor may take more than we list
        for key, item in value.items():
            here = (*path, str(key))
            step = path[0] in SEVERAL and len(path) == 1 and isinstance(item, dict) and "_target_" in item
            if key == "_target_":
                continue  # and the targets are checked with those of every depth
            if key in default:
                value[key] = self.value(here, item, default[key])
            elif key in FORBIDDEN or (path[0] == STEPS and isinstance(item, dict) and len(path) == 1):
                continue  # told where targets are checked
            elif ".".join(here) in self.closed or not (free or step or (foreign and not self.origin(here))):
                self.unknown(here)

    def value(self, path: tuple[str, ...], value: Any, default: Any) -> Any:
        """The value in the type of the default; notes what is wrong with it."""
        name = ".".join(path)
        if value == "???" or (value == "" and default == "???"):
            self.found.missing.append(f"{name} must be given")
            return value
        if isinstance(default, dict):
            if isinstance(value, dict):
                self.mapping(path, value, default)
            elif value is not None or default:
                keys = [f"{name}.{key}" for key in default if key != "_target_"]
                example = f" ({', '.join(keys)})" if keys else ""
                self.found.types.append(f"{name} must be settings{example}, got {show(value)}")
            return value
        limits = self.limits(path)
        if path[-1] == "save_every":
            self.every(name, value)
            return value
        if (value is None and path[-1] in NULLABLE) or (limits and isinstance(value, str) and value in limits.also):
            return value
        coerced, must = typed(value, default)
        if path[0] == "optimizer" and isinstance(default, list) and isinstance(value, list):
            must = must or (f"{len(default)} numbers" if len(value) != len(default) else "")  # torch unpacks them
        if must:
            self.found.types.append(f"{name} must be {must}, got {show(value)}")
        elif limits:
            numbers = [number for number in (value if isinstance(value, list) else [value]) if _number(number)]
            if not all(limits.holds(number) for number in numbers):
                self.found.ranges.append(f"{name} must be {limits.must}, got {show(value)}")
        return coerced

    def limits(self, path: tuple[str, ...]) -> Range | None:
        group = next((option.group for option in self.chosen if path[: len(option.path)] == option.path), path[0])
        names = (f"{group}.{path[-1]}", ".".join(path[-2:]), path[-1])
        return next((RANGES[name] for name in names if name in RANGES), None)

    def every(self, name: str, value: Any) -> None:
        try:
            Every.parse(name, value, ("epochs", "steps", "s"))
        except ConfigError as error:
            self.found.types.append(str(error))

    def origin(self, path: tuple[str, ...]) -> Option | None:
        """The option whose file set a setting that is not its own."""
        return next((option for option in self.chosen if _find(option.elsewhere, path)), None)

    def unknown(self, path: tuple[str, ...]) -> None:
        name = ".".join(path)
        option = max((o for o in self.chosen if path[: len(o.path)] == o.path), key=lambda o: len(o.path), default=None)
        if option is None:  # of no chosen option
            self.found.keys.append(self.elsewhere(path))
            return
        choice = f"{option.group}={option.name}"
        source = self.origin(path)
        if source:
            self.found.keys.append(f"{source.group}={source.name} needs {name}, which {choice} does not have")
            return
        settings = self.reference
        for part in path[:-1]:
            settings = settings.get(part, {})
        text = f"{name}: no such setting of {choice}"
        owners = [other for other in options(option.group) if _has(option.group, other, path[len(option.path) :])]
        if owners:
            text += f"; it belongs to {option.group}={', '.join(owners)}"
        else:
            text += alike(path, settings)
        target = settings.get("_target_")
        if isinstance(target, str) and not target.startswith("dltrain.") and not owners:
            text += f"; another argument of {target.rpartition('.')[2]} is written +{name}=..."
        self.found.keys.append(text)

    def elsewhere(self, path: tuple[str, ...]) -> str:
        """The sentence about a setting that belongs to no chosen option."""
        name, last = ".".join(path), path[-1]
        if path[0] in SEVERAL:
            if len(path) > 1 and path[1] in options(path[0]):
                return f"{name} needs {path[0]}={path[1]}"
            return f"{name}: no such {path[0]}{nearest(path[-1], options(path[0]))}"
        same = [f"{'.'.join(where)}" for where in _paths(self.reference) if where[-1] == last and len(where) > 1]
        if same:
            return f"{name}: no such setting; did you mean {' or '.join(sorted(same))}?"
        return f"{name}: no such setting{nearest(name, [*ROOT, *groups()])}"


def alike(path: Sequence[str], settings: Collection[str]) -> str:
    """The tail of a sentence about a setting that does not exist, from the names of those that stand there."""
    prefix = "".join(f"{part}." for part in path[:-1])
    known = [key for key in settings if key != "_target_"]
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.6)
    hint = f"; did you mean {prefix}{near[0]}?" if near else ""
    return f"{hint} ({', '.join(prefix + key for key in known)})" if known else hint


def _paths(tree: Tree, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = [path for key, value in tree.items() if isinstance(value, dict) for path in _paths(value, (*prefix, key))]
    return [*((*prefix, key) for key in tree if key != "_target_"), *inner]


def _has(group: str, option: str, path: tuple[str, ...]) -> bool:
    """True if an option's own file has a setting at this path."""
    from yaml import YAMLError

    file = options(group)[option]
    try:
        return package(file, group) == group and _find(_read(file), path)
    except YAMLError:  # a damaged file that was not chosen
        return False


def typed(value: Any, default: Any) -> tuple[Any, str]:
    """A value in the type of a default, and what it must be if it cannot ('' if it can).

    >>> typed(1, 0.5), typed("x", 0.5), typed([8, "x"], [64])
    ((1.0, ''), ('x', 'a number'), ([8, 'x'], 'a list of whole numbers'))
    """
    match default:
        case bool():
            return value, "" if isinstance(value, bool) else "true or false"
        case int():
            return value, "" if whole(value) else "a whole number"
        case float():
            return (float(value), "") if _number(value) else (value, "a number")
        case list():
            return _typed_list(value, default)
        case str() if default not in ("auto", "all", "???") and "${" not in default:
            return value, "" if isinstance(value, str) else "text"
    return value, ""  # null, auto and all say nothing about a type: the constructor checks


def _typed_list(value: Any, default: list[Any]) -> tuple[Any, str]:
    names = {bool: "true or false", int: "whole numbers", float: "numbers", str: "text"}
    kinds = {type(item) for item in default}
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else None
    must = f"a list of {names[kind]}" if kind in names else "a list"
    if isinstance(value, str) and kind in (None, str) and value:
        return [value], ""
    if not isinstance(value, list):
        return value, must
    if kind not in names:
        return value, ""
    pairs = [typed(item, kind()) for item in value]
    return ([item for item, _ in pairs], "") if not any(wrong for _, wrong in pairs) else (value, must)


def _number(value: Any) -> bool:
    return isinstance(value, float) or real(value)


def _targets(config: Tree, trust: list[str], found: Found) -> None:
    """What names code: only from the allow-list, and nothing that changes how it is called."""
    prefixes = (*TRUSTED, *(f"{module}." for module in trust))

    def walk(node: Any, path: str) -> None:
        if isinstance(node, list):
            for place, item in enumerate(node):
                walk(item, f"{path}.{place}")
        if not isinstance(node, dict):
            return
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if key in FORBIDDEN:
                found.targets.append(f"{here} must not be set, got {show(value)}")
            elif key == "_target_":
                if not (isinstance(value, str) and value.startswith(prefixes)):
                    found.targets.append(
                        f"{here} must name a class of dltrain, torch.nn, torch.optim or sklearn,"
                        f" or of a module in trust=[...], got {show(value)}{_trust(value)}"
                    )
            else:
                walk(value, here)

    walk(config, "")
    for group in (STEPS, *SEVERAL):
        parts = config.get(group)
        for name, part in parts.items() if isinstance(parts, dict) else ():
            told = any(text.startswith(f"{group}.{name}") for text in found.keys)
            if not told and (not isinstance(part, dict) or "_target_" not in part):
                owners = [option for option in options(group) if _has(group, option, (name,))]
                needs = f"; it belongs to {group}={' or '.join(owners)}" if owners else ""
                found.targets.append(f"{group}.{name} must have a _target_, got {show(part)}{needs}")


def _trust(target: Any) -> str:
    """The hint that code of the user's own, in the current folder, may be trusted."""
    module = str(target).partition(".")[0]
    own = Path(f"{module}.py").is_file() or Path(module, "__init__.py").is_file()
    return f"; trust={module} allows it" if own else ""

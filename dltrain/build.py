"""From config to objects: the one place where a name in YAML becomes a class, and the allow-list that guards it.

A component is `_target_` plus keyword arguments. A parameter of its constructor that bears the name of another part
(`activation` of a network, `loss` of a task, `target` of a loss, `total_steps` of a scheduler) receives that part, so
YAML never says a part twice.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dltrain.errors import ConfigError, nearest

ROOTS = ("dltrain", "torch.nn", "torch.optim", "sklearn")
HOLDS = {  # what each group holds: a class to derive from, or (with a dot at its end) the module of dltrain it lies in
    "activation": "torch.nn.Module",
    "model": "torch.nn.Module",
    "task": "dltrain.tasks.task.Task",
    "loss": "dltrain.losses.",
    "data": "dltrain.data.",
    "optimizer": "torch.optim.Optimizer",
    "scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "pipeline": "sklearn.base.TransformerMixin",
    "regularizer": "dltrain.regularizers.",
    "trainer": "dltrain.distributed.Single",
    "logger": "dltrain.loggers.",
}
Factory = Callable[..., Any]


class Builder:
    """Makes factories of a config's components and hands each the parts that its signature asks for."""

    def __init__(self, config: Mapping[str, Any], trust: tuple[str, ...] = ()) -> None:
        self.config, self.trust = config, tuple(trust)
        self.handed: dict[str, Any] = {}
        self.asked: set[str] = set()  # names of parts that some signature has asked for

    def part(self, group: str, **changed: Any) -> Factory:
        """The factory of the group's one component, with some settings changed; raises ConfigError as `locate` does."""
        node = self.config[group]
        return self.factory({**node, **changed} if changed else node, group, group)

    def kind(self, group: str) -> Any:
        """The class or function of the group's one component."""
        return locate(self.config[group]["_target_"], f"{group}._target_", group, self.trust)

    def accepts(self, group: str, setting: str) -> bool:
        """True if the constructor of the group's component has a parameter of that name."""
        return setting in inspect.signature(self.kind(group)).parameters

    def parts(self, group: str) -> dict[str, Factory]:
        """The factories of a group of which several may be chosen, in the order of the config."""
        return {
            name: self.factory(node, f"{group}.{name}", group) for name, node in (self.config.get(group) or {}).items()
        }

    def factory(self, node: Any, where: str, group: str) -> Factory:
        """The factory of a component that stands somewhere in the config; raises ConfigError as `locate` does."""
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ConfigError(f"{where} must be a component with a _target_, got {node}")
        target = locate(node["_target_"], f"{where}._target_", group, self.trust)
        parameters = inspect.signature(target).parameters
        settings = {key: self._value(value, f"{where}.{key}") for key, value in node.items() if key != "_target_"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for key in settings:
                if key not in parameters:
                    known = nearest(key, [name for name in parameters if name not in self.handed])
                    raise ConfigError(f"{where}.{key} must be a setting of {target.__name__}{known}")
        made = functools.partial(self._make, target, where, parameters, settings)
        return functools.update_wrapper(made, target, (), ())  # inspect.signature sees what the component takes

    def _make(self, target: Any, where: str, parameters: Mapping, settings: dict, *args: Any, **handed: Any) -> Any:
        taken = {*settings, *list(parameters)[: len(args)]}
        available = {**self.handed, **handed}
        given = {name: available[name] for name in parameters if name in available and name not in taken}
        self.asked |= given.keys()
        try:
            bound = inspect.signature(target).bind(*args, **given, **settings)
        except TypeError as error:
            raise ConfigError(f"{where}: {target.__name__} {error}") from None
        try:
            return target(*bound.args, **bound.kwargs)
        except ValueError as error:  # a constructor's own check of a setting
            raise ConfigError(f"{where}: {error}") from error

    def _value(self, value: Any, where: str) -> Any:
        """A setting's value: a nested component becomes a factory of its own."""
        if isinstance(value, Mapping):
            if "_target_" in value:
                return self.factory(value, where, "model")
            return {key: self._value(item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, f"{where}.{number}") for number, item in enumerate(value)]
        return value


def locate(path: Any, where: str, group: str, trust: tuple[str, ...] = ()) -> Any:
    """The class or function of a dotted path if it is on the allow-list; raises ConfigError otherwise.

    A prefix of the path is not enough: what counts is the module in which the thing itself was defined
    (`torch.nn.functional.importlib.import_module` has the right prefix), and that it is what its group holds.
    """
    refused = f"{where} must name a class of dltrain, torch.nn, torch.optim or sklearn, or of a module in trust=[...]"
    module_name, _, name = str(path).rpartition(".")
    roots = (*ROOTS, *trust)
    if not name.isidentifier() or not _under(module_name, roots):
        root = module_name.partition(".")[0]  # nobody is told to trust os
        own = name.isidentifier() and root and root not in sys.stdlib_module_names
        hint = f"; trust=[{root}] allows it" if own else ""
        raise ConfigError(f"{refused}, got {path}{hint}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the module is there, and something that it imports is not
        raise ConfigError(f"{where} must be importable, got {path} (no module {error.name})") from None
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise ConfigError(f"{where} must be defined in {module_name}, got {name}{nearest(name, public)}")
    thing = getattr(module, name)
    if not callable(thing) or not _under(getattr(thing, "__module__", None) or "", roots):
        raise ConfigError(f"{refused}, got {path}")
    home, _, kind = HOLDS[group].rpartition(".")
    if kind and not (inspect.isclass(thing) and issubclass(thing, getattr(importlib.import_module(home), kind))):
        raise ConfigError(f"{where} must be a {kind}, got {path}")
    if not kind and not _under(thing.__module__, (home, *trust)):
        raise ConfigError(f"{where} must be a {group} of {home} or of a module in trust=[...], got {path}")
    return thing


def _under(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)

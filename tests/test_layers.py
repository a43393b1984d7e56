"""Imports point one way, and only some rooms know Hydra and torch.distributed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "dltrain"
LEAVES = {"errors", "faults"}
MAY_IMPORT = {  # room: the rooms of dltrain that it may import besides itself and the leaves
    "errors": set(),
    "faults": set(),
    "lines": set(),
    "settings": set(),
    "order": set(),
    "course": {"order"},
    "position": set(),
    "augmentation": set(),
    "choices": set(),
    "checks": {"choices", "settings"},
    "compose": {"checks", "choices", "settings"},
    "build": set(),
    "data": set(),
    "models": set(),
    "losses": set(),
    "curves": set(),
    "metrics": set(),
    "optimizers": set(),
    "schedulers": set(),
    "regularizers": {"augmentation"},
    "loggers": {"lines", "settings"},
    "report": set(),
    "tasks": {"augmentation", "curves", "metrics"},
    "sums": set(),
    "distributed": {"settings", "sums"},
    "player": {"distributed", "regularizers"},
    "health": {"distributed", "player"},
    "fingerprint": {"distributed", "order", "player"},
    "step": {"distributed", "fingerprint", "health", "order", "player", "regularizers", "sums", "tasks"},
    "evaluate": {"distributed", "player", "tasks"},
    "checkpoint": {"distributed", "player"},
    "train": {
        *("checkpoint", "course", "distributed", "evaluate", "order", "player", "position", "regularizers", "settings"),
        *("step", "tasks"),
    },
    "pruning": {"lines"},
    "environment": set(),
    "run": {"settings"},
    "opening": {"data", "environment", "run", "settings"},
    "bundle": {"build", "checkpoint", "evaluate", "settings", "tasks"},
    "sampler": {"bundle", "distributed", "player", "report", "tasks"},
    "transfer": {"bundle", "checkpoint", "data", "settings", "tasks"},
    "assembly": {
        *(
            "build",
            "checkpoint",
            "data",
            "distributed",
            "player",
            "regularizers",
            "report",
            "settings",
            "step",
            "tasks",
        ),
        *("train", "transfer"),
    },
    "worker": {
        *("assembly", "build", "bundle", "checkpoint", "course", "data", "distributed", "evaluate", "loggers"),
        *("pruning", "report", "run", "sampler", "settings", "tasks", "train", "transfer"),
    },
    "together": {
        *("build", "bundle", "course", "data", "distributed", "evaluate", "fingerprint", "health", "opening", "order"),
        *("player", "regularizers", "report", "run", "settings", "tasks", "train", "worker"),
    },
    "launch": {"distributed", "report", "run", "worker"},
    "reading": {"build", "data", "run"},
    "ensembles": {"bundle", "data", "reading", "run", "tasks"},
    "commands": {
        *("build", "bundle", "choices", "compose", "ensembles", "fingerprint", "launch", "lines", "opening"),
        *("reading", "report", "run", "settings"),
    },
    "sweeps": {"commands", "compose", "launch", "lines", "opening", "pruning", "report", "run", "together"},
    "app": {"checks", "commands", "compose", "sweeps"},
    "completion": {"app", "choices", "commands", "compose"},
    "cli": {"app", "commands", "completion", "launch", "report"},
    "__main__": {"cli"},
    "__init__": {"bundle", "run"},
}
HYDRA = {"compose", "app", "checks", "sweeps"}  # app is the application, sweeps its plugins, checks reads as OmegaConf
DISTRIBUTED = {"distributed", "launch"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports when it runs, at any depth."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # names for type checkers alone make no arrow
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = room(path)
    for name in imports(path):
        if name.startswith("dltrain."):
            other = name.split(".")[1]
            allowed = {own, *LEAVES, *MAY_IMPORT[own]}
            assert other in allowed or other == "__version__", f"{own} must not import {name}"
        if name.startswith(("hydra", "omegaconf")):
            assert own in HYDRA, f"{own} must not know {name}"
        if name.startswith("torch.distributed"):
            assert own in DISTRIBUTED, f"{own} must not know {name}"


def test_every_room_is_in_the_table() -> None:
    assert {room(path) for path in ROOT.rglob("*.py")} == set(MAY_IMPORT)


def test_the_table_has_no_cycle() -> None:
    def reach(name: str, seen: tuple[str, ...] = ()) -> None:
        assert name not in seen, f"{' -> '.join((*seen, name))} goes in a circle"
        for other in MAY_IMPORT[name]:
            reach(other, (*seen, name))

    for name in MAY_IMPORT:
        reach(name)

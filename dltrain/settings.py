"""The settings of a run itself: the words at the root of a config, their types and ranges."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dltrain.errors import ConfigError, nearest, real, show, whole

PRECISIONS = ("float32", "bfloat16", "float16")
TAKEN = ("last", "best", "sweeps")  # names that mean something else where runs are looked for
LONGEST = 200  # what a file system takes, less what is put around it
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Every:
    """How often something happens: `2` epochs, `500steps`, or `30s` of wall time."""

    number: int
    unit: str  # epochs, steps or s

    @classmethod
    def parse(cls, setting: str, value: Any, units: tuple[str, ...]) -> "Every":
        """Read a whole number (epochs) or text such as `500steps`; raises ConfigError naming the setting."""
        words = {"": ("epochs", 1), "epoch": ("epochs", 1), "epochs": ("epochs", 1), "step": ("steps", 1)}
        words |= {"steps": ("steps", 1), "s": ("s", 1), "m": ("s", 60), "h": ("s", 3600)}
        match = re.fullmatch(r"(\d+) ?([a-z]*)", str(value).strip().lower())
        unit, factor = words.get(match[2], ("", 1)) if match else ("", 1)
        if not match or unit not in units or int(match[1]) < 1:
            examples = {"epochs": "1 (epochs)", "steps": "500steps", "s": "30s"}
            raise ConfigError(f"{setting} must be like {' or '.join(examples[u] for u in units)}, got {value}")
        return cls(int(match[1]) * factor, unit)


def _periodic(value: Any) -> bool:
    try:
        Every.parse("evaluate_every", value, ("epochs", "steps"))
    except ConfigError:
        return False
    return True


Rule = tuple[Callable[[Any], bool], str]

RULES: dict[str, Rule] = {
    "seed": (lambda v: whole(v, 0) and v < 2**63, "a whole number of at least 0"),
    "epochs": (lambda v: whole(v, 1), "a whole number of at least 1"),
    "batch_size": (lambda v: v == "all" or whole(v, 1), "a whole number of at least 1, or all"),
    "clip_norm": (lambda v: v is None or (real(v) and v > 0), "a number above 0, or null"),
    "shards": (lambda v: v is None or whole(v, 1), "a whole number of at least 1, or null"),
    "exact": (lambda v: isinstance(v, bool), "true or false"),
    "precision": (lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "monitor": (lambda v: v is None or (isinstance(v, str) and v != ""), "the name of a metric, or null"),
    "evaluate_every": (_periodic, "a number of epochs such as 1, or of steps such as 500steps"),
    "sample_every": (lambda v: v is None or whole(v, 1), "a whole number of epochs of at least 1, or null"),
    "ema": (lambda v: v is None or (real(v) and 0 < v < 1), "a number between 0 and 1, or null"),
    "name": (
        lambda v: v is None or (isinstance(v, str) and NAME.fullmatch(v) is not None),
        "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    ),
    "output_root": (lambda v: isinstance(v, str) and v != "", "a folder"),
    "fresh": (lambda v: isinstance(v, bool), "true or false"),
    "trust": (
        lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v),
        "a list of module names such as [mynets]",
    ),
}


@dataclass(frozen=True)
class Settings:
    """The root settings of a run; raises ConfigError with every problem at once."""

    seed: int = 0
    epochs: int = 50
    batch_size: int | str = 64  # rows of the global batch, or "all"
    clip_norm: float | None = None
    shards: int | None = None
    exact: bool = False
    precision: str = "float32"
    monitor: str | None = None
    evaluate_every: int | str = 1
    sample_every: int | None = 10  # epochs between samples of tasks that make some
    ema: float | None = None
    name: str | None = None
    output_root: str = "outputs"
    fresh: bool = False
    trust: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        problems = []
        for name, (holds, requirement) in RULES.items():
            value = getattr(self, name)
            if not holds(value):
                hint = nearest(str(value), PRECISIONS) if name == "precision" else ""
                problems.append(f"{name} must be {requirement}, got {show(value)}{hint}")
        if self.exact and self.shards is not None and self.shards & (self.shards - 1):
            below = 2 ** (self.shards.bit_length() - 1)
            choices = f"shards={below} or {2 * below}"
            problems.append(f"shards must be a power of two when exact=true, got {self.shards}; {choices} would do")
        if isinstance(self.name, str) and (self.name in TAKEN or len(self.name) > LONGEST):
            must = f"at most {LONGEST} letters" if len(self.name) > LONGEST else f"none of {', '.join(TAKEN)}"
            problems.append(f"name must be {must}, got {self.name}")
        if problems:
            raise ConfigError("\n".join(problems))

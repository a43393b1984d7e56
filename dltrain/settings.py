"""The settings of a run itself: the words at the root of a config, their types and ranges."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
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
    "report": (lambda v: v == "auto" or isinstance(v, bool), "auto, true or false"),
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
    report: bool | str = "auto"  # whether report.html is written at the end
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


@dataclass(frozen=True)
class Transfer:
    """What every `model` is told besides the settings of its own file; raises ConfigError with every problem at once.

    The network begins with the weights of an earlier run or of a file, parts of it are frozen, and what lies deep
    learns slowly.
    """

    from_run: str | None = None
    weights: str | None = None
    head: str = "kept"  # or new
    freeze: list[str] = field(default_factory=list)
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        texts = isinstance(self.freeze, list) and all(isinstance(part, str) and part for part in self.freeze)
        rate = self.layer_decay is None or (real(self.layer_decay) and 0 < self.layer_decay <= 1)
        source = self.from_run or self.weights
        rules = {
            "from_run": (_text(self.from_run), "a run, or null"),
            "weights": (
                _text(self.weights) and not (self.from_run and self.weights),
                "a file without from_run, or null",
            ),
            "head": (self.head == "kept" or (self.head == "new" and bool(source)), _head(self.head)),
            "freeze": (texts, "a list of parts of the network, such as [body] or [blocks.0]"),
            "layer_decay": (rate, "above 0 and at most 1, or null"),
        }
        values = asdict(self)
        problems = [
            f"model.{key} must be {what}, got {show(values[key])}" for key, (right, what) in rules.items() if not right
        ]
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> "Transfer":
        """Those of a `model`, which may lack some."""
        return cls(**{setting.name: model[setting.name] for setting in fields(cls) if setting.name in model})

    def chosen(self) -> dict[str, Any]:
        """What is not as it is by default."""
        default = asdict(Transfer())
        found = {key: value for key, value in asdict(self).items() if value != default[key]}
        return found | ({} if self.layer_decay is None else {"layer_decay": float(self.layer_decay)})


def _text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _head(value: Any) -> str:
    return "kept without model.from_run or model.weights" if value == "new" else "kept or new"


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (setting, value) for every leaf of a config."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def own_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `model` that its own file has."""
    names = {setting.name for setting in fields(Transfer)}
    return {key: value for key, value in model.items() if key not in names}

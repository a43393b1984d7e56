"""What is to be predicted: its kind, its classes or its scale, and the way there and back."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dltrain.data.columns import PAIRS, WORDS, Place, absent, few, mistaken, mostly, numbers, parsed, text
from dltrain.errors import ConfigError, DataError, nearest

KINDS = ("number", "binary", "classes", "multilabel", "none")
TRANSFORMS = ("standard", "log", "none")
FEW = 20  # a target of whole numbers with at most so many different ones is classes
WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0*")


def check_transform(value: Any) -> None:
    """Raise ConfigError unless it is a transform of a target."""
    hint = nearest(str(value), TRANSFORMS)
    if value not in TRANSFORMS:
        raise ConfigError(f"data.target_transform must be one of {', '.join(TRANSFORMS)}, got {value}{hint}")


def check_columns(names: Sequence[str], columns: Collection[str], source: str) -> None:
    """Raise DataError unless the columns of a target are among those of a file that metrics are wanted of."""
    if gone := [name for name in names if name not in columns]:
        raise DataError(f"{source}: has no column {', '.join(gone)}, the target that metrics are measured against")


@dataclass(frozen=True)
class Target:
    """The target of a task; `encode` gives what losses read, `decode` brings numbers back to their own units.

    classes are texts in the order of their codes: numbers numerically, words alphabetically, (no, yes) for yes/no.
    """

    kind: str
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    transform: str = "none"
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()  # multilabel: the (negative, positive) words of each column

    def encode(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """number, binary and multilabel (rows, n) float32: standardised, or of 0 and 1; classes (rows,) int64.

        none (rows, 0), for tasks that predict nothing.
        Raises DataError at a missing column, a missing cell and a class that training rows did not have.
        """
        place = Place(source, first_row)
        for name in self.names:
            if name not in frame.columns:
                raise DataError(f"{source}: there is no column {name} (the target)")
        match self.kind:
            case "none":
                return torch.zeros(len(frame), 0)
            case "number":
                values = np.stack([present(frame[name], place) for name in self.names], axis=1)
                with np.errstate(over="ignore"):
                    scaled = self._standardised(values, place).astype(np.float32)
                for row, column in np.argwhere(~np.isfinite(scaled))[:1]:
                    expected = "a number below 3.4e38 once it is scaled"
                    raise place.error(row, self.names[column], expected, values[row, column].item())
                return torch.from_numpy(scaled)
            case "classes":
                return torch.from_numpy(self._codes(frame[self.names[0]], self.classes, place))
            case _:
                pairs = self.labels or (self.classes,)
                codes = [self._codes(frame[name], pair, place) for name, pair in zip(self.names, pairs, strict=True)]
                return torch.from_numpy(np.stack(codes, axis=1).astype(np.float32))

    def decode(self, values: Tensor) -> Tensor:
        """Numbers (rows, n) in standardised units to float64 in their own; other kinds unchanged."""
        if self.kind != "number":
            return values
        own = values.double() * torch.tensor(self.scale, dtype=torch.float64, device=values.device)
        own = own + torch.tensor(self.mean, dtype=torch.float64, device=values.device)
        return own.exp() if self.transform == "log" else own

    def recoded(self, values: Tensor, other: "Target") -> Tensor:
        """What another target of the same kind and columns encoded, as this one encodes it."""
        if self.kind != "number":
            return values
        own = other.decode(values)
        own = own.log() if self.transform == "log" else own
        return ((own - torch.tensor(self.mean)) / torch.tensor(self.scale)).to(values.dtype)

    def example(self) -> dict[str, str]:
        """Cells that training could have met, by column."""
        words = self.labels or (self.classes or ("1",),) * len(self.names)
        return {name: word[0] for name, word in zip(self.names, words, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Its fields, as they stand in model.json."""
        state: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return state

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Target":
        """The target `to_json` described."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in state.items()
        }
        fields["labels"] = tuple(tuple(pair) for pair in state.get("labels", ()))
        words = [*fields["names"], *fields.get("classes", ()), *(word for pair in fields["labels"] for word in pair)]
        if not all(isinstance(word, str) for word in words):
            raise ValueError("a target must be named, and its classes, by text")
        return cls(**fields)

    def _standardised(self, values: np.ndarray, place: Place) -> np.ndarray:
        if self.transform == "log":
            values = np.log(positive(values, self.names, place))
        return (values - np.array(self.mean)) / np.array(self.scale)

    def _codes(self, series: pd.Series, classes: tuple[str, ...], place: Place) -> np.ndarray:
        words = labels(series, place)
        known = {name: code for code, name in enumerate(classes)}
        lowered = {name.lower(): code for name, code in known.items()}
        if len(lowered) == len(known):  # True from Python is true in a file
            known = lowered | known
        codes = np.array([known.get(word, known.get(word.lower(), -1)) for word in words], np.int64)
        if (codes < 0).any():
            position = int(np.argmax(codes < 0))
            raise place.error(
                position,
                str(series.name),
                f"one of the classes {listed(classes)} of the training rows",
                words[position],
            )
        return codes


def listed(names: tuple[str, ...]) -> str:
    """The first names."""
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")


def present(series: pd.Series, place: Place) -> np.ndarray:
    """(rows,) float64 without a gap; raises DataError."""
    values = numbers(series, place)
    if np.isnan(values).any():
        raise place.error(int(np.argmax(np.isnan(values))), str(series.name), "a number", "")
    return values


def labels(series: pd.Series, place: Place) -> np.ndarray:
    """(rows,) of class names, 3.0 written 3; raises DataError where one is missing."""
    words = text(series)
    gaps = absent(words)
    if gaps.any():
        raise place.error(int(np.argmax(gaps)), str(series.name), "a class", "")
    return np.array([match[1] if (match := WHOLE.fullmatch(word)) else word for word in words], object)


def positive(values: np.ndarray, names: tuple[str, ...], place: Place) -> np.ndarray:
    """The values, if all have a logarithm; raises ConfigError."""
    wrong = np.argwhere(values <= 0)
    if len(wrong):
        row, column = wrong[0]
        raise ConfigError(
            f"data.target_transform=log must go with values above 0, got {values[row, column]:g}"
            f" ({place.source} row {place.row(row)}, column {names[column]})"
        )
    return values


def missing(frame: pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """(rows,) True where a target is missing."""
    gaps = np.zeros(len(frame), bool)
    for name in names:
        gaps |= absent(text(frame[name]))
    return gaps


def fit(
    frame: pd.DataFrame,
    names: tuple[str, ...],
    place: Place,
    transform: str = "standard",
    kinds: dict[str, str] | None = None,
) -> Target:
    """The target from its training rows, none missing; raises DataError or ConfigError if there is nothing to learn."""
    kinds = kinds or {}
    if not names:
        return Target("none", ())
    if len(names) == 1:
        kind = kind_of(frame[names[0]], place, kinds.get(names[0]))
        if kind == "number":
            return fit_numbers(frame, names, place, transform)
        return fit_classes(frame[names[0]], place)
    found = {name: kind_of(frame[name], place, kinds.get(name), several=True) for name in names}
    if all(kind == "binary" for kind in found.values()):
        return fit_labels(frame, names, place)
    if all(is_number(frame[name], kind) for name, kind in found.items()):
        return fit_numbers(frame, names, place, transform)
    told = ", ".join(f"{name} ({kind})" for name, kind in found.items())
    raise ConfigError(f"data.target of several columns must be all numbers or all yes/no, got {told}")


def is_number(series: pd.Series, kind: str) -> bool:
    """True of numbers, and of two numbers among columns of numbers."""
    return kind == "number" or (kind == "binary" and not np.isnan(parsed(text(series))).any())


def kind_of(series: pd.Series, place: Place, override: str | None = None, several: bool = False) -> str:
    """number, binary or classes.

    Text is classes. Numbers are binary if two different ones occur; classes if they are whole, at most 20 different
    ones occur and each five times on average; numbers otherwise.
    """
    name = str(series.name)
    words = text(series)
    levels = set(words)
    if override == "number":
        return "number"
    if override is not None and override not in ("category", "yes/no"):
        raise ConfigError(f"data.columns.{name} must be number, category or yes/no for a target, got {override}")
    two = "binary" if len(levels) <= 2 else "classes"
    if override is not None:
        return two
    zero_led = any(len(word) > 1 and word[0] == "0" and word.isdigit() for word in levels)
    found = parsed(words)
    wrong = np.flatnonzero(np.isnan(found))
    if zero_led or (len(levels) > 2 and not mostly(found[~np.isnan(found)], len(found))) or len(levels) <= 2:
        if two == "classes" and len(levels) > max(FEW, len(words) / 2):
            raise DataError(
                f"{place.source}, column {name}: {len(levels)} different words"
                f" in {len(words)} rows are no classes to learn"
            )
        return two
    if len(wrong):
        raise mistaken(place, wrong, words, name, "a number")
    whole = bool(np.all(found == np.floor(found)))
    if whole and not several and len(levels) <= FEW and 5 * len(levels) <= len(found):
        return "classes"
    return "number"


def fit_numbers(frame: pd.DataFrame, names: tuple[str, ...], place: Place, transform: str) -> Target:
    """Mean and scale in float64 of the training rows, after the logarithm if asked for."""
    values = np.stack([present(frame[name], place) for name in names], axis=1)
    for name, column in zip(names, values.T, strict=True):
        if few(column) == 1:
            raise constant(place, name, f"{column[0]:g}", len(column))
    if transform == "log":
        values = np.log(positive(values, names, place))
    if transform == "none":
        mean, scale = np.zeros(len(names)), np.ones(len(names))
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = values.mean(axis=0), values.std(axis=0)
        for column in np.flatnonzero(~(np.isfinite(mean) & np.isfinite(scale) & (scale > 0)))[:1]:
            raise unscaled(place, names[column], values[:, column])
    return Target("number", names, transform=transform, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))


def unscaled(place: Place, name: str, values: np.ndarray) -> DataError:
    """The sentence about numbers whose spread float64 cannot hold."""
    low, high = values.min(), values.max()
    large = max(abs(low), abs(high)) > 1
    what, do = ("large", "divide them") if large else ("small", "multiply them")
    log = ", or set data.target_transform=log" if low > 0 else ""
    return DataError(
        f"{place.source}, column {name}: the target's numbers, from {low:g} to {high:g}, are too {what}"
        f" to take mean and spread of; {do}{log}"
    )


def fit_classes(series: pd.Series, place: Place) -> Target:
    """Classes of one column, sorted as its values sort."""
    name = str(series.name)
    words = labels(series, place)
    classes = ordered(set(words))
    if len(classes) == 1:
        raise constant(place, name, classes[0], len(words))
    counts = tuple(int(np.sum(words == label)) for label in classes)
    return Target("binary" if len(classes) == 2 else "classes", (name,), classes, counts)


def fit_labels(frame: pd.DataFrame, names: tuple[str, ...], place: Place) -> Target:
    """Several columns of two words each."""
    each = [fit_classes(frame[name], place) for name in names]
    return Target(
        "multilabel",
        names,
        counts=tuple(one.counts[1] for one in each),
        labels=tuple((one.classes[0], one.classes[1]) for one in each),
    )


def ordered(found: set[str]) -> tuple[str, ...]:
    """Sorted as values sort; no before yes."""
    if {word.lower() for word in found} in PAIRS:
        return tuple(sorted(found, key=lambda word: WORDS[word.lower()]))
    values = dict(zip(found, parsed(np.array(list(found), object)), strict=True))
    if any(np.isnan(value) for value in values.values()):
        return tuple(sorted(found))
    return tuple(sorted(found, key=lambda word: (values[word], word)))


def constant(place: Place, name: str, value: str, rows: int) -> DataError:
    """The sentence about a target that never changes."""
    return DataError(
        f"{place.source}, column {name}: the target is {value} in all {rows} training rows; there is nothing to learn"
    )

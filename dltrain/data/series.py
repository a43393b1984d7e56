"""Series: rows in the order of time, cut into windows, each to be continued by so many steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dltrain.data import pipeline as steps_of
from dltrain.data import split as splits
from dltrain.data.clock import Clock
from dltrain.data.columns import Column, Place, filled, infer
from dltrain.data.description import statistics
from dltrain.data.files import File, nearest_column
from dltrain.data.rows import Data, Rows
from dltrain.data.table import names
from dltrain.data.target import Target, check_columns, check_transform, fit_numbers, present
from dltrain.errors import ConfigError, DataError, must, whole

FILE = "preparation.skops"
WINDOW, AHEAD = "(window)", "(ahead)"  # columns of a table of windows, whose cells are arrays
PARTS = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Cut:
    """How windows are cut: `length` rows to look at and the `horizon` after them, every `stride` rows of an entity."""

    entity: str | None = None
    length: int = 24
    horizon: int = 1
    stride: int = 1
    gaps: str = "refuse"

    def __post_init__(self) -> None:
        for name in ("length", "horizon", "stride"):
            value = getattr(self, name)
            must(whole(value, 1), f"data.{name}", "a whole number of at least 1", value)
        must(self.gaps in ("refuse", "allow"), "data.gaps", "refuse or allow", self.gaps)
        must(not isinstance(self.entity, list | tuple), "data.entity", "one column, or null", self.entity)


@dataclass(frozen=True)
class Ordered:
    """Rows of a file by entity and time: positions in the file, entities and times, each (rows,)."""

    rows: np.ndarray
    entities: np.ndarray
    times: np.ndarray


class Series:
    """A file of rows in time, of one entity or several; a row for training is a window of them.

    features (rows, channels, length); target (rows, horizon * targets), step by step. By time the first part is for
    training, the next for validation, the last for the test; no window crosses from part to part or from entity to
    entity. `gaps=refuse` wants one row a step: the median difference, weekdays, or months.
    Raises ConfigError for a setting, DataError for the file.
    """

    def __init__(
        self,
        path: str,
        time: str,
        target: str | Sequence[str] | None,
        columns: str | Sequence[str] | None = None,
        entity: str | None = None,
        length: int = 24,
        horizon: int = 1,
        stride: int = 1,
        gaps: str = "refuse",
        split: Mapping[str, Any] | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        target_transform: str = "standard",
        pipeline: Mapping[str, Any] | None = None,
    ) -> None:
        must(isinstance(time, str | int), "data.time", "the column of time stamps", time)
        check_transform(target_transform)
        self.path, self.time, self.transform, self.pipeline = path, str(time), target_transform, pipeline or {}
        self.targets, self.columns = names("data.target", target), names("data.columns", columns)
        self.cut = Cut(None if entity is None else str(entity), length, horizon, stride, gaps)
        self.split = splits.from_config({"kind": "time", "valid": 0.15, "test": 0.15} | dict(split or {}))
        must(self.split.kind == "time", "data.split.kind", "time with data=series", self.split.kind)
        self.reading: dict[str, Any] = {"delimiter": delimiter, "encoding": encoding}

    def load(self) -> Data:
        """Read, order, split by time, fit on the training rows, and cut the windows of three splits."""
        file = File(self.path, **self.reading)
        self._check_roles(file)
        frame = file.read(text={self.time} | ({self.cut.entity} if self.cut.entity else set()))
        place = Place(file.name)
        clock = Clock.of(frame[self.time], place)
        ordered = order(frame, place, clock, self.cut)
        parts = self._parts(ordered.times, file.name)
        first = parts == 0
        clock = clock.paced(ordered.times[first], ordered.entities[first])
        if self.cut.gaps == "refuse":
            check_gaps(ordered, clock, place, frame[self.time])
        positions = np.sort(ordered.rows[first])
        train = frame.iloc[positions].reset_index(drop=True)
        kinds = self._kinds(train, Place(file.name, positions))
        preparation, said = self._fit(train, Place(file.name, positions), clock, kinds)
        rows = preparation.splits(frame, place, ordered, parts)
        said += preparation.unseen(ordered.entities, ordered.entities[first])
        content = {"source": file.name, "content_hash": file.sha256(), "rows": len(frame)}
        if self.cut.entity:
            content["entities"] = len(np.unique(ordered.entities))
        columns = [statistics(train[column.name], column) for column in kinds]
        description = {**content, **preparation.described(), "columns": columns}
        description["splits"] = {name: len(split["row"]) for name, split in rows.items()}
        return Data(**rows, preparation=preparation, description=description, warnings=said)

    def _check_roles(self, file: File) -> None:
        roles = {"time": [self.time], "target": self.targets, "columns": self.columns}
        roles["entity"] = [self.cut.entity] if self.cut.entity else []
        for role, found in roles.items():
            for name in found:
                if name not in file.columns:
                    hint = nearest_column(name, file.columns)
                    raise ConfigError(f"data.{role} must be a column of {file.name}, got {name}{hint}")
        aside = [self.time, *roles["entity"]]
        must(len(set(aside)) == len(aside), "data.entity", "another column than data.time", self.time)
        for role in ("target", "columns"):
            both = [name for name in roles[role] if name in aside]
            must(not both, f"data.{role}", "other columns than data.time and data.entity", ", ".join(both))

    def _parts(self, times: np.ndarray, source: str) -> np.ndarray:
        """(rows,) 0 of training, 1 of validation, 2 of the test: sizes are of the time stamps of all entities."""
        stamps = np.unique(times)
        n_valid, n_test = self.split.sizes(len(stamps), source, True, True)
        n_train = len(stamps) - n_valid - n_test
        starts = [stamps[n_train], *([stamps[n_train + n_valid]] if n_test else [])]
        return np.searchsorted(np.array(starts), times, side="right")

    def _kinds(self, train: pd.DataFrame, place: Place) -> list[Column]:
        """The columns that are looked at: those named, or all numbers and the targets."""
        if self.columns:
            return [Column(name, "number") for name in self.columns]
        found = []
        for name in train.columns:
            if name in self.targets or (
                name not in (self.time, self.cut.entity) and infer(train[name], place).kind == "number"
            ):
                found.append(Column(str(name), "number"))
        if not found:
            raise DataError(f"{place.source}: there is no column of numbers to look at")
        return found

    def _fit(
        self, train: pd.DataFrame, place: Place, clock: Clock, kinds: list[Column]
    ) -> tuple["SeriesPreparation", list[str]]:
        """Everything learnt from training rows alone, and what the pipeline warned of."""
        columns = [column.name for column in kinds]
        goal = Target("none", ())
        values = matrix(train, columns, place)
        truth = matrix(train, self.targets, place)
        if self.targets:
            one = fit_numbers(train, tuple(self.targets), place, self.transform)
            named = [f"{name}_+{k}" for k in range(1, self.cut.horizon + 1) for name in self.targets]
            times = self.cut.horizon
            goal = replace(one, names=tuple(named), mean=one.mean * times, scale=one.scale * times)
        steps = steps_of.build(self.pipeline, None)
        values, said = steps_of.fit(steps, values, truth[:, 0] if len(self.targets) == 1 else truth)
        shape = (values.shape[1], self.cut.length)
        return SeriesPreparation(clock, self.cut, columns, self.targets, steps, shape, goal, self.reading), said


class SeriesPreparation:
    """From rows in time to windows: features (rows, channels, length), targets (rows, horizon * targets).

    `read` and `windows` make a table of windows, a row each; `features` and `targets` take such a table.
    """

    gives = "features"  # what networks and tasks must read
    apart = False  # `read` gives windows that are scaled

    def __init__(
        self,
        clock: Clock,
        cut: Cut,
        columns: list[str],
        targets: list[str],
        steps: dict[str, Any],
        shape_in: tuple[int, ...],
        target: Target,
        reading: dict[str, Any] | None = None,
    ) -> None:
        self.clock, self.cut, self.columns, self.target_columns = clock, cut, columns, targets
        self.steps, self.shape_in, self.target, self.reading = steps, shape_in, target, reading or {}
        later = [f"{clock.name}_+{k}" for k in range(1, cut.horizon + 1)] if targets else []
        self.id_columns = [*([cut.entity] if cut.entity else []), clock.name, *later]

    def described(self) -> dict[str, Any]:
        """What data.json says of it."""
        return {
            "format": 1,
            "step": self.clock.frequency or self.clock.step,
            "shape_in": list(self.shape_in),
            "pipeline": {name: type(step).__name__ for name, step in self.steps.items()},
            "target": self.target.to_json(),
        }

    @property
    def horizon(self) -> int:
        """Rows after a window of which something is to be told."""
        return self.cut.horizon if self.target_columns else 0

    def features(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """float32 (rows, channels, length) of a table of windows."""
        return torch.from_numpy(cells(frame, WINDOW, self.shape_in, source).astype(np.float32))

    def targets(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """float32 (rows, horizon * targets), standardised, of a table of windows whose continuation is known."""
        values = cells(frame, AHEAD, (len(self.target.names),), source)
        return self._encode(values, source, first_row)

    def splits(self, frame: pd.DataFrame, place: Place, ordered: Ordered, parts: np.ndarray) -> dict[str, Rows]:
        """The windows of three splits; raises DataError where one is too short for any."""
        values, truth = self._values(frame, place, ordered)
        span, found = self.cut.length + self.horizon, {}
        for code, (name, word) in enumerate(PARTS.items()):
            mine = np.flatnonzero(parts == code)
            begin = starts(ordered.entities[mine], span, self.cut.stride)
            if not len(begin) and len(mine):
                stamps = len(np.unique(ordered.times[mine]))
                raise DataError(
                    f"{place.source}: the {word} part of {stamps} time stamps is too short for a window of"
                    f" {self.cut.length} and {self.horizon} ahead; set data.length, data.horizon or data.split"
                )
            begin = mine[begin] if len(mine) else mine
            rows = ordered.rows[begin + self.cut.length - 1]
            found[name] = {
                "features": torch.from_numpy(slices(values, begin, self.cut.length)),
                "target": self._encode(self._ahead(truth, begin), place.source, rows),
                "row": torch.from_numpy(rows.astype(np.int64)),
            }
        return found

    def unseen(self, entities: np.ndarray, train: np.ndarray) -> list[str]:
        """A sentence about entities that have no training window."""
        span = self.cut.length + self.horizon
        seen = {train[begin] for begin, end in runs(train) if end - begin >= span}
        rest, total = sorted(set(entities) - seen), len(set(entities))
        if not rest:
            return []
        shown = ", ".join(map(str, rest[:10])) + (", ..." if len(rest) > 10 else "")
        return [f"{len(rest)} of {total} entities ({self.cut.entity}) have no training window of {span} rows: {shown}"]

    def windows(self, frame: pd.DataFrame, source: str = "frame", known: bool = False) -> pd.DataFrame:
        """A table of the windows of some rows, to the last of each entity; of those whose continuation is `known`.

        Columns: the entity, the time from which it looks ahead, the times it looks ahead to, and the windows.
        """
        place = Place(source)
        for name in [self.clock.name, *([self.cut.entity] if self.cut.entity else []), *self.columns]:
            if name not in frame.columns:
                raise DataError(f"{source}: there is no column {name}{nearest_column(name, frame.columns)}")
        ordered = order(frame, place, self.clock, self.cut)
        if self.cut.gaps == "refuse":
            check_gaps(ordered, self.clock, place, frame[self.clock.name])
        self._check_lengths(ordered.entities, source, known)
        values, truth = self._values(frame, place, ordered, known)
        begin = starts(ordered.entities, self.cut.length + known * self.horizon, self.cut.stride, to_the_end=True)
        table = self._times(ordered, begin + self.cut.length - 1)
        table[WINDOW] = list(slices(values, begin, self.cut.length))
        if known:
            table[AHEAD] = list(self._ahead(truth, begin))
        return table

    def blank(self) -> pd.DataFrame:
        """One window of zeros, continued by ones."""
        window, ahead = np.zeros(self.shape_in, np.float32), np.ones(len(self.target.names))
        return pd.DataFrame(dict.fromkeys(self.id_columns, "") | {WINDOW: [window], AHEAD: [ahead]})

    def restored(self, features: Tensor) -> pd.DataFrame:
        """Rows as a file has them, from windows (n, channels, length): `window` and `step` say which they are."""
        values = features.double().numpy().swapaxes(1, 2).reshape(-1, self.shape_in[0])
        for name, step in reversed(self.steps.items()):
            values = steps_of.inverse(name, step, values)
        n, length = len(features), self.shape_in[1]
        found: dict[str, Any] = {"window": np.repeat(range(n), length), "step": np.tile(range(length), n)}
        return pd.DataFrame(found | dict(zip(self.columns, values.T, strict=True)))

    def read(self, path: str, rows: int = 65_536) -> Iterator[pd.DataFrame]:
        """The windows of a new file (`-` is standard input), so many at a time, for `features`."""
        yield from self._tables(path, rows, known=False)

    def labelled(self, path: str, rows: int = 65_536) -> Iterator[Rows]:
        """The windows of a new file whose continuation it holds; raises DataError if it holds none."""
        for table in self._tables(path, rows, known=True):
            yield {"features": self.features(table, path), "target": self.targets(table, path)}

    def _tables(self, path: str, rows: int, known: bool) -> Iterator[pd.DataFrame]:
        with closing(
            File(str(path), self.reading.get("delimiter"), self.reading.get("encoding", "utf-8"), setting="input")
        ) as file:
            if known:
                check_columns(self.target_columns, file.columns, file.name)
            frame = file.read(text={self.clock.name, *([self.cut.entity] if self.cut.entity else [])})
            table = self.windows(frame, file.name, known)
        for start in range(0, len(table), rows):
            yield table.iloc[start : start + rows]

    def _values(
        self, frame: pd.DataFrame, place: Place, ordered: Ordered, known: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """By time: float32 (rows, channels) of what is looked at, and float64 (rows, targets) of the targets."""
        values = matrix(frame, self.columns, place)
        for name, step in self.steps.items():
            values = steps_of.apply(name, step, values)
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        if not np.isfinite(single).all():
            row = place.row(int(np.argmax(~np.isfinite(single).all(axis=1))))
            raise DataError(f"{place.source} row {row}: expected features below 3.4e38, got larger ones")
        truth = matrix(frame, self.target_columns if known else [], place)
        return single[ordered.rows], truth[ordered.rows]

    def _ahead(self, truth: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """(rows, horizon * targets) of what follows windows, from (n, targets)."""
        if not self.horizon or not len(begin):
            return np.zeros((len(begin), len(self.target.names)))
        return slices(truth, begin + self.cut.length, self.horizon).swapaxes(1, 2).reshape(len(begin), -1)

    def _encode(self, values: np.ndarray, source: str, rows: int | np.ndarray) -> Tensor:
        named = pd.DataFrame(values, columns=list(self.target.names))
        return self.target.encode(named, source, rows)

    def _check_lengths(self, entities: np.ndarray, source: str, known: bool) -> None:
        """Raise DataError unless every entity can be continued, or, where that must be known, any."""
        sizes = np.array([end - begin for begin, end in runs(entities)])
        span = self.cut.length + known * self.horizon
        short = np.flatnonzero(sizes < span)
        if len(short) == len(sizes) or (len(short) and not known):
            begin = runs(entities)[short[0]][0]
            who = f", {self.cut.entity} {entities[begin]}" if self.cut.entity else ""
            after = f" and {self.horizon} ahead" if known else ""
            size = sizes[short[0]]
            raise DataError(f"{source}{who}: {size} rows are too few for a window of {self.cut.length}{after}")

    def _times(self, ordered: Ordered, last: np.ndarray) -> pd.DataFrame:
        """Entity, time, and the times ahead of windows that end at `last`; what is beyond the file goes by the step."""
        ends = np.concatenate([np.full(end - begin, end - 1) for begin, end in runs(ordered.entities)])[last]
        found: dict[str, Any] = {self.cut.entity: ordered.entities[last]} if self.cut.entity else {}
        found[self.clock.name] = self.clock.text(ordered.times[last])
        for k in range(1, self.horizon + 1):
            there = np.minimum(last + k, ends)
            times, beyond = ordered.times[there], last + k - there
            for steps in np.unique(beyond[beyond > 0]):
                times[beyond == steps] = self.clock.follow(times[beyond == steps], int(steps))
            found[f"{self.clock.name}_+{k}"] = self.clock.text(times)
        return pd.DataFrame(found)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the fitted pipeline into a folder; gives the rest as what JSON can hold."""
        (Path(folder) / FILE).write_bytes(steps_of.dumps({"steps": self.steps}))
        return {
            "_target_": "dltrain.data.series.SeriesPreparation",
            "format": 1,
            "clock": asdict(self.clock),
            "cut": asdict(self.cut),
            "columns": self.columns,
            "target_columns": self.target_columns,
            "steps": list(self.steps),
            "shape_in": list(self.shape_in),
            "target": self.target.to_json(),
            "reading": self.reading,
        }

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any]) -> "SeriesPreparation":
        """What `save` wrote; executes nothing of the folder's."""
        steps = steps_of.load(Path(folder) / FILE)["steps"]
        columns, targets = list(state["columns"]), list(state["target_columns"])
        if not all(isinstance(name, str) for name in [*columns, *targets, state["clock"]["name"]]):
            raise ValueError("a column must be named by text")
        return cls(
            Clock(**state["clock"]),
            Cut(**state["cut"]),
            columns,
            targets,
            {name: steps[name] for name in state["steps"]},
            tuple(state["shape_in"]),
            Target.from_json(state["target"]),
            dict(state["reading"]),
        )

    share, shared = save, load  # other processes of this machine are told all of it


def order(frame: pd.DataFrame, place: Place, clock: Clock, cut: Cut) -> Ordered:
    """Rows by entity and time; raises DataError at a missing time stamp or entity, and at one that is there twice."""
    times = clock.read(frame[clock.name], place)
    words = filled(frame[cut.entity]).astype(str) if cut.entity else np.full(len(frame), "")
    if cut.entity and (words == "").any():
        raise place.error(int(np.argmax(words == "")), cut.entity, "an entity", "")
    rows = np.lexsort((times, words))
    words, times = words[rows], times[rows]
    twice = np.flatnonzero((np.diff(times) == 0) & (words[1:] == words[:-1])) + 1
    if len(twice):
        again, before = rows[twice[0]], place.row(int(rows[twice[0] - 1]))
        whose = f" of {cut.entity} {words[twice[0]]}" if cut.entity else ""
        got = str(frame[clock.name].iloc[again])
        raise place.error(int(again), clock.name, f"another time stamp{whose} than row {before} has", got)
    return Ordered(rows, words, times)


def check_gaps(ordered: Ordered, clock: Clock, place: Place, series: pd.Series) -> None:
    """Raise DataError at the first time stamp that is not one step, give or take half of it, after the one before."""
    away = np.abs(ordered.times[1:] - clock.follow(ordered.times[:-1], 1)) > clock.step / 2
    wrong = np.flatnonzero(away & (ordered.entities[1:] == ordered.entities[:-1]))
    if not len(wrong):
        return
    here = int(ordered.rows[wrong[0] + 1])
    before = clock.text(ordered.times[wrong[:1]])[0]
    expected = clock.text(clock.follow(ordered.times[wrong[:1]], 1))[0]
    more = f"; so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
    error = place.error(here, clock.name, f"{expected} after {before}", str(series.iloc[here]))
    raise DataError(f"{error}{more} (fill the gap, or set data.gaps=allow to take rows as they follow each other)")


def runs(labels: np.ndarray) -> list[tuple[int, int]]:
    """Where each run of equal labels begins and ends."""
    edges = (np.flatnonzero(labels[1:] != labels[:-1]) + 1).tolist()
    return list(pairwise([0, *edges, len(labels)])) if len(labels) else []


def starts(entities: np.ndarray, span: int, stride: int, to_the_end: bool = False) -> np.ndarray:
    """Where windows of `span` rows begin, none over two entities; they count from the first row, or to the last."""
    found = [np.zeros(0, np.int64)]
    for begin, end in runs(entities):
        rest = max(0, end - begin - span) % stride if to_the_end else 0
        found.append(np.arange(begin + rest, end - span + 1, stride))
    return np.concatenate(found)


def slices(values: np.ndarray, begin: np.ndarray, length: int) -> np.ndarray:
    """(rows, channels, length) of (n, channels), from where each begins."""
    if not len(begin):
        return np.zeros((0, values.shape[1], length), values.dtype)
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(values, length, axis=0)[begin])


def matrix(frame: pd.DataFrame, columns: Sequence[str], place: Place) -> np.ndarray:
    """float64 (rows, columns); raises DataError at a missing cell."""
    return np.stack([present(frame[name], place) for name in columns], axis=1) if columns else np.zeros((len(frame), 0))


def cells(frame: pd.DataFrame, column: str, shape: tuple[int, ...], source: str) -> np.ndarray:
    """(rows, *shape) of a table of windows."""
    if column not in frame.columns:
        raise DataError(f"{source}: expected a table of windows, as preparation.windows(frame) makes of rows")
    return np.stack(list(frame[column])) if len(frame) else np.zeros((0, *shape))

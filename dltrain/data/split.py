"""Which rows are for training, which for validation, which for the test: a function of row positions and a seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dltrain.errors import ConfigError, DataError, must, nearest, whole

KINDS = ("auto", "random", "stratified", "time", "group")


@dataclass(frozen=True)
class Split:
    """Sizes are fractions of the rows below 1, or counts; what is in neither is for training.

    `by` names the column of the time or of the group. With `folds`, all rows but those of the test are cut into so many
    parts, of which number `fold`, from 0, is for validation.
    """

    kind: str = "auto"
    valid: float = 0.15
    test: float = 0.15
    by: str | None = None
    seed: int = 0
    folds: int | None = None
    fold: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"data.split.kind must be one of {', '.join(KINDS)}, got {self.kind}{nearest(str(self.kind), KINDS)}"
            )
        for name in ("valid", "test"):
            size = getattr(self, name)
            number = isinstance(size, int | float) and not isinstance(size, bool)
            if not number or not (0 <= size < 1 or (size >= 1 and float(size).is_integer())):
                raise ConfigError(
                    f"data.split.{name} must be a fraction of the rows below 1 or a count of rows, got {size}"
                )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"data.split.seed must be a whole number of at least 0, got {self.seed}")
        must(not isinstance(self.by, list | tuple), "data.split.by", "one column", self.by)
        if self.kind == "group" and self.by is None:
            raise ConfigError("data.split.by must be the column of the groups for data.split.kind=group, got null")
        if self.by is not None and self.kind not in ("time", "group"):
            raise ConfigError(
                f"data.split.by must go with data.split.kind=time or group, got data.split.kind={self.kind}"
            )
        self._check_folds()

    def _check_folds(self) -> None:
        if self.folds is None:
            must(self.fold is None, "data.split.fold", "null without data.split.folds", self.fold)
            return
        must(whole(self.folds, 2), "data.split.folds", "a whole number of at least 2, or null", self.folds)
        right = whole(self.fold) and self.fold in range(self.folds)
        must(right, "data.split.fold", f"a whole number from 0 to {self.folds - 1}", self.fold)
        must(self.kind != "time", "data.split.folds", "null where rows are split by time", self.folds)

    def sizes(self, rows: int, source: str, valid: bool, test: bool) -> tuple[int, int]:
        """How many rows are for validation and for the test, of those asked for; at least one each, if not 0."""
        must(valid or self.folds is None, "data.split.folds", "null where validation has its own file", self.folds)
        found = []
        for name, asked in (("valid", valid), ("test", test)):
            size = getattr(self, name) if asked else 0
            count = int(size) if size >= 1 else max(1, round(size * rows)) if size > 0 else 0
            found.append(count)
        if self.folds:
            found[0] = -(-(rows - found[1]) // self.folds)
        if valid and not found[0]:
            raise ConfigError("data.split.valid must leave at least one row for validation, got 0")
        if rows - sum(found) < 2:
            raise DataError(
                f"{source}: {rows} rows are fewer than the split needs"
                f" ({found[0]} for validation, {found[1]} for the test, at least 2 for training)"
            )
        return found[0], found[1]


def assign(
    split: Split,
    n: int,
    source: str,
    by: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    *,
    valid: bool,
    test: bool,
) -> dict[str, np.ndarray]:
    """Positions in [0, n), sorted, of `train`, `valid` and `test`.

    by: (n,) times that sort, or the group of each row. classes: (n,) codes to stratify by.
    Raises DataError when a group or a class cannot be on the sides it must be on.
    """
    n_valid, n_test = split.sizes(n, source, valid, test)
    shuffled = np.random.default_rng(split.seed).permutation(n)
    if split.kind == "group" and by is not None:
        found = assign_groups(by, shuffled, 0 if split.folds else n_valid, n_test, source, str(split.by))
        return folded_groups(by, shuffled, found, split, source) if split.folds else found
    if split.kind == "time":
        order = np.arange(n)[::-1] if by is None else np.argsort(by, kind="stable")[::-1]
    elif classes is not None:
        order = stratified(classes, shuffled)
    else:
        order = shuffled
    start, end = n_test, n_test + n_valid
    if split.folds and split.fold is not None:  # a stretch of the order is as good as any other
        start, end = (n_test + (n - n_test) * k // split.folds for k in (split.fold, split.fold + 1))
    return {
        "train": np.sort(np.concatenate([order[n_test:start], order[end:]])),
        "valid": np.sort(order[start:end]),
        "test": np.sort(order[:n_test]),
    }


def stratified(classes: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """Rows in an order of which every stretch has each class in its proportion.

    The k-th of m rows of a class stands at (k + 1/2) / m of the way; equals stand as they were shuffled.
    """
    place = np.empty(len(classes))
    for code in np.unique(classes):
        rows = shuffled[classes[shuffled] == code]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def assign_groups(
    by: np.ndarray, shuffled: np.ndarray, n_valid: int, n_test: int, source: str, name: str
) -> dict[str, np.ndarray]:
    """Whole groups, in a shuffled order, to the test rows, then to validation, until each has its size."""
    codes, counts = np.unique(by, return_inverse=True, return_counts=True)[1:]
    needed = 1 + (n_valid > 0) + (n_test > 0)
    if len(counts) < needed:
        raise DataError(f"{source}, column {name}: {len(counts)} groups cannot be split in {needed}")
    order = list(dict.fromkeys(codes[shuffled].tolist()))
    side = np.zeros(len(counts), np.int64)  # 0 training, 1 validation, 2 test
    later = 1 + (n_valid > 0)  # groups to keep for the sides still to come
    for code, size in ((2, n_test), (1, n_valid)):
        taken = 0
        while size and len(order) > later - (code == 1) and (taken == 0 or taken + counts[order[0]] / 2 < size):
            group = order.pop(0)
            side[group] = code
            taken += int(counts[group])
    sides = side[codes]
    return {word: np.flatnonzero(sides == code) for code, word in enumerate(("train", "valid", "test"))}


def folded_groups(
    by: np.ndarray, shuffled: np.ndarray, found: dict[str, np.ndarray], split: Split, source: str
) -> dict[str, np.ndarray]:
    """The rows of no test, cut into folds of whole groups: the largest first, each to the fold with the fewest rows."""
    names, codes, counts = np.unique(by[found["train"]], return_inverse=True, return_counts=True)
    folds = split.folds or 1
    if len(names) < folds:
        raise DataError(f"{source}, column {split.by}: {len(names)} groups cannot be cut into {folds} folds")
    first = {name: place for place, name in reversed([*enumerate(by[shuffled].tolist())])}
    sizes, fold_of = np.zeros(folds, np.int64), np.zeros(len(names), np.int64)
    for group in sorted(range(len(names)), key=lambda one: (-counts[one], first[names[one]])):
        fold_of[group] = sizes.argmin()
        sizes[fold_of[group]] += counts[group]
    valid = fold_of[codes] == split.fold
    return {"train": found["train"][~valid], "valid": found["train"][valid], "test": found["test"]}


def check(found: dict[str, np.ndarray], classes: np.ndarray, names: tuple[str, ...], source: str, column: str) -> None:
    """Every class must be among the training rows; raises DataError."""
    for code in np.unique(classes):
        if np.sum(classes == code) == 1:
            raise DataError(
                f"{source}, column {column}: class {names[code]} has one row, which cannot be on both sides"
                " of a stratified split;"
                " leave it out or set data.split.kind=random"
            )
        if not np.any(classes[found["train"]] == code):
            raise DataError(f"{source}, column {column}: no row of class {names[code]} is left for training")


def from_config(split: Mapping[str, Any] | Split | None) -> Split:
    """The split of a config's mapping; raises ConfigError."""
    if isinstance(split, Split):
        return split
    known = Split.__dataclass_fields__
    for key in split or {}:
        if key not in known:
            raise ConfigError(f"data.split.{key} is not a setting{nearest(str(key), known)}")
    return Split(**(split or {}))

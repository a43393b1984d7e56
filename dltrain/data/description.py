"""What there is to say about the rows: the content of data.json, and one sentence for each thing to beware of."""

from dataclasses import asdict
from math import prod
from typing import Any

import numpy as np
import pandas as pd

from dltrain.data.columns import FEATURES, Column, Place, absent, numbers, text
from dltrain.data.preparation import Preparation
from dltrain.data.rows import Rows
from dltrain.data.target import Target, labels

TOP = 10  # of a category's levels
SAME = 0.9999  # correlation from which two columns are one
RARE = 20  # times that the largest class outnumbers the rarest


def describe(
    train: pd.DataFrame, kinds: list[Column], preparation: Preparation, splits: dict[str, Rows], content: dict[str, Any]
) -> dict[str, Any]:
    """What data.json holds: statistics are of the training rows; numbers are finite."""
    split = asdict(content.pop("split"))
    sizes = {name: len(rows["row"]) for name, rows in splits.items()}
    return {
        "format": 1,
        **content,
        "splits": sizes,
        "split": split,
        "columns": [statistics(train[column.name], column) for column in kinds],
        "left_out": {column.name: column.kind for column in kinds if column.kind not in FEATURES},
        "shape_in": list(preparation.shape_in),
        "pipeline": {name: type(step).__name__ for name, step in preparation.steps.items()},
        "target": preparation.target.to_json(),
    } | _components(preparation.steps)


def _components(steps: dict[str, Any]) -> dict[str, Any]:
    """The share of the variance that each component of a PCA tells, if a step has such shares."""
    shares = [step.explained_variance_ratio_ for step in steps.values() if hasattr(step, "explained_variance_ratio_")]
    return {"components": np.nan_to_num(shares[0]).tolist()} if shares else {}


def statistics(series: pd.Series, column: Column) -> dict[str, Any]:
    """Kind, missing, unique; moments of numbers and dates, the commonest levels of categories."""
    words = text(series) if column.kind not in ("number", "date") else None
    missing = int(np.sum(absent(words))) if words is not None else int(series.isna().sum())
    found: dict[str, Any] = {"name": column.name, "kind": column.kind, "missing": missing}
    if words is None:
        values = column.values(series, Place(""))
        known = values[~np.isnan(values)]
        found["unique"] = len(np.unique(known))
        if len(known):
            with np.errstate(over="ignore"):
                moments = {name: float(getattr(np, name)(known)) for name in ("mean", "std", "min", "median", "max")}
            found |= {name: value for name, value in moments.items() if np.isfinite(value)}
        if column.kind == "date":
            for name in {"min", "median", "max"} & set(found):
                moment = np.datetime64(round(found[name] * 86_400), "s")  # of any year
                found[name] = str(moment).replace("T", " ")
            found.pop("mean", None)
            found["form"] = column.form
        return found
    counts = pd.Series(words, dtype=object).value_counts(sort=True)
    found["unique"] = len(counts)
    if column.kind in ("category", "yes/no", "constant"):
        found["levels"] = {str(level): int(count) for level, count in counts.head(TOP).items()}
    return found


def warn(splits: dict[str, Rows], goal: Target, train: pd.DataFrame, kinds: list[Column]) -> list[str]:
    """One sentence each: rows on both sides of the split, a column that all but equals the target, a rare class."""
    return [*duplicates(splits), *leaks(goal, train, kinds), *imbalance(goal)]


def duplicates(splits: dict[str, Rows]) -> list[str]:
    """Rows of validation and test whose features and target stand among the training rows."""
    known = hashes(splits["train"])
    copies = {}
    for name, word in (("valid", "validation"), ("test", "test")):
        rows = hashes(splits[name])
        count = int(np.isin(rows, known).sum())
        if count:
            copies[f"{count} of {len(rows)} {word} rows"] = count
    verb = "is a copy of a training row" if sum(copies.values()) == 1 else "are copies of training rows"
    return [f"{' and '.join(copies)} {verb} (same features, same target)"] if copies else []


def hashes(rows: Rows) -> np.ndarray:
    """(rows,) uint64, equal for equal features and target."""
    generator = np.random.default_rng(0)
    total = np.zeros(len(rows["row"]), np.uint64)
    for name in ("features", "target"):
        values = rows[name]
        cells = values.reshape(len(total), prod(values.shape[1:])).numpy() + 0  # -0.0 is 0.0
        bits = cells.view(np.uint32 if cells.dtype == np.float32 else np.uint64)
        for column in bits.T:
            mixed = column.astype(np.uint64) * generator.integers(2**63, 2**64, dtype=np.uint64)
            total += mixed ^ (mixed >> np.uint64(29))
    return total


def leaks(goal: Target, train: pd.DataFrame, kinds: list[Column]) -> list[str]:
    """Columns from which the target can be read off."""
    said = []
    place = Place("")
    for name in goal.names if goal.kind != "multilabel" else ():
        numeric = goal.kind == "number"
        truth = numbers(train[name], place) if numeric else labels(train[name], place)
        for column in kinds:
            if column.kind not in FEATURES or column.kind == "text":
                continue
            if numeric:
                same = column.kind in ("number", "date")
                same = same and correlation(column.values(train[column.name], place), truth) > SAME
            else:
                same = one_to_one(text(train[column.name]), truth)
            if same:
                said.append(
                    f"column {column.name} all but equals the target {name};"
                    f" if it is not known beforehand, set data.ignore=[{column.name}]"
                )
    return said


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Of two columns, over rows that have both, in absolute value."""
    both = ~np.isnan(x) & ~np.isnan(y)
    if both.sum() <= 2:
        return 0.0
    x, y = x[both] - x[both].mean(), y[both] - y[both].mean()
    x, y = x / max(np.abs(x).max(), 1e-300), y / max(np.abs(y).max(), 1e-300)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return abs(float(x @ y)) / scale if scale > 0 else 0.0


def one_to_one(words: np.ndarray, classes: np.ndarray) -> bool:
    """True if each word goes with one class and each class with one word, but for one row in a thousand."""
    if len(set(words.tolist())) != len(set(classes.tolist())):
        return False
    table = pd.crosstab(pd.Series(words, dtype=object).fillna(""), pd.Series(classes, dtype=object))
    best = table.to_numpy().argmax(axis=1)
    agree = int(table.to_numpy().max(axis=1).sum())
    return len(set(best.tolist())) == len(best) and agree >= 0.999 * len(words)


def imbalance(goal: Target) -> list[str]:
    """The rarest class, if the largest is many times as large."""
    if goal.kind not in ("binary", "classes") or max(goal.counts) < RARE * min(goal.counts):
        return []
    rare, large = int(np.argmin(goal.counts)), int(np.argmax(goal.counts))
    return [
        f"classes of {goal.names[0]} are far from balanced: {goal.counts[rare]} training rows of {goal.classes[rare]},"
        f" {goal.counts[large]} of {goal.classes[large]}; look at more than accuracy"
    ]

"""The content of data.json in words; keys that are absent are passed over."""

from collections.abc import Iterable
from typing import Any

from dltrain.report.text import shown

FEW = 4  # words of a list that are shown


def many(kinds: Iterable[str]) -> str:
    """Count words: `3 numbers, 1 category`."""
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    plural = {"category": "categories", "yes/no": "yes/no", "text": "text", "ignored": "ignored"}
    return ", ".join(f"{n:,} {kind if n == 1 else plural.get(kind, kind + 's')}" for kind, n in counts.items())


def source(description: dict[str, Any]) -> str:
    """Where the rows come from, and how many there are."""
    sizes = [f"{description['rows']:,} rows"] if description.get("rows") is not None else []
    if description.get("columns"):
        sizes.append(many(["column"] * len(description["columns"])))
    return f"{shown(description.get('source') or 'data')}: {', '.join(sizes)}"


def kind(column: dict[str, Any]) -> str:
    """What a column is to the network: its kind, or its role if it is no feature."""
    role = column.get("role") or "feature"
    return str(column.get("kind", "") if role == "feature" else role)


def values(column: dict[str, Any]) -> str:
    """What the training rows hold in a column: its range, mean and spread, or its commonest words."""
    found = column | (column.get("statistics") or {})
    words = [f"{found['missing']:,} missing"] if found.get("missing") else []
    if "min" in found and "max" in found:
        words.append(f"{_value(found['min'])} to {_value(found['max'])}")
    words += [f"{name} {_value(found[name])}" for name in ("mean", "std") if name in found]
    if levels := found.get("levels"):
        first = [f"{level}: {_value(n)}" for level, n in levels.items()]
        words.append(_list(first, found.get("unique", len(levels))))
    elif "min" not in found and found.get("unique"):
        words.append("1 value" if found["unique"] == 1 else f"{found['unique']:,} values")
    return ", ".join(words)


def _list(words: list[str], total: int) -> str:
    """The first few of so many words."""
    return ", ".join(words[:FEW]) + (f", ... {total:,} in all" if total > FEW else "")


def _value(value: Any) -> str:
    """A number with four digits that count, or text as it is."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def target_line(target: dict[str, Any]) -> str:
    """The target in one line: its columns, kind, and training rows of each class."""
    if not target or target.get("kind") == "none":
        return ""
    names = [shown(name) for name in target.get("names", ())]
    kind, counts = target.get("kind", ""), list(target.get("counts") or ())
    classes = list(target.get("classes") or (names if kind == "multilabel" else ()))
    text = f"target {_list(names, len(names))}: {f'{len(classes)} classes' if kind == 'classes' else kind}"
    if len(counts) == len(classes) and classes:
        each = [f"{shown(name)}: {n:,}" for name, n in zip(classes, counts, strict=True)]
        text += f" ({_list(each, len(each))})"
    return text


def splits_line(description: dict[str, Any]) -> str:
    """The sizes of the splits in one line."""
    splits = description.get("splits") or {}
    text = ", ".join(f"{n:,} {name}" for name, n in splits.items())
    dropped = description.get("dropped_rows", description.get("dropped"))
    return f"rows {text}" + (f" ({dropped:,} without a target left out)" if dropped else "") if text else ""

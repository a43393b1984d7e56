"""Settings of a network: each check raises ConfigError with one sentence."""

from collections.abc import Iterable
from typing import Any

from dltrain.errors import ConfigError, must, nearest, real, show, whole


def check(right: bool, setting: str, requirement: str, value: Any) -> None:
    """Raise `model.<setting> must be <requirement>, got <value>` unless right."""
    must(right, f"model.{setting}", requirement, value)


def count(setting: str, value: Any, least: int = 1) -> int:
    """The value, a whole number of at least `least`."""
    check(whole(value, least), setting, f"a whole number of at least {least}", value)
    return value


def sizes(setting: str, values: Any, fewest: int = 0) -> list[int]:
    """The values, a list of at least `fewest` whole numbers of at least 1."""
    right = isinstance(values, list | tuple) and len(values) >= fewest and all(whole(v, 1) for v in values)
    check(right, setting, "a list of whole numbers of at least 1, such as [64, 64]", values)
    return list(values)


def dropout_rate(value: Any) -> float:
    """The value, in [0, 1)."""
    check(real(value) and 0 <= value < 1, "dropout", "in [0, 1)", value)
    return float(value)


def flag(setting: str, value: Any) -> bool:
    """The value, true or false."""
    check(isinstance(value, bool), setting, "true or false", value)
    return value


def one_of(setting: str, value: Any, choices: Iterable[str]) -> str:
    """The value, one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ConfigError(
            f"model.{setting} must be one of {', '.join(choices)}, got {show(value)}{nearest(str(value), choices)}"
        )
    return value

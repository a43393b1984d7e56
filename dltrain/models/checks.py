"""Settings of a network: each check raises ConfigError with one sentence."""

from collections.abc import Iterable
from typing import Any

from dltrain.errors import ConfigError, nearest


def check(right: bool, setting: str, must: str, value: Any) -> None:
    """Raise `model.<setting> must be <must>, got <value>` unless right."""
    if not right:
        raise ConfigError(f"model.{setting} must be {must}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value as it is typed in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else "''"


def is_whole(value: Any, least: int = 1) -> bool:
    """True of an int of at least `least`; a bool is no number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def whole(setting: str, value: Any, least: int = 1) -> int:
    """The value, a whole number of at least `least`."""
    check(is_whole(value, least), setting, f"a whole number of at least {least}", value)
    return value


def sizes(setting: str, values: Any, fewest: int = 0) -> list[int]:
    """The values, a list of at least `fewest` whole numbers of at least 1."""
    right = isinstance(values, list | tuple) and len(values) >= fewest and all(is_whole(v) for v in values)
    check(right, setting, "a list of whole numbers of at least 1, such as [64, 64]", values)
    return list(values)


def dropout_rate(value: Any) -> float:
    """The value, in [0, 1)."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    check(right, "dropout", "in [0, 1)", value)
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
            f"model.{setting} must be one of {', '.join(choices)}, got {shown(value)}{nearest(str(value), choices)}"
        )
    return value

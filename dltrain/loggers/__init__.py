"""Who is told how training goes; one destination a file."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dltrain.errors import UserError

Record = dict[str, Any]  # step, epoch, time, lr, train/loss, valid/loss, valid/<metric>, rows_per_second


class Logger:
    """A destination of records, one an evaluation."""

    required = False  # whether training ends when it fails

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Open it in the run's folder, without what an interrupted training wrote there after `step`."""

    def log(self, record: Record) -> None:
        """Take the record of one evaluation."""

    def sync(self) -> None:
        """Put what was taken where a crash does not reach it, before a checkpoint relies on it."""

    def finish(self, result: dict[str, Any]) -> None:
        """Take the content of result.json, and close."""


class Loggers(Logger):
    """Several loggers as one; one that fails is named in a warning and left out, unless it is required."""

    def __init__(self, loggers: Iterable[Logger], warn: Callable[[str], None]) -> None:
        self.loggers = list(loggers)
        self.warn = warn

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        self._each("start", folder, config, step)

    def log(self, record: Record) -> None:
        self._each("log", record)

    def sync(self) -> None:
        self._each("sync")

    def finish(self, result: dict[str, Any]) -> None:
        self._each("finish", result)

    def _each(self, verb: str, *given: Any) -> None:
        for logger in list(self.loggers):
            try:
                getattr(logger, verb)(*given)
            except UserError:
                raise
            except Exception as error:
                if logger.required:
                    raise
                self.loggers.remove(logger)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self.warn(f"logger {type(logger).__name__} failed and is left out from here on ({reason})")


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """What is a finite number among the values, but for the step."""
    return {name: value for name, value in values.items() if name != "step" and _number(value)}


def final(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of result.json as `final/test/accuracy`."""
    splits = {split: numbers(result.get(split) or {}) for split in ("valid", "test")}
    return {f"final/{split}/{name}": float(value) for split in splits for name, value in splits[split].items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""What a sweep goes through, in Hydra's own grammar: every combination of values, or distributions to draw from."""

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from dltrain.compose import ends, listed
from dltrain.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Params = dict[str, str]  # of one trial: what is swept over, and the value as it is typed


@dataclass(frozen=True)
class Job:
    """A trial that is to run."""

    number: int  # from 1
    params: Params
    words: tuple[str, ...]  # all that Hydra is given


class Space:
    """The words of a sweep: some have one value, others are swept over."""

    def __init__(self, overrides: Iterable[Override]) -> None:
        self.words = {override.get_key_element(): override for override in overrides}  # of two, the later one counts
        self.swept = {key: override for key, override in self.words.items() if override.is_sweep_override()}

    @property
    def typed(self) -> Params:
        """What is swept over, as it was typed."""
        return {key: str(override.input_line).partition("=")[2] for key, override in self.swept.items()}

    def job(self, number: int, params: Params) -> Job:
        """A trial with these values."""
        words = (f"{key}={params[key]}" if key in params else str(word.input_line) for key, word in self.words.items())
        return Job(number, params, tuple(words))

    def jobs(self) -> Iterator[Job]:
        """Every combination of values as a trial."""
        return (self.job(number, params) for number, params in enumerate(self.every(), 1))

    def every(self) -> list[Params]:
        """Every combination of values; raises ConfigError if something has no list of them."""
        for word in self.swept.values():
            if not word.is_discrete_sweep():
                raise ConfigError(
                    f"{word.input_line} must be a list or a range with sweep=grid; sweep=random and sweep=tpe take it"
                )
        with _same_order():
            lists = [listed(word) for word in self.swept.values()]
        return [dict(zip(self.swept, values, strict=True)) for values in itertools.product(*lists)]

    def distributions(self, config: Mapping[str, Any]) -> dict[str, "BaseDistribution"]:
        """What each is drawn from; `config` has the values that stand where nothing is swept over."""
        with _same_order():
            return {key: _distribution(word, _at(config, key)) for key, word in self.swept.items()}


@contextlib.contextmanager
def _same_order() -> Iterator[None]:
    """Of shuffle(...), when the sweep is started again."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def text(value: Any) -> str:
    """A drawn value as it is typed."""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _at(config: Any, key: str) -> Any:
    """The value of a setting; None if there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _distribution(word: Override, default: Any) -> "BaseDistribution":
    """Of an interval, a range or a list; raises ConfigError for one that nothing can be drawn from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep, typed = word.value(), word.input_line
    log = "log" in getattr(sweep, "tags", ())
    values: Any = ends(word) if isinstance(sweep, IntervalSweep) else listed(word)
    if not isinstance(sweep, IntervalSweep | RangeSweep):
        if log:
            raise ConfigError(f"{typed} must be an interval to have a log scale, got a list")
        return CategoricalDistribution(list(dict.fromkeys(values)))
    if isinstance(sweep, RangeSweep):
        values = sorted(cast(Any, word.sweep_iterator()))
    low, high = values[0], values[-1]
    if log and low <= 0:
        raise ConfigError(f"{typed} must be above 0 to have a log scale, got {low:g}")
    whole = all(isinstance(value, int) for value in values)
    if isinstance(sweep, IntervalSweep):
        if whole or (isinstance(default, int) and low == int(low) and high == int(high)):  # to Hydra all ends are real
            return IntDistribution(int(low), int(high), log=log)
        return FloatDistribution(float(low), float(high), log=log)
    step: Any = abs(cast(Any, sweep.step))
    if log and step != 1:
        raise ConfigError(f"{typed} must have steps of 1 to have a log scale, got {step}")
    return (
        IntDistribution(low, high, log=log, step=int(step)) if whole else FloatDistribution(low, high, step=float(step))
    )

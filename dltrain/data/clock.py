"""Time stamps of a series: how they are written, and what comes a step after each."""

import re
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dltrain.data.columns import ISO, Place, absent, date_form, days, has_hours, numbers, parsed, text

COMPACT, COMPACT_LIKE = "%Y%m%d", re.compile(r"(19|20)\d\d[01]\d[0-3]\d")


@dataclass(frozen=True)
class Clock:
    """A column of time stamps, read as days since 1970, or as they are where they are numbers (`form` is '').

    step: the median difference; frequency: what pandas calls a regular one, as ME (ends of months) or B (weekdays).
    """

    name: str
    form: str = ""
    hours: bool = False
    step: float = 1.0
    frequency: str | None = None

    @classmethod
    def of(cls, series: pd.Series, place: Place) -> "Clock":
        """How a column of stamps is written; raises DataError at a stamp that is written in another way."""
        name, words = str(series.name), text(series)
        known = words[~absent(words)]
        if len(known) and all(COMPACT_LIKE.fullmatch(word) for word in known):
            return cls(name, COMPACT)
        if len(known) and np.isnan(parsed(known)).mean() < 0.5:
            return cls(name)
        form = date_form(words, 0.5) or ISO
        return cls(name, form, has_hours(days(series, form, place)))

    def read(self, series: pd.Series, place: Place) -> np.ndarray:
        """(rows,) float64; raises DataError at a cell that is missing or no time stamp."""
        times = days(series, self.form, place) if self.form else numbers(series, place)
        if np.isnan(times).any():
            raise place.error(int(np.argmax(np.isnan(times))), self.name, "a time stamp", "")
        return times

    def paced(self, times: np.ndarray, entities: np.ndarray) -> "Clock":
        """With the step of stamps (rows,) that are sorted within each entity."""
        same = entities[1:] == entities[:-1]
        steps = np.diff(times)[same]
        if not len(steps):
            return self
        step = float(np.median(steps))
        if not self.form:
            return replace(self, step=step)
        labels, counts = np.unique(entities, return_counts=True)
        longest = self._dates(times[entities == labels[np.argmax(counts)]])
        frequency = regular(longest)
        if frequency is None and step == 1 and bool((longest.day_of_week < 5).all()) and len(longest) > 5:
            frequency = "B"  # weekdays, some of which are missing
        return replace(self, step=step, frequency=frequency)

    def follow(self, times: np.ndarray, steps: int) -> np.ndarray:
        """(rows,) of so many steps later."""
        if self.frequency is None:
            return times + steps * self.step
        offset = pd.tseries.frequencies.to_offset(self.frequency)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            later = self._dates(times) + steps * offset
        return later.astype("datetime64[us]").to_numpy().astype(np.int64) / 86_400e6

    def text(self, times: np.ndarray) -> np.ndarray:
        """(rows,) as they are written: numbers, or words."""
        if not self.form:
            return times.astype(np.int64) if bool(np.all(times == np.floor(times))) else times
        form = ("%Y-%m-%d %H:%M:%S" if self.hours else "%Y-%m-%d") if self.form == ISO else self.form
        return np.asarray(self._dates(times).round("s").strftime(form), object)

    def _dates(self, times: np.ndarray) -> pd.DatetimeIndex:
        return pd.DatetimeIndex((times * 86_400e6).round().astype(np.int64).astype("datetime64[us]"))


def regular(dates: pd.DatetimeIndex) -> str | None:
    """What pandas calls the frequency of sorted dates, if they have one."""
    if len(dates) < 3:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas 4 gives an offset
        found = pd.infer_freq(dates)
    return getattr(found, "freqstr", found)

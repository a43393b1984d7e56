"""Kinds of columns: inferred from training rows, and the values of their cells as numbers or text.

A cell that cannot be what its column is raises DataError with file, row (from 1, the header excluded) and column.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from dltrain.data.files import MISSING
from dltrain.errors import ConfigError, DataError, nearest

KINDS = ("number", "category", "yes/no", "date", "text", "constant", "identifier")
FEATURES = ("number", "category", "yes/no", "date", "text")  # the others are left out
WORDS = {"yes": 1.0, "no": 0.0, "y": 1.0, "n": 0.0, "true": 1.0, "false": 0.0, "t": 1.0, "f": 0.0, "1": 1.0, "0": 0.0}
PAIRS = ({"yes", "no"}, {"y", "n"}, {"true", "false"}, {"t", "f"})
YEARS = 100_000.0  # days on both sides of 1970 that dates of pandas can tell
ISO = "ISO8601"
ISO_LIKE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ].*)?")
# Where both fit, a slash is read month first and a dot or a dash day first.
DAYS = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y")
MONTHS = ("%d %b %Y", "%d-%b-%Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%Y.%m.%d")
HOURS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
BAD_SHARE = 0.05  # a column of which at most this share is no number is a column of numbers with mistakes in it
ID_NAME = re.compile(r"(?i:(^|[\W_])(id|uuid|guid|rownames?|unnamed: \d+))$|[a-z](Id|ID)$|^(?i:index)$")
CONSECUTIVE = re.compile(r"(?i)unnamed: \d+|rownames?|row|index|nr|no|num(ber)?|#|n")


@dataclass(frozen=True)
class Place:
    """Where rows stand: their file, and the number from 0 of each (or of the first) in it."""

    source: str
    rows: np.ndarray | int = 0

    def row(self, position: int) -> int:
        """The number from 1 of the row at a position."""
        return 1 + int(self.rows + position if isinstance(self.rows, int) else self.rows[position])

    def error(self, position: int, column: str, expected: str, got: Any) -> DataError:
        """The sentence about one cell."""
        return DataError(f"{self.source} row {self.row(position)}, column {column}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class Column:
    """A column and what it holds; `form` is how a date is written, `hours` whether it has a time of day."""

    name: str
    kind: str
    form: str = ""
    hours: bool = False

    def values(self, series: pd.Series, place: Place) -> np.ndarray:
        """(rows,): float64 with NaN where missing (a date in days since 1970), or text with '' where missing."""
        match self.kind:
            case "number":
                return numbers(series, place)
            case "yes/no":
                return truths(series)
            case "date":
                return days(series, self.form, place)
            case _:
                return filled(series)

    def cells(self, values: np.ndarray) -> np.ndarray:
        """(rows,) as they are written, from what `values` gives."""
        match self.kind:
            case "yes/no":
                return np.where(values > 0.5, "yes", "no")
            case "date":
                dates = pd.to_datetime(values.clip(-YEARS, YEARS), unit="D").floor("s" if self.hours else "D")
                return np.asarray(dates.strftime("%Y-%m-%d %H:%M:%S" if self.hours else "%Y-%m-%d"), object)
            case _:
                return values

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def text(series: pd.Series) -> np.ndarray:
    """(rows,) of stripped text, None where missing; 3.0 and 3 are the same text."""
    if pd.api.types.is_float_dtype(series.dtype):
        return np.array([None if np.isnan(v) else number_text(v) for v in series.to_numpy(np.float64)], object)
    cells = series.astype(object).to_numpy()
    missing = pd.isna(series).to_numpy()
    found = np.empty(len(cells), object)
    for position, cell in enumerate(cells):
        if not missing[position]:
            word = cell.strip() if isinstance(cell, str) else number_text(cell)
            found[position] = None if word in MISSING else word
    return found


def absent(words: np.ndarray) -> np.ndarray:
    """(rows,) True where text is missing."""
    return np.asarray(pd.isna(words), bool)


def number_text(value: Any) -> str:
    """Text of a number as people write it: 3 for 3.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def filled(series: pd.Series) -> np.ndarray:
    """(rows,) of text, '' where missing: a level of its own."""
    found = text(series)
    found[absent(found)] = ""
    return found


def parsed(words: np.ndarray) -> np.ndarray:
    """(rows,) of text to float64, NaN where missing or not a number."""
    return pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").to_numpy(np.float64)


def numbers(series: pd.Series, place: Place) -> np.ndarray:
    """(rows,) float64, NaN where missing; raises DataError at a word or an infinity."""
    name = str(series.name)
    if pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype):
        found = series.to_numpy(np.float64, na_value=np.nan)
    else:
        words = text(series)
        found = parsed(words)
        wrong = np.flatnonzero(np.isnan(found) & ~absent(words))
        if len(wrong):
            raise place.error(wrong[0], name, "a number", words[wrong[0]])
    infinite = np.isinf(found)
    if infinite.any():
        position = int(np.argmax(infinite))
        raise place.error(position, name, "a finite number", found[position].item())
    return found


def truths(series: pd.Series) -> np.ndarray:
    """(rows,) of 1.0 for yes and 0.0 for no; NaN for anything else: a third word in new rows is an unknown."""
    if pd.api.types.is_bool_dtype(series.dtype):
        return series.to_numpy(np.float64, na_value=np.nan)
    return np.array([np.nan if word is None else WORDS.get(word.lower(), np.nan) for word in text(series)])


def days(series: pd.Series, form: str, place: Place) -> np.ndarray:
    """(rows,) float64 days since 1970, NaN where missing; raises DataError at what is no date."""
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return elapsed(pd.to_datetime(series, utc=True))
    words = text(series)
    found = elapsed(parse_dates(words, form or ISO))
    wrong = np.flatnonzero(np.isnan(found) & ~absent(words))
    if len(wrong):
        raise place.error(wrong[0], str(series.name), f"a date like {example(form)}", words[wrong[0]])
    return found


def parse_dates(words: Iterable[str | None], form: str) -> pd.Series:
    """Times in UTC, NaT where a word is not of the form."""
    return pd.to_datetime(pd.Series(words, dtype=object), format=form, errors="coerce", utc=True)


def elapsed(times: pd.Series) -> np.ndarray:
    """(rows,) float64 days since 1970."""
    moments = times.dt.tz_localize(None).astype("datetime64[us]").to_numpy()  # nanoseconds end in 2262, 9999 is in use
    return np.where(np.isnat(moments), np.nan, moments.astype(np.int64) / 86_400e6)


def example(form: str) -> str:
    """A date of a form."""
    day = pd.Timestamp("2024-12-31 18:30:00")
    return "2024-12-31" if form in ("", ISO) else day.strftime(form)


def infer(series: pd.Series, place: Place, override: str | None = None) -> Column:
    """The kind of a column from its training rows; raises DataError where it is a kind but for a few cells."""
    name = str(series.name)
    if override is not None:
        return overridden(series, place, override)
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        found = elapsed(pd.to_datetime(series, utc=True))
        return Column(name, "date", ISO, has_hours(found)) if few(found) > 1 else Column(name, "constant")
    if pd.api.types.is_bool_dtype(series.dtype):
        return Column(name, "yes/no" if series.nunique(dropna=False) > 1 else "constant")
    if pd.api.types.is_numeric_dtype(series.dtype):
        return infer_numbers(name, numbers(series, place), place)
    words = text(series)
    return infer_words(name, words, place)


def overridden(series: pd.Series, place: Place, kind: str) -> Column:
    """The column as the user says it is; raises DataError at the first cell that is not."""
    name = str(series.name)
    if kind not in KINDS:
        raise ConfigError(f"data.columns.{name} must be one of {', '.join(KINDS)}, got {kind}{nearest(kind, KINDS)}")
    if kind == "number":
        numbers(series, place)
    if kind == "yes/no":
        words = text(series)
        for position, word in enumerate(words):
            if word is not None and word.lower() not in WORDS:
                raise place.error(position, name, "yes or no", word)
    if kind == "date":
        if pd.api.types.is_datetime64_any_dtype(series.dtype):
            return Column(name, kind, ISO, has_hours(elapsed(pd.to_datetime(series, utc=True))))
        form = date_form(text(series), 0.5) or ISO
        return Column(name, kind, form, has_hours(days(series, form, place)))
    return Column(name, kind)


def infer_numbers(name: str, found: np.ndarray, place: Place) -> Column:
    """Of numbers: number, constant, or identifier (whole, all different, and named or counted like one)."""
    known = found[~np.isnan(found)]
    unique = len(np.unique(known))
    if unique == 0 or (unique == 1 and len(known) == len(found)):
        return Column(name, "constant")
    whole = unique == len(found) and bool(np.all(known == np.floor(known)))
    if whole and unique > 2:
        rows = place.rows + np.arange(len(found)) if isinstance(place.rows, int) else place.rows
        start = np.unique(known - rows)
        counted = len(start) == 1 and start[0] in (0, 1)
        if ID_NAME.search(name) or (counted and CONSECUTIVE.fullmatch(name)) or (counted and len(found) > 20):
            return Column(name, "identifier")
    return Column(name, "number")


def infer_words(name: str, words: np.ndarray, place: Place) -> Column:
    """Of text: yes/no, number, date, category, text, constant or identifier."""
    known = words[~absent(words)]
    levels = set(known)
    if not levels or (len(levels) == 1 and len(known) == len(words)):
        return Column(name, "constant")
    if {level.lower() for level in levels} in PAIRS:
        return Column(name, "yes/no")
    found = parsed(words)
    wrong = np.flatnonzero(np.isnan(found) & ~absent(words))
    if mostly(found[~np.isnan(found)], len(known)):
        if len(wrong):
            raise mistaken(place, wrong, words, name, "a number")
        if np.isinf(found).any():
            numbers(pd.Series(words, name=name, dtype=object), place)
        return infer_numbers(name, found, place)
    form = date_form(words, 1 - BAD_SHARE)
    if form:
        times = elapsed(parse_dates(words, form))
        wrong = np.flatnonzero(np.isnan(times) & ~absent(words))
        if len(wrong):
            raise mistaken(place, wrong, words, name, f"a date like {example(form)}")
        return Column(name, "date", form, has_hours(times))
    return Column(name, infer_levels(name, known, len(levels)))


def mostly(found: np.ndarray, known: int) -> bool:
    """True of numbers but for a few: at most 5 % of the cells are not, or 20 % where most numbers differ."""
    wrong = known - len(found)
    distinct = len(np.unique(found))
    return wrong <= BAD_SHARE * known or (wrong <= 0.2 * known and distinct > max(3, len(found) / 2))


def mistaken(place: Place, wrong: np.ndarray, words: np.ndarray, name: str, expected: str) -> DataError:
    """The sentence about the few cells that are not what the column is."""
    more = f"; so are {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return DataError(
        f"{place.error(wrong[0], name, expected, words[wrong[0]])}{more}"
        f" (correct them, leave them empty, or set data.columns.{name}=category)"
    )


def infer_levels(name: str, known: np.ndarray, levels: int) -> str:
    """Category, text or identifier: by how often words repeat and how many a cell has."""
    length = float(np.mean([len(cell.split()) for cell in known]))
    if levels <= max(20, len(known) / 10) and levels < len(known):
        return "category"
    if length >= 3:
        return "text"
    if levels > 0.95 * len(known):
        return "identifier" if levels > 2 else "category"
    return "category"


def date_form(words: np.ndarray, share: float) -> str:
    """The form that at least this share of the words has, '' if none."""
    known = pd.unique(words[~absent(words)])
    if not len(known) or not any(char.isdigit() for char in known[0]):
        return ""
    first = known[:20]
    for form in (ISO, *(day + hour for hour in HOURS for day in DAYS + MONTHS)):
        if form == ISO and sum(ISO_LIKE.fullmatch(word) is not None for word in first) < share * len(first):
            continue
        if (
            parse_dates(first, form).notna().mean() >= min(share, 0.5)
            and parse_dates(known, form).notna().mean() >= share
        ):
            return form
    return ""


def has_hours(found: np.ndarray) -> bool:
    """True if a time of day is given."""
    return bool(np.any(found[~np.isnan(found)] % 1))


def few(found: np.ndarray) -> int:
    """How many different values there are."""
    return len(np.unique(found[~np.isnan(found)]))

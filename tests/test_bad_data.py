"""Every sentence about a file or a setting of data that is wrong, word for word."""

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dltrain.data.content import content_hash
from dltrain.data.csv import CSV
from dltrain.data.pca import PCA
from dltrain.data.scaler import StandardScaler
from dltrain.errors import ConfigError, DataError, UserError

ROWS = 30


def table(rows: int = ROWS, **cells: Callable[[int], object]) -> str:
    """A CSV of columns x (numbers), kind (a, b) and price; further columns or other cells by name."""
    columns = {
        "x": lambda i: i * 1.5 + (i % 7),
        "kind": lambda i: "ab"[i % 2],
        "price": lambda i: 100.5 + 3 * i,
    } | cells
    lines = [",".join(columns)]
    lines += [",".join(str(cell(i)) for cell in columns.values()) for i in range(rows)]
    return "\n".join(lines) + "\n"


def at(row: int, wrong: object, right: Callable[[int], object]) -> Callable[[int], object]:
    """A column that is wrong in one row, counted from 1."""
    return lambda i: wrong if i == row - 1 else right(i)


GOOD = table()
BAD_CELL = table(price=at(17, "n/a?", lambda i: 10.5 + i))
BAD_FEATURE = table(x=at(17, "n/a?", lambda i: 10.5 + i))
TWO_BAD = table(100, x=lambda i: "oops" if i in (3, 40) else i * 2.5)
BAD_DATE = table(100, day=lambda i: "soon" if i == 5 else f"2024-01-{1 + i % 28:02d}")

CASES: dict[str, tuple[str | bytes, dict[str, Any], type[UserError], str]] = {
    "empty": ("", {}, DataError, "houses.csv: the file is empty"),
    "blank": ("\n  \n", {}, DataError, "houses.csv: the file is empty"),
    "header": ("x,price\n", {}, DataError, "houses.csv: there is a header and no rows"),
    "binary": (
        b"PK\x03\x04\0\0\0\0",
        {},
        DataError,
        "houses.csv: a binary file, not text; expected CSV, TSV, gzip of these, or Parquet",
    ),
    "utf16": (GOOD.encode("utf-16"), {}, DataError, "houses.csv: the file is utf-16; set data.encoding=utf-16"),
    "latin": (
        "x,price\n1,2\n3,4 \u20ac\n".encode("cp1252"),
        {},
        DataError,
        "houses.csv row 2: byte 0x80 is not utf-8; try data.encoding=latin-1 or data.encoding=cp1252",
    ),
    "cut gzip": (gzip.compress(GOOD.encode())[:60], {}, DataError, "houses.csv: the gzip file is damaged or cut short"),
    "long row": (
        "x,price\n1,2\n3,4\n5,6,7\n",
        {},
        DataError,
        "houses.csv row 3: expected 2 cells as in the header, got 3 (cells are separated by ',')",
    ),
    "short row": (
        "x,y,price\n1,2,3\n\n4,5\n",
        {},
        DataError,
        "houses.csv row 2: expected 3 cells as in the header, got 2 (cells are separated by ',')",
    ),
    "row names": (
        "x;price\n1;2;3\n4;5;6\n",
        {"delimiter": ";"},
        DataError,
        "houses.csv row 1: expected 2 cells as in the header, got 3 (cells are separated by ';')",
    ),
    "duplicate": ("x,x,price\n1,2,3\n", {}, DataError, "houses.csv: two columns are called x"),
    "target": (
        GOOD,
        {"target": "prize"},
        ConfigError,
        "data.target must be a column of houses.csv, got prize; did you mean price? (kind, price, x)",
    ),
    "target twice": (
        GOOD,
        {"target": ["price", "price"]},
        ConfigError,
        "data.target must name each column once, got ['price', 'price']",
    ),
    "id": (
        GOOD,
        {"id": "kin"},
        ConfigError,
        "data.id must be a column of houses.csv, got kin; did you mean kind? (kind, price, x)",
    ),
    "ignore": (
        GOOD,
        {"ignore": ["X"]},
        ConfigError,
        "data.ignore must be a column of houses.csv, got X; did you mean x? (kind, price, x)",
    ),
    "weight": (
        GOOD,
        {"weight": "w"},
        ConfigError,
        "data.weight must be a column of houses.csv, got w (kind, price, x)",
    ),
    "by": (
        GOOD,
        {"split": {"kind": "group", "by": "kinds"}},
        ConfigError,
        "data.split.by must be a column of houses.csv, got kinds; did you mean kind? (kind, price, x)",
    ),
    "columns": (
        GOOD,
        {"columns": {"y": "number"}},
        ConfigError,
        "data.columns.y must name a column of houses.csv, got y (kind, price, x)",
    ),
    "kind": (
        GOOD,
        {"columns": {"x": "numeric"}},
        ConfigError,
        "data.columns.x must be one of number, category, yes/no, date, text, constant, identifier,"
        " got numeric; did you mean number? (category, constant, date, identifier, number, text, yes/no)",
    ),
    "ignored target": (
        GOOD,
        {"ignore": ["price"]},
        ConfigError,
        "data.target must not be in data.ignore as well, got price",
    ),
    "grouped target": (
        GOOD,
        {"split": {"kind": "group", "by": "price"}},
        ConfigError,
        "data.target must not be in data.split.by as well, got price",
    ),
    "bad target": (
        BAD_CELL,
        {},
        DataError,
        "houses.csv row 17, column price: expected a number, got 'n/a?'"
        " (correct them, leave them empty, or set data.columns.price=category)",
    ),
    "bad target as number": (
        BAD_CELL,
        {"columns": {"price": "number"}},
        DataError,
        "houses.csv row 17, column price: expected a number, got 'n/a?'",
    ),
    "bad feature": (
        BAD_FEATURE,
        {"columns": {"x": "number"}},
        DataError,
        "houses.csv row 17, column x: expected a number, got 'n/a?'",
    ),
    "bad features": (
        TWO_BAD,
        {"split": {"kind": "time"}},
        DataError,
        "houses.csv row 4, column x: expected a number, got 'oops'; so are 1 more"
        " (correct them, leave them empty, or set data.columns.x=category)",
    ),
    "bad date": (
        BAD_DATE,
        {"split": {"kind": "time"}},
        DataError,
        "houses.csv row 6, column day: expected a date like 2024-12-31, got 'soon'"
        " (correct them, leave them empty, or set data.columns.day=category)",
    ),
    "bad yes/no": (
        GOOD,
        {"columns": {"kind": "yes/no"}, "split": {"kind": "time"}},
        DataError,
        "houses.csv row 1, column kind: expected yes or no, got 'a'",
    ),
    "infinite": (
        table(x=at(9, "inf", lambda i: i / 2)),
        {},
        DataError,
        "houses.csv row 9, column x: expected a finite number, got inf",
    ),
    "weight missing": (
        table(w=at(3, "", lambda i: 1)),
        {"weight": "w"},
        DataError,
        "houses.csv row 3, column w: expected a weight of at least 0, got ''",
    ),
    "weight negative": (
        table(w=at(3, -2.5, lambda i: 1)),
        {"weight": "w"},
        DataError,
        "houses.csv row 3, column w: expected a weight of at least 0, got -2.5",
    ),
    "empty target": (
        table(price=lambda i: ""),
        {},
        DataError,
        "houses.csv, column price: the target is missing in all 30 rows",
    ),
    "half empty target": (
        table(price=lambda i: "" if i % 3 else i),
        {},
        DataError,
        "houses.csv, column price: the target is missing in 20 of 30 rows",
    ),
    "constant target": (
        table(price=lambda i: 5),
        {},
        DataError,
        "houses.csv, column price: the target is 5 in all 22 training rows; there is nothing to learn",
    ),
    "single class": (
        table(kind=lambda i: "a"),
        {"target": "kind"},
        DataError,
        "houses.csv, column kind: the target is a in all 22 training rows; there is nothing to learn",
    ),
    "constant in training": (
        table(price=lambda i: 5 if i < 22 else i),
        {"split": {"kind": "time"}, "columns": {"price": "number"}},
        DataError,
        "houses.csv, column price: the target is 5 in all 22 training rows; there is nothing to learn",
    ),
    "lone class": (
        table(kind=at(4, "z", lambda i: "ab"[i % 2])),
        {"target": "kind"},
        DataError,
        "houses.csv, column kind: class z has one row, which cannot be on both sides"
        " of a stratified split;"
        " leave it out or set data.split.kind=random",
    ),
    "late class": (
        table(kind=lambda i: "z" if i > 25 else "ab"[i % 2]),
        {"target": "kind", "split": {"kind": "time"}},
        DataError,
        "houses.csv row 27, column kind: expected one of the classes a, b of the training rows, got 'z'",
    ),
    "no classes": (
        table(100, name=lambda i: f"person {i}"),
        {"target": "name"},
        DataError,
        "houses.csv, column name: 100 different words in 100 rows are no classes to learn",
    ),
    "few rows": (
        table(3),
        {},
        DataError,
        "houses.csv: 3 rows are fewer than the split needs (1 for validation, 1 for the test, at least 2 for training)",
    ),
    "large counts": (
        GOOD,
        {"split": {"valid": 20, "test": 10}},
        DataError,
        "houses.csv: 30 rows are fewer than the split needs (20 for validation, 10 for the test,"
        " at least 2 for training)",
    ),
    "no validation": (
        GOOD,
        {"split": {"valid": 0}},
        ConfigError,
        "data.split.valid must leave at least one row for validation, got 0",
    ),
    "size": (
        GOOD,
        {"split": {"test": 1.5}},
        ConfigError,
        "data.split.test must be a fraction of the rows below 1 or a count of rows, got 1.5",
    ),
    "split kind": (
        GOOD,
        {"split": {"kind": "groups"}},
        ConfigError,
        "data.split.kind must be one of auto, random, stratified, time, group, got groups; did you mean group?"
        " (auto, group, random, stratified, time)",
    ),
    "split key": (
        GOOD,
        {"split": {"vaild": 0.1}},
        ConfigError,
        "data.split.vaild is not a setting; did you mean valid? (by, fold, folds, kind, seed, test, valid)",
    ),
    "no group": (
        GOOD,
        {"split": {"kind": "group"}},
        ConfigError,
        "data.split.by must be the column of the groups for data.split.kind=group, got null",
    ),
    "by of random": (
        GOOD,
        {"split": {"by": "kind"}},
        ConfigError,
        "data.split.by must go with data.split.kind=time or group, got data.split.kind=auto",
    ),
    "two groups": (
        GOOD,
        {"split": {"kind": "group", "by": "kind"}},
        DataError,
        "houses.csv, column kind: 2 groups cannot be split in 3",
    ),
    "stratified numbers": (
        GOOD,
        {"split": {"kind": "stratified"}},
        ConfigError,
        "data.split.kind=stratified must go with a target of classes, got numbers (price)",
    ),
    "time gap": (
        table(when=at(2, "", lambda i: i * i)),
        {"split": {"kind": "time", "by": "when"}},
        DataError,
        "houses.csv row 2, column when: expected a time to split by, got ''",
    ),
    "mixed targets": (
        table(sort=lambda i: "abc"[i % 3]),
        {"target": ["price", "sort"]},
        ConfigError,
        "data.target of several columns must be all numbers or all yes/no, got price (number), sort (classes)",
    ),
    "log": (
        table(price=at(9, 0, lambda i: i + 0.5)),
        {"target_transform": "log", "split": {"kind": "time"}},
        ConfigError,
        "data.target_transform=log must go with values above 0, got 0 (houses.csv row 9, column price)",
    ),
    "huge targets": (
        table(price=lambda i: (i - 7.5) * 1e300),
        {"split": {"kind": "time"}},
        DataError,
        "houses.csv, column price: the target's numbers, from -7.5e+300 to 1.35e+301, are too large to take mean and"
        " spread of; divide them",
    ),
    "huge targets above 0": (
        table(price=lambda i: (i + 0.5) * 1e300),
        {"split": {"kind": "time"}},
        DataError,
        "houses.csv, column price: the target's numbers, from 5e+299 to 2.15e+301, are too large to take mean and"
        " spread of; divide them, or set data.target_transform=log",
    ),
    "tiny targets": (
        table(price=lambda i: (i - 7.5) * 1e-300),
        {"split": {"kind": "time"}},
        DataError,
        "houses.csv, column price: the target's numbers, from -7.5e-300 to 1.35e-299, are too small to take mean and"
        " spread of; multiply them",
    ),
    "huge targets as they are": (
        table(price=lambda i: (i + 0.5) * 1e38),
        {"split": {"kind": "time"}, "target_transform": "none"},
        DataError,
        "houses.csv row 4, column price: expected a number below 3.4e38 once it is scaled, got 3.5e+38",
    ),
    "one huge target among validation rows": (
        table(price=at(23, 1e300, lambda i: i + 0.5)),
        {"split": {"kind": "time"}},
        DataError,
        "houses.csv row 23, column price: expected a number below 3.4e38 once it is scaled, got 1e+300",
    ),
    "huge features": (
        table(x=lambda i: (i * i % 17 - 7.5) * 1e300),
        {"split": {"kind": "time"}},
        DataError,
        "houses.csv row 23, column x: expected a number below 1e+38, got 5e+299",
    ),
    "one huge feature": (
        table(x=at(5, 1e300, lambda i: i * i % 17 - 7.5)),
        {"split": {"kind": "time"}, "pipeline": {"standard": StandardScaler}},
        DataError,
        "houses.csv row 5, column x: expected a number below 1e+38, got 1e+300",
    ),
    "one huge feature among validation rows": (
        table(x=at(23, 1e300, lambda i: i * i % 17 - 7.5)),
        {"split": {"kind": "time"}, "pipeline": {"pca": PCA}},
        DataError,
        "houses.csv row 23, column x: expected a number below 1e+38, got 1e+300",
    ),
    "transform": (
        GOOD,
        {"target_transform": "log1p"},
        ConfigError,
        "data.target_transform must be one of standard, log, none, got log1p; did you mean log? (log, none, standard)",
    ),
    "nothing left": (
        "a,b,price\n" + "".join(f"same,{i},{i * i % 17}.5\n" for i in range(30)),
        {"id": "b"},
        DataError,
        "houses.csv: no column is left to learn from (a: constant, b: identifier)",
    ),
    "shape": (
        GOOD,
        {"shape": [1, 9, 9], "ignore": ["kind"]},
        ConfigError,
        "data.shape=[1,9,9] needs 81 columns, got 1",
    ),
    "shape words": (
        GOOD,
        {"shape": [1, 1, 2], "split": {"kind": "time"}},
        DataError,
        "houses.csv row 1, column kind: expected a number, got 'a'",
    ),
    "shape zero": (
        GOOD,
        {"shape": [1, 0]},
        ConfigError,
        "data.shape must be whole numbers such as [1,28,28], got [1, 0]",
    ),
    "rows": (GOOD, {"rows": 1}, ConfigError, "data.rows must be a whole number of at least 2, or null, got 1"),
    "delimiter": (
        GOOD,
        {"delimiter": "::"},
        ConfigError,
        "data.delimiter must be one character such as ',' ';' '|' or tab, got '::'",
    ),
    "encoding": (
        GOOD,
        {"encoding": "latin1000"},
        ConfigError,
        "data.encoding must be an encoding Python knows, got latin1000; did you mean latin-1?"
        " (cp1252, gb18030, latin-1, shift_jis, utf-16, utf-8)",
    ),
    "components": (
        GOOD,
        {"pipeline": {"pca": partial(PCA, n_components=99)}},
        ConfigError,
        "pipeline.pca: n_components must be at most 3 (there are 3 columns), got 99",
    ),
    "component": (
        GOOD,
        {"pipeline": {"pca": partial(PCA, n_components="most")}},
        ConfigError,
        "pipeline.pca: n_components must be all, a count, or a fraction in (0, 1), got most",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sentence(case: str, tmp_path: Path) -> None:
    content, settings, kind, sentence = CASES[case]
    path = tmp_path / "houses.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as raised:
        CSV(**({"path": str(path), "target": "price"} | settings)).load()
    assert (type(raised.value), str(raised.value)) == (kind, sentence)


@pytest.mark.filterwarnings("error")
def test_large_numbers_that_are_not_too_large(tmp_path: Path) -> None:
    path = tmp_path / "houses.csv"
    path.write_text(table(x=lambda i: (i * i % 17 - 7.5) * 1e30, price=lambda i: (i * i % 13 - 7.5) * 1e30))
    data = CSV(path=str(path), target="price", pipeline={"standard": StandardScaler}).load()
    assert all(rows[name].abs().max() < 9 for rows in (data.train, data.valid) for name in ("features", "target"))


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house.csv").write_text(GOOD)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.chdir(tmp_path)
    sentences = {
        None: (ConfigError, "data.path must be a file, got null"),
        "houses.csv": (DataError, "houses.csv: no such file; did you mean house.csv? (empty.csv, house.csv)"),
        "gone/houses.csv": (DataError, "gone/houses.csv: no such file (there is no folder gone)"),
        "folder.csv": (DataError, "folder.csv: is a folder; data.path must be a file"),
        "empty.csv": (DataError, "empty.csv: the file is empty"),
    }
    for path, expected in sentences.items():
        for attempt in (
            lambda p=path: content_hash({"path": p, "delimiter": None}),
            lambda p=path: CSV(p, "price").load(),
        ):
            with pytest.raises(UserError) as raised:
                attempt()
            assert (type(raised.value), str(raised.value)) == expected


def test_parquet_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    (tmp_path / "x.parquet").write_bytes(b"PAR1....")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else find(name, *rest)
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^data.path=x.parquet needs pip install 'dltrain\[parquet\]'$"):
        CSV("x.parquet", "price").load()


def test_damaged_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1....")
    with pytest.raises(DataError, match=r"^x.parquet: not a whole Parquet file$"):
        CSV(str(tmp_path / "x.parquet"), "price").load()


@pytest.mark.parametrize("last", ["9999-12-31", "0001-01-01", "2262-04-12"])
def test_dates_of_any_year(last: str, tmp_path: Path) -> None:
    path = tmp_path / "houses.csv"
    path.write_text(table(day=lambda i: last if i % 3 == 0 else f"2024-01-{1 + i % 28:02d}"))
    data = CSV(str(path), "price").load()
    days = next(column for column in data.description["columns"] if column["name"] == "day")
    assert days["kind"] == "date"
    assert f"{last} 00:00:00" in (days["min"], days["max"])
    assert bool(data.train["features"].isfinite().all())

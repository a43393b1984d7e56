"""From a table to predictions for a file that is not quite like it: four real tables, and one that is made here."""

import json
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import dltrain
from dltrain import cli

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tables.py"
REAL = {"diamonds": "price", "titanic": "survived", "randhie": "mdvis", "superstore": "Profit"}
MADE = {"made": "spent", "made-classes": "plan"}
ROWS = 2000  # that training reads of a table; new rows come from its end
NEW = 150


class Trained(NamedTuple):
    """A finished run, and rows of its table that it has not seen, as text and without the target."""

    folder: Path
    kinds: dict[str, str]
    classes: list[str]
    new: pd.DataFrame


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks, on a machine that has other things to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def script() -> ModuleType:
    """`benchmarks/tables.py`, which knows where the tables are."""
    spec = util.spec_from_file_location("benchmark_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(path: Path, rows: int = 600) -> Path:
    """A table with every kind of column, of which each but the first has gaps."""
    draw = np.random.default_rng(0)
    age, plan = draw.normal(40, 12, rows).round(1), draw.choice(["basic", "plus", "pro"], rows)
    day = pd.Timestamp("2021-03-01") + pd.to_timedelta(draw.integers(0, 900, rows), unit="D")
    words = np.array([" ".join(draw.choice(["late", "kind", "fast", "broken", "again"], 4)) for _ in range(rows)])
    member = draw.choice(["yes", "no"], rows)
    frame = pd.DataFrame(
        {
            "client": [f"c{i:04d}" for i in range(rows)],
            "age": age.astype(str),
            "town": draw.choice(["Paris, 5e", "Łódź", "Graz"], rows),
            "joined": day.strftime("%d.%m.%Y"),
            "note": words,
            "member": member,
        }
    )
    for name in frame.columns[1:]:
        frame.loc[draw.random(rows) < 0.05, name] = ""
    frame["plan"] = plan
    frame["spent"] = (age * (1 + (plan == "pro")) + 20 * (member == "yes") + draw.normal(0, 3, rows)).round(2)
    frame.to_csv(path, index=False)
    return path


def table(case: str, folder: Path) -> tuple[Path, list[str]]:
    """The file of a case and the words that say how to read it; skips where its package is not installed."""
    if case in MADE:
        return make(folder / "made.csv"), ["data.id=client"]
    try:
        return script().extract(case, folder), [f"data.rows={ROWS}"]
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=[*MADE, *REAL])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A short training by the command."""
    folder = tmp_path_factory.mktemp("tables")
    target = (REAL | MADE)[request.param]
    path, words = table(request.param, folder)
    words += ["data=csv", f"data.path={path}", f"data.target={target}", "epochs=3", "trainer.threads=1"]
    assert cli.run([*words, f"output_root={folder}", "name=run"]) == 0
    described = json.loads((folder / "run" / "data.json").read_text(encoding="utf-8"))
    kinds = {column["name"]: column["kind"] for column in described["columns"]}
    new = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=target).tail(NEW).reset_index(drop=True)
    return Trained(folder / "run", kinds, described["target"]["classes"], new)


def predict(trained: Trained, frame: pd.DataFrame, name: str = "new") -> pd.DataFrame:
    """What the command writes for a frame of text, read in three pieces."""
    path, out = trained.folder.parent / f"{name}.csv", trained.folder.parent / f"{name}.out.csv"
    frame.to_csv(path, index=False)
    assert cli.run(["predict", f"run={trained.folder}", f"input={path}", f"out={out}", "rows=64"]) == 0
    return pd.read_csv(out)


def disordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with their columns in another order and one that nobody knows among them."""
    columns = np.random.default_rng(1).permutation(frame.columns).tolist()
    other = frame[columns]
    other.insert(1, "nobody knows", [f"what {i}, 'this' is" for i in range(len(frame))])
    return other


def telling(cells: pd.Series, kind: str) -> int:
    """The row whose cell is least like what a gap would be filled with; -1 if all are alike."""
    if kind == "number":
        away = (pd.to_numeric(cells) - pd.to_numeric(cells).median()).abs()
        return int(away.argmax()) if away.max() > 0 else -1
    return int(cells.eq(cells[cells != ""].value_counts().index[0]).argmax())


def test_prediction_columns(trained: Trained) -> None:
    found = predict(trained, trained.new)
    ids = ["client"] if "client" in trained.new else []
    probabilities = [f"p_{label}" for label in trained.classes]
    assert found.columns.tolist() == ["row", *ids, "prediction", *probabilities]
    assert found["row"].tolist() == list(range(NEW))
    for name in ids:
        assert found[name].tolist() == trained.new[name].tolist()
    assert np.isfinite(found[probabilities or ["prediction"]].to_numpy()).all()
    if trained.classes:
        np.testing.assert_allclose(found[probabilities].sum(axis=1), 1, rtol=1e-5)
        best = found[probabilities].to_numpy().argmax(axis=1)
        assert found["prediction"].astype(str).tolist() == [trained.classes[k] for k in best]
    different = len(trained.new.drop(columns=ids).drop_duplicates())
    assert found[probabilities or ["prediction"]].iloc[:, 0].nunique() > different / 2  # the network looks at the rows


def test_other_columns_and_their_order_change_nothing(trained: Trained) -> None:
    plain = predict(trained, trained.new, "plain")
    pd.testing.assert_frame_equal(predict(trained, disordered(trained.new), "disordered"), plain)


def test_predictions_follow_the_file(trained: Trained) -> None:
    plain = predict(trained, trained.new, "plain").drop(columns="row")
    turned = predict(trained, trained.new[::-1], "turned").drop(columns="row")
    pd.testing.assert_frame_equal(turned[::-1].reset_index(drop=True), plain, rtol=1e-5)


def test_gaps_and_new_categories_change_their_rows_alone(trained: Trained) -> None:
    plain = predict(trained, trained.new, "plain")
    features = {name: kind for name, kind in trained.kinds.items() if kind not in ("identifier", "constant")}
    holed = trained.new.copy()
    touched = set()
    for name, kind in features.items():
        row = telling(trained.new[name], kind)
        if row >= 0:
            holed.loc[row, name] = ""
            touched.add(row)
    found = predict(trained, disordered(holed), "holed")
    assert changed(plain, found) == touched
    if "category" in features.values():
        town = next(name for name, kind in features.items() if kind == "category")
        row = telling(trained.new[town], "category")
        novel = trained.new.copy()
        novel.loc[row, town] = "Nowhere, at all"
        found = predict(trained, disordered(novel), "novel")
        assert changed(plain, found) == {row}


def changed(before: pd.DataFrame, after: pd.DataFrame) -> set[int]:
    """Rows with another prediction; all are finite."""
    numbers = before.drop(columns="row").select_dtypes("float").columns
    assert len(numbers)
    assert np.isfinite(after[numbers].to_numpy()).all()
    return set(np.flatnonzero((before[numbers] != after[numbers]).any(axis=1)).tolist())


def test_python_predicts_what_the_command_writes(trained: Trained) -> None:
    holed = disordered(trained.new)
    for row, name in enumerate(holed.columns):
        holed.loc[row, name] = ""
    written = predict(trained, holed, "python")
    frame = pd.read_csv(trained.folder.parent / "python.csv")  # pandas' own idea of what the columns hold
    found = dltrain.load(str(trained.folder)).predict(frame)
    assert found.columns.tolist() == written.columns.tolist()
    for ours, read in zip(found.items(), written.items(), strict=True):
        if pd.api.types.is_float_dtype(read[1].dtype):
            np.testing.assert_allclose(ours[1], read[1], rtol=1e-5)
        else:
            assert ours[1].fillna("").astype(str).tolist() == read[1].fillna("").astype(str).tolist()

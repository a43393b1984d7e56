"""Tables: what is learnt from training rows against scikit-learn, kinds of columns, and new rows at prediction."""

import gzip
import importlib
import inspect
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder
from sklearn.preprocessing import StandardScaler as Reference

from dltrain.data.bundled import Bundled
from dltrain.data.columns import Column, Place, infer
from dltrain.data.content import content_hash
from dltrain.data.csv import CSV
from dltrain.data.encoding import Dates, Encoding
from dltrain.data.pca import PCA
from dltrain.data.preparation import Preparation
from dltrain.data.rows import Data
from dltrain.data.scaler import StandardScaler
from dltrain.data.target import Target
from dltrain.data.xor import XOR
from dltrain.errors import DataError

STANDARD = {"standard": StandardScaler}


def houses(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Every kind of column, with gaps."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "id": [f"h-{i:04d}" for i in range(rows)],
            "area": draw.normal(100, 30, rows).round(2),
            "rooms": draw.integers(1, 9, rows),
            "city": draw.choice(["Köln", "年", "price=2", "New York"], rows),
            "garden": draw.choice(["yes", "no"], rows),
            "sold": [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(rows)],
            "note": [f"{draw.choice(['bright', 'dark'])} house number {i} on the hill" for i in range(rows)],
            "one": "same",
        }
    )
    frame["area"] = frame["area"].where(draw.random(rows) > 0.1)
    frame["city"] = frame["city"].where(draw.random(rows) > 0.1)
    frame["price"] = (draw.normal(size=rows) * 50 + 300).round(1)
    return frame


def load(frame: pd.DataFrame, folder: Path, target: Any = "price", **settings: Any) -> Data:
    path = folder / "houses.csv"
    frame.to_csv(path, index=False)
    return CSV(str(path), target, **settings).load()


def kinds(data: Data) -> dict[str, str]:
    return {column["name"]: column["kind"] for column in data.description["columns"]}


def saved(preparation: Preparation, folder: Path) -> tuple[bytes, str]:
    folder.mkdir(exist_ok=True)
    state = preparation.save(folder)
    return (folder / "preparation.skops").read_bytes(), json.dumps(state, allow_nan=False)


def test_kinds_are_inferred(tmp_path: Path) -> None:
    data = load(houses(), tmp_path)
    assert kinds(data) == {
        "id": "identifier",
        "area": "number",
        "rooms": "number",
        "city": "category",
        "garden": "yes/no",
        "sold": "date",
        "note": "text",
        "one": "constant",
    }
    assert data.description["splits"] == {"train": 140, "valid": 30, "test": 30}
    json.dumps(data.description, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("x", [i / 7 for i in range(50)], "number"),  # all different, yet measured
        ("year", list(range(1990, 2040)), "number"),
        ("count", [i * 13 % 101 for i in range(50)], "number"),
        ("customer_id", [i * 13 % 101 for i in range(50)], "identifier"),
        ("customerId", [i * 13 % 101 for i in range(50)], "identifier"),
        ("paid", [i * 13 % 101 for i in range(50)], "number"),
        ("Unnamed: 0", list(range(1, 51)), "identifier"),
        ("whatever", list(range(50)), "identifier"),
        ("x", [0, 1] * 25, "number"),
        ("x", ["Y", "n"] * 25, "yes/no"),
        ("x", [True, False] * 25, "yes/no"),
        ("x", ["true", None] * 25, "category"),  # a gap says something
        ("x", [3.5] * 50, "constant"),
        ("x", [None] * 50, "constant"),
        ("x", ["a", "b", "c", "d", "e"] * 10, "category"),
        ("x", ["3", " 4", "5.5", "1e3", "-2"] * 10, "number"),
        ("x", ["3", "4", "5", "6+", "7"] * 10, "category"),
        ("x", [f"user{i}" for i in range(50)], "identifier"),
        ("x", [f"a review with words {i}" for i in range(50)], "text"),
        ("x", ["2024-01-05T10:30:00Z", "2024-02-07T11:00:00Z"] * 25, "date"),
        ("x", pd.to_datetime(["2024-01-05", "2024-02-07"] * 25), "date"),
        ("x", ["31.12.2024", "01.02.2023"] * 25, "date"),
        ("x", ["12/31/2024 5:30 PM", "1/2/2023 11:00 AM"] * 25, "date"),
        ("x", ["Dec 31, 2024", "Jan 2, 2023"] * 25, "date"),
    ],
)
def test_kind(name: str, cells: Any, kind: str) -> None:
    assert infer(pd.Series(cells, name=name), Place("x.csv")).kind == kind


@pytest.mark.parametrize(
    ("words", "day"),
    [
        (["2024-12-31", "1970-01-01"], 20088.0),
        (["2024-12-31T12:00:00", "1970-01-01T00:00:00"], 20088.5),
        (["2024-12-31T12:00:00+06:00", "1970-01-01T00:00:00+00:00"], 20088.25),
        (["31/12/2024", "13/01/1970"], 20088.0),
        (["12/31/2024", "01/13/1970"], 20088.0),
        (["31.12.2024 18:00", "13.01.1970 06:00"], 20088.75),
        (["2024/12/31", "1970/01/01"], 20088.0),
        (["31 Dec 2024", "01 Jan 1970"], 20088.0),
        (["31-12-2024", "13-01-1970"], 20088.0),
    ],
)
def test_dates_are_days(words: list[str], day: float) -> None:
    series = pd.Series(words * 10, name="when")
    column = infer(series, Place("x.csv"))
    assert column.kind == "date"
    assert column.values(series, Place("x.csv"))[0] == day
    assert column.hours == (day % 1 != 0)


def test_dates_mean_something() -> None:
    made = Dates((True,)).fit(np.array([[0.0], [2.0]]))
    day, in_year, in_week, hour = 3.25, 3 / 365.2425, 7 / 7, 0.25
    waves = [f(2 * np.pi * turn) for turn in (in_year, in_week, hour) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(made.transform(np.array([[day]])), [[day, *waves]], atol=1e-12)


def test_encoding_is_scikit_learns() -> None:
    frame, new = houses(), houses(seed=1)
    new["city"] = new["city"].replace("Köln", "Atlantis")
    place = Place("houses.csv")
    columns = [infer(frame[name], place) for name in ("area", "rooms", "city", "note")]
    encoding = Encoding(columns)
    fitted = encoding.fit(frame, place)
    imputer = SimpleImputer(strategy="median", add_indicator=True).fit(frame[["area", "rooms"]].to_numpy(np.float64))
    onehot = OneHotEncoder(handle_unknown="ignore").fit(frame[["city"]].fillna("").to_numpy(object))
    words = TfidfVectorizer(max_features=100, token_pattern=r"(?u)\b\w+\b").fit(frame["note"])
    for rows, made in ((frame, fitted), (new, encoding.transform(new, place))):
        expected = [
            imputer.transform(rows[["area", "rooms"]].to_numpy(np.float64)),
            onehot.transform(rows[["city"]].fillna("").to_numpy(object)).toarray(),
            words.transform(rows["note"]).toarray(),
        ]
        np.testing.assert_allclose(made, np.hstack(expected), rtol=0, atol=1e-9)


def test_target_is_standardised_on_training_rows(tmp_path: Path) -> None:
    frame = houses()
    for transform, there in (("standard", lambda y: y), ("log", np.log)):
        data = load(frame, tmp_path, target_transform=transform)
        prices = frame["price"].to_numpy()
        scaler = Reference().fit(there(prices[data.train["row"]])[:, None])
        for rows in (data.train, data.valid, data.test):
            own = prices[rows["row"]][:, None]
            np.testing.assert_allclose(rows["target"].numpy(), scaler.transform(there(own)), atol=1e-5)
            np.testing.assert_allclose(data.preparation.target.decode(rows["target"]).numpy(), own, rtol=1e-5)
    plain = load(frame, tmp_path, target_transform="none")
    np.testing.assert_allclose(
        plain.train["target"].numpy()[:, 0], frame["price"].to_numpy()[plain.train["row"]], rtol=1e-6
    )


@pytest.mark.parametrize("pipeline", [STANDARD, {"standard": StandardScaler, "pca": partial(PCA, n_components=0.99)}])
def test_nothing_is_learnt_from_validation_and_test_rows(pipeline: dict[str, Any], tmp_path: Path) -> None:
    frame = houses()
    split = {"kind": "random"}
    first = load(frame, tmp_path, pipeline=pipeline, split=split)
    others = np.concatenate([first.valid["row"], first.test["row"]])
    draw = np.random.default_rng(5)
    scrambled = frame.astype({"rooms": float})
    scrambled.loc[others, ["area", "rooms", "price"]] = draw.normal(size=(60, 3)) * 1e4
    scrambled.loc[others, ["city", "garden", "note", "one"]] = draw.choice(["new", "other"], (60, 4))
    second = load(scrambled, tmp_path, pipeline=pipeline, split=split)
    assert saved(first.preparation, tmp_path / "a") == saved(second.preparation, tmp_path / "b")
    assert torch.equal(first.train["features"], second.train["features"])
    third = frame.copy()
    third.loc[int(first.train["row"][0]), "area"] = 1e4  # the comparison can fail
    assert saved(first.preparation, tmp_path / "a") != saved(
        load(third, tmp_path, pipeline=pipeline, split=split).preparation, tmp_path / "c"
    )


def test_classes_learn_nothing_from_files_of_their_own(tmp_path: Path) -> None:
    frame = houses()
    for seed, name in ((1, "valid.csv"), (2, "test.csv"), (3, "valid2.csv"), (4, "test2.csv")):
        houses(seed=seed).to_csv(tmp_path / name, index=False)
    states = []
    for end in ("", "2"):
        files = {"valid_path": str(tmp_path / f"valid{end}.csv"), "test_path": str(tmp_path / f"test{end}.csv")}
        data = load(frame, tmp_path, "garden", pipeline=STANDARD, **files)
        assert data.description["splits"] == {"train": 200, "valid": 200, "test": 200}
        states.append(saved(data.preparation, tmp_path / f"p{end}"))
    assert states[0] == states[1]


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    data = load(
        houses(), tmp_path, pipeline={"standard": StandardScaler, "pca": partial(PCA, n_components=0.99)}, id="id"
    )
    state = json.loads(json.dumps(data.preparation.save(tmp_path), allow_nan=False))
    again = Preparation.load(tmp_path, state)
    new = houses(seed=7)
    assert torch.equal(again.features(new, "new"), data.preparation.features(new, "new"))
    assert again.target == data.preparation.target
    assert saved(again, tmp_path / "x") == saved(data.preparation, tmp_path / "y")
    chunks = list(again.read(str(tmp_path / "houses.csv"), 64))
    assert [len(chunk) for chunk in chunks] == [64, 64, 64, 8]
    features = torch.cat([again.features(chunk, "houses.csv", 64 * i) for i, chunk in enumerate(chunks)])
    for rows in (data.train, data.valid, data.test):
        torch.testing.assert_close(features[rows["row"]], rows["features"], atol=1e-5, rtol=0)
    assert list(pd.concat(chunks)["id"]) == [f"h-{i:04d}" for i in range(200)]


def test_new_rows_of_every_sort(tmp_path: Path) -> None:
    data = load(houses(), tmp_path, pipeline=STANDARD)
    known = houses(seed=3).head(20)
    features = data.preparation.features(known, "new.csv")
    shuffled = known[known.columns[::-1]].assign(loss=1.0, row="x", prediction=None)
    assert torch.equal(data.preparation.features(shuffled, "new.csv"), features)
    assert torch.equal(data.preparation.features(known.astype(object), "new.csv"), features)
    as_text = known.astype("str").where(known.notna(), None)
    torch.testing.assert_close(data.preparation.features(as_text, "new.csv"), features)
    odd = known.assign(city="Atlantis", garden="perhaps", note=None, sold=None, area=np.nan)
    assert torch.isfinite(data.preparation.features(odd, "new.csv")).all()
    assert data.preparation.features(known.head(0), "new.csv").shape == (0, *data.preparation.shape_in)
    unlabelled = known.drop(columns="price")
    assert torch.equal(data.preparation.features(unlabelled, "new.csv"), features)


def test_wrong_new_rows_are_named(tmp_path: Path) -> None:
    data = load(houses(), tmp_path)
    new = houses(seed=3).head(20).astype(object)
    new.loc[4, "rooms"] = "many"
    with pytest.raises(DataError, match=r"^new.csv row 105, column rooms: expected a number, got 'many'$"):
        data.preparation.features(new, "new.csv", 100)
    with pytest.raises(DataError, match=r"^new.csv: there is no column area, note$"):
        data.preparation.features(new.drop(columns=["area", "note"]), "new.csv")
    with pytest.raises(DataError, match=r"^new.csv: there is no column price \(the target\)$"):
        data.preparation.targets(new.drop(columns="price"), "new.csv")
    new = houses(seed=3)
    new["rooms"] = new["rooms"].astype(object)
    new.loc[150, "rooms"] = "many"
    new.to_csv(tmp_path / "new.csv", index=False)
    chunks = list(data.preparation.read(str(tmp_path / "new.csv"), 60))
    assert torch.isfinite(data.preparation.features(chunks[1], "new.csv", 60)).all()
    with pytest.raises(DataError, match=r"^new.csv row 151, column rooms: expected a number, got 'many'$"):
        data.preparation.features(chunks[2], "new.csv", 120)


def test_targets(tmp_path: Path) -> None:
    frame = houses()
    draw = np.random.default_rng(0)
    frame["grade"] = draw.integers(8, 12, 200)
    frame["visits"] = draw.integers(0, 60, 200)
    frame["code"] = draw.choice(["01", "02", "10"], 200)
    frame["flag"] = draw.choice(["Yes", "No"], 200)

    def target(name: Any, **settings: Any) -> Target:
        return load(frame, tmp_path, name, **settings).preparation.target

    assert target("price").kind == target("visits").kind == "number"
    assert (target("grade").kind, target("grade").classes) == ("classes", ("8", "9", "10", "11"))
    assert target("grade", columns={"grade": "number"}).kind == "number"
    assert target("code").classes == ("01", "02", "10")
    assert (target("flag").kind, target("flag").classes) == ("binary", ("No", "Yes"))
    assert (target(["price", "visits"]).kind, len(target(["price", "visits"]).mean)) == ("number", 2)
    both = load(frame, tmp_path, ["flag", "garden"])
    assert both.preparation.target.kind == "multilabel"
    expected = np.stack([frame["flag"] == "Yes", frame["garden"] == "yes"], axis=1)[both.test["row"]]
    np.testing.assert_array_equal(both.test["target"].numpy(), expected)
    assert both.preparation.target.counts == tuple(both.train["target"].sum(0).int().tolist())
    assert Target.from_json(json.loads(json.dumps(target("flag").to_json()))) == target("flag")


def test_rows_without_a_target_are_dropped(tmp_path: Path) -> None:
    frame = houses()
    frame.loc[[3, 50, 199], "price"] = None
    data = load(frame, tmp_path)
    assert data.description["dropped_rows"] == 3
    rows = torch.cat([data.train["row"], data.valid["row"], data.test["row"]]).sort().values
    assert rows.tolist() == [i for i in range(200) if i not in (3, 50, 199)]


def test_splits(tmp_path: Path) -> None:
    frame = houses()
    late = load(frame, tmp_path, split={"kind": "time", "by": "sold"})
    sold = frame["sold"].to_numpy()
    assert sold[late.train["row"]].max() <= sold[late.valid["row"]].min()
    assert sold[late.valid["row"]].max() <= sold[late.test["row"]].min()
    assert kinds(late)["sold"] == "date"
    last = load(frame, tmp_path, split={"kind": "time", "test": 20, "valid": 10})
    assert (last.test["row"].tolist(), last.valid["row"].tolist()) == (list(range(180, 200)), list(range(170, 180)))
    frame["owner"] = np.random.default_rng(0).integers(0, 40, 200)
    apart = load(frame, tmp_path, split={"kind": "group", "by": "owner"})
    owners = [set(frame["owner"].to_numpy()[rows["row"]]) for rows in (apart.train, apart.valid, apart.test)]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    assert "owner" not in kinds(apart)
    assert 20 <= len(apart.test["row"]) <= 40
    again = load(frame, tmp_path, split={"kind": "random", "seed": 1})
    other = load(frame, tmp_path, split={"kind": "random", "seed": 2})
    assert torch.equal(again.test["row"], load(frame, tmp_path, split={"kind": "random", "seed": 1}).test["row"])
    assert not torch.equal(again.test["row"], other.test["row"])


def test_strata_have_their_proportions() -> None:
    data = Bundled("iris").load()
    for rows, size in ((data.train, 35), (data.valid, 7), (data.test, 7)):
        counts = torch.bincount(rows["target"])
        assert (counts - size).abs().max() <= 1


def test_bundled_and_xor() -> None:
    digits = Bundled("digits", shape=[1, 8, 8], pipeline=STANDARD).load()
    assert digits.train["features"].shape[1:] == digits.preparation.shape_in == (1, 8, 8)
    assert digits.preparation.target.classes == tuple("0123456789")
    assert Bundled("breast_cancer").load().preparation.target.classes == ("benign", "malignant")
    assert Bundled("diabetes").load().preparation.target.kind == "number"
    few = Bundled("iris", rows=30).load()
    assert few.preparation.target.counts == (8, 7, 7) or sum(few.preparation.target.counts) == 22
    corners = XOR(rows=40, noise=0.0).frame()
    np.testing.assert_array_equal(corners["xor"], corners["a"].astype(int) ^ corners["b"].astype(int))
    assert XOR().load().preparation.target.kind == "binary"


@pytest.mark.parametrize(
    "written", ["csv", "tsv", "semicolon", "bar", "gz", "parquet", "bom", "latin", "utf16", "crlf", "quoted"]
)
def test_files(written: str, tmp_path: Path) -> None:
    frame = houses().assign(**{"Preis_€": range(200), "sepal length (cm)": 0.5 + np.arange(200) % 9})
    frame["self"] = "x, y"
    frame["city"] = frame["city"].replace("年", "Ö")
    path = tmp_path / "my [file], é=1 ~.dat"
    separators = {"tsv": "\t", "semicolon": ";", "bar": "|"}
    settings: dict[str, Any] = {}
    if written == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path, index=False)
    else:
        if written == "latin":
            frame = frame.rename(columns={"Preis_€": "Preis"})
        settings = {"latin": {"encoding": "latin-1"}, "utf16": {"encoding": "utf-16"}}.get(written, {})
        content = frame.to_csv(index=False, sep=separators.get(written, ","), quoting=1 if written == "quoted" else 0)
        content = content.replace("\n", "\r\n") if written == "crlf" else content
        raw = content.encode("utf-8-sig" if written == "bom" else settings.get("encoding", "utf-8"))
        path.write_bytes(gzip.compress(raw) if written == "gz" else raw)
    data = CSV(str(path), "price", pipeline=STANDARD, **settings).load()
    frame.to_csv(tmp_path / "plain.csv", index=False)
    plain = CSV(str(tmp_path / "plain.csv"), "price", pipeline=STANDARD).load()
    assert kinds(data) == kinds(plain)
    torch.testing.assert_close(data.train["features"], plain.train["features"])
    total = sum(len(data.preparation.features(chunk, "x")) for chunk in data.preparation.read(str(path), 50))
    assert total == 200


def test_row_weights(tmp_path: Path) -> None:
    frame = houses().assign(w=np.arange(200) / 4)
    data = load(frame, tmp_path, weight="w")
    torch.testing.assert_close(data.train["weight"], data.train["row"].float() / 4)
    assert "w" not in kinds(data)
    assert data.preparation.weights(frame.drop(columns="w"), "x") is None


def test_warnings(tmp_path: Path) -> None:
    assert load(houses(), tmp_path).warnings == []
    frame = houses()
    copies = pd.concat([frame, frame.head(1)], ignore_index=True)
    copies = load(copies, tmp_path, split={"kind": "time", "test": 1, "valid": 1}).warnings
    assert copies == ["1 of 1 test rows is a copy of a training row (same features, same target)"]
    leaky = load(frame.assign(euros=frame["price"] * 0.9 + 3), tmp_path).warnings
    assert leaky == [
        "column euros all but equals the target price; if it is not known beforehand, set data.ignore=[euros]"
    ]
    named = load(frame.assign(label=frame["garden"].map({"yes": "ja", "no": "nein"})), tmp_path, "label").warnings
    assert named == [
        "column garden all but equals the target label; if it is not known beforehand, set data.ignore=[garden]"
    ]
    rare = load(frame.assign(rare=["ab"[i % 50 == 0] for i in range(200)]), tmp_path, "rare").warnings
    assert rare == [
        "classes of rare are far from balanced: 3 training rows of b, 137 of a; look at more than accuracy",
    ] or rare[0].startswith("classes of rare are far from balanced: ")


def test_content_is_hashed_without_heavy_imports(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    one = content_hash({"path": str(tmp_path / "a.csv"), "delimiter": None, "target": "y", "test_path": None})
    assert one == content_hash({"path": str(tmp_path / "b.csv"), "delimiter": None, "target": "y", "test_path": None})
    assert one["target"] == "y"
    assert one["test_path"] is None
    (tmp_path / "b.csv").write_text("x,y\n1,3\n")
    assert one["path"] != content_hash({"path": str(tmp_path / "b.csv"), "delimiter": None})["path"]
    heavy = "import sys, dltrain.data.content; print({'torch', 'pandas', 'sklearn', 'numpy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"


def test_chunks_of_a_file_take_little_memory(tmp_path: Path) -> None:
    """Six million numbers stream through a process whose memory grows by less than half the file's size."""
    frame = pd.DataFrame({f"c{i}": np.random.default_rng(i).normal(size=100) for i in range(50)}).assign(
        price=np.arange(100) * 1.5
    )
    data = load(frame, tmp_path, pipeline=STANDARD)
    body = frame.to_csv(index=False, header=False) * 600
    (tmp_path / "big.csv").write_text(",".join(frame.columns) + "\n" + body)
    (tmp_path / "state.json").write_text(json.dumps(data.preparation.save(tmp_path)))
    program = """
import json, pathlib, resource, sys
from dltrain.data.preparation import Preparation
folder = pathlib.Path(sys.argv[1])
made = Preparation.load(folder, json.loads((folder / "state.json").read_text()))
def stream(path, n=0):
    for chunk in made.read(str(path), 10_000):
        made.features(chunk, "big.csv", n)
        n += len(chunk)
    return n
stream(folder / "houses.csv")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(stream(folder / "big.csv"), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    said = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    rows, megabytes = map(int, said.stdout.split())
    assert rows == 60_000
    assert megabytes < 50 < (tmp_path / "big.csv").stat().st_size / 2**20


def test_a_column_knows_its_cell() -> None:
    column = Column("price", "number")
    series = pd.Series(["1", "", "x"], name="price")
    with pytest.raises(DataError, match=r"^a.csv row 8, column price: expected a number, got 'x'$"):
        column.values(series, Place("a.csv", np.array([3, 5, 7])))


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(houses(), tmp_path)
    whole = pd.concat(data.preparation.read(str(tmp_path / "houses.csv"), 64))
    for content in ((tmp_path / "houses.csv").read_bytes(), gzip.compress((tmp_path / "houses.csv").read_bytes())):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        pd.testing.assert_frame_equal(pd.concat(data.preparation.read("-", 64)), whole)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs" / "data").glob("*.yaml")), ids=lambda p: p.stem
)
def test_settings_are_the_arguments(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    module, name = settings.pop("_target_").rsplit(".", 1)
    if module not in ("dltrain.data.csv", "dltrain.data.bundled", "dltrain.data.xor"):
        pytest.skip("not a table")
    arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert set(settings) == set(arguments) - {"pipeline"}
    assert set(settings["split"]) == {"kind", "valid", "test", "by", "seed", "folds", "fold"}

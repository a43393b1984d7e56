"""Every kind of target, from a file to predictions for a file; and files and columns with awkward names."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import Trained, command, launch, predict, working
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error, r2_score
from sklearn.preprocessing import StandardScaler

ROWS = 240
FEATURES = ["a", "b", "c"]
SMALL = ("model.hidden=[16]", "batch_size=16", "epochs=6", "evaluate_every=6", "optimizer.lr=0.01")
# A convex problem, to its end: every row in every step, no weight decay.
CONVEX = ("model=linear", "batch_size=all", "optimizer=sgd", "epochs=400", "evaluate_every=400")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("targets")) as folder:
        yield folder


def table(rows: int = ROWS) -> tuple[pd.DataFrame, np.ndarray]:
    """Features and a number that follows from them."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, 3))
    return pd.DataFrame(x * [1, 50, 0.01] + [0, 1000, 3], columns=FEATURES).round(6), x @ [2, -1, 1]


def evaluated(run: Trained, source: str) -> dict[str, float]:
    """What `dltrain evaluate` writes for a file."""
    command("evaluate", f"run={run.name}", f"input={source}", f"out={run.name}.json")
    return dict(json.loads(Path(f"{run.name}.json").read_text()))


def test_one_number() -> None:
    frame, signal = table()
    frame.assign(price=1e6 + 3e5 * signal).to_csv("number.csv", index=False)
    run = launch("data=csv", "data.path=number.csv", "data.target=price", *SMALL)
    frame.to_csv("new.csv", index=False)  # the target may be absent
    found = predict(run, "new.csv")
    assert list(found.columns) == ["row", "prediction"]
    assert list(found["row"]) == list(range(ROWS))
    truth = pd.read_csv("number.csv")["price"]
    metrics = evaluated(run, "number.csv")
    assert metrics["rmse"] == pytest.approx(mean_squared_error(truth, found["prediction"]) ** 0.5, rel=1e-6)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(truth, found["prediction"]), rel=1e-6)
    assert metrics["r2"] == pytest.approx(r2_score(truth, found["prediction"]), rel=1e-6)
    assert metrics["r2"] > 0.9


def test_several_numbers() -> None:
    frame, signal = table()
    frame.assign(high=100 + signal, low=-signal / 1000).to_csv("two.csv", index=False)
    run = launch("data=csv", "data.path=two.csv", "data.target=[high,low]", *SMALL)
    found = predict(run, "two.csv")
    assert list(found.columns) == ["row", "high", "low"]
    truth, metrics = pd.read_csv("two.csv"), evaluated(run, "two.csv")
    for name in ("high", "low"):
        assert metrics[f"rmse/{name}"] == pytest.approx(mean_squared_error(truth[name], found[name]) ** 0.5, rel=1e-5)
        assert r2_score(truth[name], found[name]) > 0.9


def test_two_classes_in_words() -> None:
    frame, signal = table()
    frame.assign(sold=np.where(signal > 1, "Yes", "No")).to_csv("binary.csv", index=False)
    run = launch("data=csv", "data.path=binary.csv", "data.target=sold", *SMALL)
    found, truth = predict(run, "binary.csv"), pd.read_csv("binary.csv")["sold"]
    assert list(found.columns) == ["row", "prediction", "p_No", "p_Yes"]
    assert ((found["p_Yes"] > 0.5) == (found["prediction"] == "Yes")).all()
    np.testing.assert_allclose(found["p_No"] + found["p_Yes"], 1, atol=1e-6)
    metrics = evaluated(run, "binary.csv")
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, found["prediction"]))
    assert metrics["f1"] == pytest.approx(f1_score(truth, found["prediction"], pos_label="Yes"))
    assert metrics["accuracy"] > 0.9


def test_classes_with_spaces() -> None:
    frame, signal = table()
    names = np.array(["far below", "in between, so", "far above"])
    frame.assign(where=names[np.digitize(signal, [-1.5, 1.5])]).to_csv("classes.csv", index=False)
    run = launch("data=csv", "data.path=classes.csv", "data.target=where", *SMALL)
    found, truth = predict(run, "classes.csv"), pd.read_csv("classes.csv")["where"]
    columns = ["p_far above", "p_far below", "p_in between, so"]
    assert list(found.columns) == ["row", "prediction", *columns]
    assert ("p_" + found["prediction"] == found[columns].idxmax(axis=1)).all()
    np.testing.assert_allclose(found[columns].sum(axis=1), 1, atol=1e-6)
    assert evaluated(run, "classes.csv")["accuracy"] == pytest.approx(accuracy_score(truth, found["prediction"]))
    assert accuracy_score(truth, found["prediction"]) > 0.8


def test_several_yes_and_no_columns() -> None:
    frame, signal = table()
    frame.assign(big=np.where(signal > 0, "yes", "no"), odd=(frame["a"] > 0.5).astype(int)).to_csv("labels.csv")
    run = launch("data=csv", "data.path=labels.csv", "data.target=[big,odd]", "data.ignore=[Unnamed: 0]", *SMALL)
    found, truth = predict(run, "labels.csv"), pd.read_csv("labels.csv")
    assert list(found.columns) == ["row", "big", "odd", "p_big", "p_odd"]
    metrics = evaluated(run, "labels.csv")
    for name, yes in (("big", truth["big"] == "yes"), ("odd", truth["odd"] == 1)):
        assert ((found[f"p_{name}"] > 0.5) == (found[name] == 1)).all()
        assert metrics[f"f1/{name}"] == pytest.approx(f1_score(yes, found[name] == 1))
        assert metrics[f"f1/{name}"] > 0.85


def test_a_linear_model_is_linear_regression() -> None:
    frame, signal = table()
    noise = np.random.default_rng(1).normal(size=ROWS)
    frame.assign(y=5 + 7 * (signal + noise)).to_csv("linear.csv", index=False)
    words = ("data=csv", "data.path=linear.csv", "data.target=y", "optimizer.lr=0.1")
    run = launch(*words, *CONVEX)
    y = pd.read_csv("linear.csv")["y"]
    train = run.data.train["row"].numpy()
    reference = LinearRegression().fit(frame.iloc[train], y.iloc[train]).predict(frame)
    np.testing.assert_allclose(predict(run, "linear.csv")["prediction"], reference, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_model_is_logistic_regression(classes: int) -> None:
    frame, signal = table()
    noisy = signal + np.random.default_rng(2).logistic(size=ROWS)
    label = np.digitize(noisy, np.quantile(noisy, np.arange(1, classes) / classes))
    frame.assign(y=np.array(list("uvw"))[label]).to_csv(f"logistic{classes}.csv", index=False)
    words = ("data=csv", f"data.path=logistic{classes}.csv", "data.target=y", "optimizer.lr=0.5", "epochs=1500")
    run = launch(*CONVEX, *words, "evaluate_every=1500")
    train = run.data.train["row"].numpy()
    scaler = StandardScaler().fit(frame.iloc[train])
    reference = LogisticRegression(C=1e9, tol=1e-8, max_iter=2000)
    reference.fit(scaler.transform(frame.iloc[train]), pd.read_csv(f"logistic{classes}.csv")["y"].iloc[train])
    expected = reference.predict_proba(scaler.transform(frame))
    found = predict(run, f"logistic{classes}.csv").filter(like="p_").to_numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert expected.std() > 0.2


def test_columns_that_bear_names_of_ours() -> None:
    frame, signal = table()
    frame.columns = ["self", "loss", "features"]
    ids = [f"{k:04d}" for k in range(ROWS)]
    frame = frame.assign(row=ids, prediction=ids, weight=np.arange(ROWS) % 5, target=signal)
    frame.to_csv("names.csv", index=False)
    run = launch("data=csv", "data.path=names.csv", "data.target=target", "data.id=[row,prediction]", *SMALL)
    found = predict(run, "names.csv")
    assert list(found.columns) == ["row", "id_row", "id_prediction", "prediction"]
    assert list(found["row"]) == list(range(ROWS))
    text = (run.folder.parent / f"{run.name}.csv").read_text().splitlines()
    assert text[1].startswith("0,0000,0000,")
    assert [c["name"] for c in run.read("data.json")["columns"]][:3] == ["self", "loss", "features"]
    assert r2_score(signal, found["prediction"]) > 0.9


@pytest.mark.parametrize(
    "target", ["self", "loss", "row", "prediction", "Preis_€", "年", "price=2", "a b", "x.y", "_target_", "$p", "[z]"]
)
def test_a_target_of_any_name(target: str) -> None:
    frame, frame[target] = table(80)
    frame.to_csv("any.csv", index=False)
    typed = f"[{target}]" if target == "[z]" else target  # brackets around the whole make a list
    run = launch("data=csv", "data.path=any.csv", f"data.target={typed}", "epochs=1", "model=linear")
    assert run.read("data.json")["target"]["names"] == [target]
    assert list(predict(run, "any.csv").columns) == ["row", "prediction"]


@pytest.mark.parametrize(("target", "column"), [("self", "self"), ("row", "prediction_row"), ("年", "年")])
def test_several_targets_of_any_name(target: str, column: str) -> None:
    frame, frame[target] = table(80)
    frame.assign(other=-frame[target]).to_csv("both.csv", index=False)
    run = launch("data=csv", "data.path=both.csv", f"data.target=[{target},other]", "epochs=1", "model=linear")
    found = predict(run, "both.csv")
    assert list(found.columns) == ["row", column, "other"]
    assert list(found["row"]) == list(range(80))


@pytest.mark.parametrize(
    "name",
    [
        "houses (1).csv",
        "été.csv",
        "[x].csv",
        "a,b.csv",
        "a=b.csv",
        "it's.csv",
        "${x}.csv",
        "年 %s.csv",
        "x.tsv",
        "z.csv.gz",
    ],
)
def test_a_file_of_any_name(name: str) -> None:
    frame, signal = table(80)
    text = frame.assign(y=signal).to_csv(index=False, sep="\t" if name.endswith("tsv") else ",")
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    words = ["data=csv", f"data.path={name}", "data.target=y", "epochs=1", "model=linear"]
    run = launch(*words)
    assert run.read("data.json")["source"] == name
    assert len(predict(run, name)) == 80
    assert "is finished" in launch(*words, name=run.name).printed


def test_a_file_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    frame, signal = table(80)
    frame.assign(y=signal).to_csv(tmp_path / "x.csv", index=False)
    run = launch("data=csv", "data.path=~/x.csv", "data.target=y", "epochs=1", "model=linear")
    command("predict", f"run={run.name}", "input=~/x.csv", "out=~/out.csv")
    assert len(pd.read_csv(tmp_path / "out.csv")) == 80


def test_kinds_of_columns_with_awkward_names() -> None:
    frame, signal = table(80)
    zips = np.array([10115, 20095, 80331, 50667])[np.arange(80) % 4]
    frame = frame.rename(columns={"a": "sepal length (cm)", "b": "Preis_€"}).assign(zip=zips, y=signal)
    frame.to_csv("kinds.csv", index=False)
    words = ("data=csv", "data.path=kinds.csv", "data.target=y", "epochs=1", "model=linear")
    run = launch(
        *words, "data.columns.zip=category", "data.columns.sepal length (cm)=number", "data.columns.Preis_€=number"
    )
    kinds = {column["name"]: column["kind"] for column in run.read("data.json")["columns"]}
    assert kinds == {"sepal length (cm)": "number", "Preis_€": "number", "c": "number", "zip": "category"}
    assert run.data.preparation.shape_in[0] >= 3 + 4
    assert launch(*words, "data.columns.zip=number").data.preparation.shape_in == (4,)
    frame.loc[0, "zip"] = 99999  # not seen in training
    frame.to_csv("unseen.csv", index=False)
    assert predict(run, "unseen.csv")["prediction"].notna().all()


def images(rows: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with a bright bar that lies or stands, anywhere: no pixel alone tells which."""
    draw = np.random.default_rng(3)
    x, stands = draw.normal(0, 0.3, size=(rows, side, side)), draw.integers(0, 2, rows)
    for image, standing, place in zip(x, stands, draw.integers(0, side, rows), strict=True):
        (image.T if standing else image)[place] += 1.5
    return x.round(3), stands


def test_columns_folded_into_images_for_a_cnn() -> None:
    x, stands = images(200, 6)
    frame = pd.DataFrame(x.reshape(200, -1), columns=[f"pixel{k}" for k in range(36)])
    frame.assign(bar=np.where(stands, "standing", "lying")).to_csv("images.csv", index=False)
    words = ("data=csv", "data.path=images.csv", "data.target=bar", "data.shape=[1,6,6]", "model=cnn", "epochs=10")
    run = launch(*words, "model.channels=[16,16]", "optimizer.lr=0.01", "batch_size=16", "pipeline=none")
    np.testing.assert_array_equal(run.data.train["features"][0, 0], x[run.data.train["row"][0]].astype(np.float32))
    found = predict(run, "images.csv")["prediction"]
    unseen = np.setdiff1d(np.arange(200), run.data.train["row"])
    assert (found == np.where(stands, "standing", "lying"))[unseen].mean() > 0.9


def test_columns_folded_into_signals_of_two_channels() -> None:
    draw = np.random.default_rng(4)
    lag = draw.integers(0, 2, 200)  # the second channel follows the first, or goes against it
    first = draw.normal(size=(200, 12))
    second = np.where(lag[:, None], first, -first) + 0.2 * draw.normal(size=(200, 12))
    columns = [f"{channel}{t}" for channel in "pq" for t in range(12)]
    frame = pd.DataFrame(np.concatenate([first, second], axis=1).round(4), columns=columns)
    frame.assign(follows=lag).to_csv("signals.csv", index=False)
    words = ("data=csv", "data.path=signals.csv", "data.target=follows", "data.shape=[2,12]", "model=cnn", "epochs=8")
    run = launch(*words, "model.channels=[16,16]", "optimizer.lr=0.01", "batch_size=16")
    assert run.data.preparation.shape_in == (2, 12)
    assert [m.weight.shape[1] for m in run.network.modules() if type(m).__name__ == "Conv1d"] == [2, 16]
    found = predict(run, "signals.csv")["prediction"].to_numpy()
    unseen = np.setdiff1d(np.arange(200), run.data.train["row"])
    assert (found == lag)[unseen].mean() > 0.9

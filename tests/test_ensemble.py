"""`dltrain ensemble`: one model of several runs, against weights found by scikit-learn, scipy and a plain loop."""

import contextlib
import io
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from importlib import util
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from faults.test_hostile import VALUES, places, with_text
from runs import Trained, command, launch, predict, working
from scipy.optimize import nnls
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_squared_error

import dltrain
from dltrain import cli
from dltrain.checkpoint import write_manifest
from dltrain.commands import parse_known
from dltrain.commands.ensemble import Options
from dltrain.compose import compose
from dltrain.data import Data
from dltrain.data.target import Target
from dltrain.ensembles.weighing import crossed, greedy, quick, stack
from dltrain.errors import ConfigError, UserError
from dltrain.metrics import score

ROWS = 300
SPLIT = ("data.split.seed=0", "trainer.threads=1", "trainer.save_every=1h")
TRIALS = (  # they learn unequally well, and do not all read the same features
    ("seed=1", "model.hidden=[16]", "optimizer.lr=0.01", "epochs=6"),
    ("seed=2", "model.hidden=[4]", "optimizer.lr=0.01", "epochs=3"),
    ("seed=3", "model.hidden=[8,8]", "optimizer.lr=0.01", "epochs=5", "pipeline=pca", "pipeline.pca.n_components=2"),
    ("seed=4", "model=linear", "optimizer.lr=0.02", "epochs=4"),
)
KINDS: dict[str, tuple[str, ...]] = {  # of targets, and of losses that predict one number of several
    "number": (),
    "log": ("data.target_transform=log",),
    "quantile": ("loss=quantile",),
    "gaussian": ("loss=gaussian_nll",),
    "numbers": (),
    "binary": (),
    "threshold": ("task.threshold=auto",),
    "classes": (),
    "labels": (),
}
TARGETS = dict.fromkeys(KINDS, "y") | {"numbers": "[y,z]", "labels": "[y,z]"}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("ensemble")) as folder:
        yield folder


def write(kind: str) -> Path:
    """A file of rows whose target has a kind."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(ROWS, 4))
    signal = 2 * x[:, 0] - x[:, 1] + np.abs(x[:, 2]) + 0.5 * draw.normal(size=ROWS)
    words = {
        "number": {"y": 100 + 20 * signal},
        "log": {"y": np.exp(signal / 2)},
        "numbers": {"y": 1e4 * signal, "z": x[:, 2] - signal},
        "binary": {"y": np.where(signal > 1, "yes", "no")},
        "classes": {"y": np.array(["low", "middle", "high"])[np.digitize(signal, [-0.5, 1.5])]},
        "labels": {"y": np.where(x[:, 0] > 0, "yes", "no"), "z": np.where(signal > 1, "yes", "no")},
    }
    words |= {"quantile": words["number"], "gaussian": words["number"], "threshold": words["binary"]}
    path = Path(f"{kind}.csv")
    frame = pd.DataFrame(x * [1, 10, 0.1, 1], columns=list("abcd")).assign(**words[kind])
    frame.insert(0, "client", [f"c{row}" for row in range(ROWS)])
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def trained() -> Callable[[str], list[Trained]]:
    """Four runs of a kind of target, trained once."""
    found: dict[str, list[Trained]] = {}

    def of(kind: str) -> list[Trained]:
        if kind not in found:
            words = ["data=csv", f"data.path={write(kind)}", f"data.target={TARGETS[kind]}", "data.id=client"]
            each = enumerate(TRIALS)
            found[kind] = [launch(*words, *SPLIT, *KINDS[kind], *more, name=f"{kind}-{n}") for n, more in each]
        return found[kind]

    return of


def made(*words: str, name: str) -> Trained:
    return Trained(Path("outputs") / name, command("ensemble", *words, f"name={name}"))


def refused(*words: str, code: int = 2) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        assert cli.run([*words]) == code
    assert said.getvalue().count("\n") == 1
    return said.getvalue().removeprefix("dltrain: ").rstrip()


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of probabilities if there are some, else of predictions."""
    chosen = [name for name in frame if name.startswith("p_")]
    return frame[chosen] if chosen else frame.drop(columns=["row", "client"])


def valid_rows(run: Trained) -> np.ndarray:
    rows: np.ndarray = run.data.valid["row"].numpy()
    return rows


# Predictions.


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_is_the_mean_of_what_its_members_predict(kind: str, trained: Callable[[str], list[Trained]]) -> None:
    runs = trained(kind)
    both = made(f"runs={kind}-*", "method=average", name=f"mean-{kind}")
    each, found = [predict(run, f"{kind}.csv") for run in runs], predict(both, f"{kind}.csv")
    assert found.columns.tolist() == each[0].columns.tolist()
    assert found["client"].tolist() == [f"c{row}" for row in range(ROWS)]
    mean = sum(numbers(one) for one in each) / len(each)
    pd.testing.assert_frame_equal(numbers(found), mean, rtol=1e-5, atol=1e-6)
    assert all((numbers(one) - numbers(found)).abs().to_numpy().max() > 1e-3 for one in each), "members differ"
    assert list(both.result["members"].values()) == [0.25] * 4
    command("evaluate", f"run={both.name}", f"out={both.name}.json")
    metrics = json.loads(Path(f"{both.name}.json").read_text())
    assert both.result["test"].items() <= metrics.items()
    assert metrics["rows"] == len(both_test(runs))


def both_test(runs: list[Trained]) -> np.ndarray:
    rows: np.ndarray = runs[0].data.test["row"].numpy()
    return rows


@pytest.mark.parametrize("kind", ["number", "numbers", "binary", "classes", "threshold", "labels"])
def test_its_metrics_are_those_of_its_predictions(kind: str, trained: Callable[[str], list[Trained]]) -> None:
    runs = trained(kind)
    both, truth = made(f"runs={kind}-*", name=f"greedy-{kind}"), pd.read_csv(f"{kind}.csv")
    rows = both_test(runs)
    found, truth = predict(both, f"{kind}.csv").iloc[rows], truth.iloc[rows]
    test = both.result["test"]
    if kind in ("number", "numbers"):
        values = numbers(found).to_numpy()
        columns = truth[["y", "z"][: values.shape[1]]].to_numpy()
        assert test["rmse"] == pytest.approx(
            np.mean(mean_squared_error(columns, values, multioutput="raw_values") ** 0.5)
        )
    elif kind == "labels":
        assert test["f1"] == pytest.approx(
            np.mean([f1_score(truth[name] == "yes", found[name]) for name in ("y", "z")])
        )
    else:
        assert test["accuracy"] == pytest.approx(accuracy_score(truth["y"], found["prediction"]))
        labels = [name.removeprefix("p_") for name in numbers(found)]
        assert test["log_loss"] == pytest.approx(one_loss(truth["y"], numbers(found).to_numpy(), labels), rel=1e-4)
    if kind == "threshold":
        threshold = both.model.task.state_dict()["members.0.threshold"].item()
        assert threshold != 0.5
        assert ((found["p_yes"] > threshold) == (found["prediction"] == "yes")).all()


def one_loss(truth: pd.Series, p: np.ndarray, labels: list[str]) -> float:
    order = np.argsort(labels)
    return float(log_loss(truth, exactly(p)[:, order], labels=sorted(labels)))


def exactly(p: np.ndarray) -> np.ndarray:
    """Probabilities in float64 that sum to one, as scikit-learn wants them."""
    return p.astype(np.float64) / p.sum(1, keepdims=True, dtype=np.float64)


# How members are weighed.


def of_rows(runs: list[Trained], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """What runs predict of their validation rows (runs, rows, columns), and the truth (rows, columns), from files."""
    rows = valid_rows(runs[0])
    frames = [numbers(predict(run, f"{kind}.csv")).iloc[rows] for run in runs]
    truth = pd.read_csv(f"{kind}.csv").iloc[rows]
    if kind == "classes":
        labels = [name.removeprefix("p_") for name in frames[0]]
        columns = np.array([[float(word == label) for label in labels] for word in truth["y"]])
    else:
        columns = truth[["y", "z"] if kind == "numbers" else ["y"]].to_numpy()
    return np.stack([frame.to_numpy(np.float64) for frame in frames]), columns


def plainly_selected(p: np.ndarray, cost: Callable[[np.ndarray], float]) -> dict[int, float]:
    """Caruana's forward selection with replacement and sorted initialisation, one model at a time."""

    def first_least(costs: list[float]) -> int:
        return next(k for k, one in enumerate(costs) if one <= min(costs) * (1 + 1e-9))

    order = sorted(range(len(p)), key=lambda k: cost(p[k]))
    prefixes = [order[: n + 1] for n in range(len(p))]
    taken = prefixes[first_least([cost(np.mean(p[some], axis=0)) for some in prefixes])]
    history = [taken]
    costs = [cost(np.mean(p[taken], axis=0))]
    while len(taken) < 50 and len(costs) - first_least(costs) <= 5:
        tried = [[*taken, k] for k in range(len(p))]
        taken = tried[first_least([cost(np.mean(p[some], axis=0)) for some in tried])]
        history.append(taken)
        costs.append(cost(np.mean(p[taken], axis=0)))
    best = history[first_least(costs)]
    return {k: best.count(k) / len(best) for k in set(best)}


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_greedy_is_forward_selection_by_the_monitor(kind: str, trained: Callable[[str], list[Trained]]) -> None:
    runs = trained(kind)
    both = made(f"runs={kind}-*", "method=greedy", name=f"forward-{kind}")
    predictions, truth = of_rows(runs, kind)
    draw, weights = np.random.default_rng(0), dict.fromkeys(range(len(runs)), 0.0)
    for _ in range(20):
        rows = draw.choice(len(truth), len(truth))

        def cost(p: np.ndarray, rows: np.ndarray = rows) -> float:
            if kind == "number":
                return float(mean_squared_error(truth[rows], p[rows]) ** 0.5)
            return float(log_loss(truth[rows].argmax(1), exactly(p[rows]), labels=[0, 1, 2]))

        for k, share in plainly_selected(predictions, cost).items():
            weights[k] += share / 20
    assert {runs[k].name: pytest.approx(w, abs=1e-6) for k, w in weights.items() if w} == both.result["members"]
    assert [*both.result["members"].values()] == sorted(both.result["members"].values(), reverse=True)
    assert both.result["monitor"] == ("rmse" if kind == "number" else "log_loss")


@pytest.mark.parametrize("kind", ["number", "numbers", "classes"])
def test_stack_is_least_squares_without_negative_weights(kind: str, trained: Callable[[str], list[Trained]]) -> None:
    runs = trained(kind)
    both = made(f"runs={kind}-*", "method=stack", name=f"stack-{kind}")
    predictions, truth = of_rows(runs, kind)
    scale = truth.std(0)
    x, y = (predictions / scale).reshape(len(runs), -1).T, (truth / scale).ravel()
    fitted = LinearRegression(positive=True, fit_intercept=False).fit(x, y).coef_
    np.testing.assert_allclose(fitted, nnls(x, y)[0], atol=1e-8)
    expected = {run.name: weight for run, weight in zip(runs, fitted / fitted.sum(), strict=True) if weight}
    assert both.result["members"].keys() == expected.keys()
    for name, weight in expected.items():
        assert both.result["members"][name] == pytest.approx(weight, abs=1e-4)


def test_rows_have_no_say_in_what_they_are_scored_by(trained: Callable[[str], list[Trained]]) -> None:
    """Validation metrics are of rows weighed by the others, as a loop of scikit-learn's finds them."""
    runs = trained("number")
    both = made("runs=number-*", "method=stack", name="crossed")
    predictions, truth = of_rows(runs, "number")
    side = np.random.default_rng(0).permutation(len(truth)) % 5
    found = np.empty_like(truth)
    for fold in range(5):
        x, y = predictions[:, side != fold, 0].T / truth.std(), truth[side != fold, 0] / truth.std()
        weights = LinearRegression(positive=True, fit_intercept=False).fit(x, y).coef_
        found[side == fold, 0] = weights @ predictions[:, side == fold, 0] / weights.sum()
    assert both.result["valid"]["rmse"] == pytest.approx(mean_squared_error(truth, found) ** 0.5, rel=1e-5)


def test_what_is_good_by_chance_gains_nothing_on_rows_that_did_not_choose_it() -> None:
    """Forty coins on thirty rows: chosen by all rows they look better than a half, by others they do not."""
    draw = np.random.default_rng(1)
    truth = np.eye(2)[draw.integers(0, 2, 30)]
    p = draw.uniform(0.05, 0.95, (40, 30, 1))
    p = np.concatenate([1 - p, p], 2)
    cost = quick("log_loss", truth, "binary")
    assert cost is not None
    every = np.arange(30)
    seen = np.tensordot(greedy(p, truth, cost, every), p, 1)
    unseen = crossed("greedy", p, truth, cost)
    assert cost(seen[None], every)[0] < 0.6
    assert cost(unseen[None], every)[0] > 0.68


QUICK = {"number": ("rmse", "mae"), "classes": ("log_loss", "accuracy"), "binary": ("log_loss",), "multilabel": ("f1",)}


@pytest.mark.parametrize(("kind", "metric"), [(kind, metric) for kind, metrics in QUICK.items() for metric in metrics])
def test_costs_that_are_quick_are_the_metrics(kind: str, metric: str) -> None:
    draw = np.random.default_rng(0)
    rows, codes = draw.choice(50, 30), draw.integers(0, 3, 50)
    if kind == "number":
        values, truth = draw.normal(size=(3, 50, 2)), draw.normal(size=(50, 2))
    elif kind == "multilabel":
        values, truth = draw.uniform(size=(3, 50, 2)), draw.integers(0, 2, (50, 2)).astype(float)
    else:
        n = 3 if kind == "classes" else 2
        values, truth = draw.dirichlet([0.3] * n, (3, 50)), np.eye(n)[codes % n]
    cost = quick(metric, truth, kind)
    assert cost is not None
    one = Target(kind, ("y", "z")[: 1 + (kind in ("number", "multilabel"))], ("a", "b", "c"), mean=(0.0,), scale=(1.0,))
    p, known = torch.from_numpy(values[:, rows]).float(), torch.from_numpy(truth[rows])
    p, known = (p[..., 1:], known[:, 1:]) if kind == "binary" else (p, known)
    known = known.argmax(1) if kind == "classes" else known
    each = [score(one, each, known)[metric] for each in p]
    np.testing.assert_allclose(np.abs(cost(values, rows)), each, rtol=1e-4)
    assert np.sign(cost(values, rows)[0]) == (-1 if metric in ("accuracy", "f1") else 1)
    assert quick("auroc", truth, kind) is None


def test_a_metric_of_ones_own_is_gained_by(trained: Callable[[str], list[Trained]]) -> None:
    runs = trained("classes")
    both = made("runs=classes-*", "metric=valid/auroc", name="by-auroc")
    assert (both.result["monitor"], both.result["direction"]) == ("auroc", "max")
    assert both.result["members"].keys() <= {run.name for run in runs}
    assert max(runs, key=lambda run: run.result["valid"]["auroc"]).name in both.result["members"]


def test_models_of_no_use_at_all_are_averaged() -> None:
    truth = np.array([[1.0], [2.0]])
    weights = stack(np.array([-truth, -2 * truth]), truth, lambda p, rows: p[:, 0, 0], np.arange(2))
    assert weights.tolist() == [0.5, 0.5]


# A run like any other.


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_runs_give_the_same_bits(trained: Callable[[str], list[Trained]]) -> None:
    runs = [run.name for run in trained("classes")]
    said = command("ensemble", f"runs={','.join(runs)}")
    name = said.split()[0]
    assert name.startswith("csv-ensemble-")
    first = content(Path("outputs") / name / "model")
    again = command("ensemble", f"runs=[{','.join(reversed(runs))}]")
    assert again.startswith(f"{name} is finished")
    command("ensemble", "runs=classes-*", "fresh=true")
    assert content(Path("outputs") / name / "model") == first
    other = command("ensemble", f"runs={','.join(runs)}", "method=stack").split()[0]
    assert other != name
    assert content(Path("outputs") / other / "model") != first


def test_it_needs_its_members_no_more(trained: Callable[[str], list[Trained]], tmp_path: Path) -> None:
    for run in trained("number"):
        shutil.copytree(run.folder, run.folder.with_name(run.name.replace("number", "gone")))
    both = made("runs=gone-*", "method=average", name="alone")
    before = predict(both, "number.csv")
    for k in range(4):
        shutil.rmtree(both.folder.with_name(f"gone-{k}"))
    pd.testing.assert_frame_equal(predict(both, "number.csv"), before)
    command("evaluate", "run=alone")
    command("pack", "run=alone", f"out={tmp_path / 'alone.tar.gz'}")
    with tarfile.open(tmp_path / "alone.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    frame = dltrain.load(str(tmp_path / "alone")).predict(pd.read_csv("number.csv"))
    np.testing.assert_allclose(frame["prediction"], before["prediction"], rtol=1e-6)
    assert not any(path.suffix in (".pkl", ".pt", ".joblib") for path in both.folder.rglob("*"))


def test_a_change_of_any_file_is_noticed(trained: Callable[[str], list[Trained]]) -> None:
    trained("number")
    both = made("runs=number-*", "method=average", name="damaged")
    files = [path for path in (both.folder / "model").rglob("*") if path.suffix in (".skops", ".safetensors")]
    assert len(files) == 3, "two ways to prepare rows, and weights"
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "run must have an undamaged model" in refused("predict", "run=damaged", "input=number.csv", "out=x.csv")
        path.write_bytes(whole)
    predict(both, "number.csv")


def test_it_is_listed_and_compared(trained: Callable[[str], list[Trained]]) -> None:
    trained("binary")
    both = made("runs=binary-*", name="together")
    line = next(line for line in command("list", "runs").splitlines() if line.startswith("together"))
    assert line.split()[1:4] == ["finished", "-", "log_loss"]
    said = command("compare", "runs=together,binary-*")
    assert "ensemble" in said
    assert len(said.splitlines()) >= 6
    recorded = yaml.safe_load((both.folder / "config.yaml").read_text())
    assert recorded["model"]["runs"] == [f"binary-{k}" for k in range(4)]
    assert recorded["optimizer"]["lr"] is None, "they differ in it"
    assert recorded["batch_size"] == 64
    again = command("ensemble", "runs=binary-*,together")
    assert again.startswith("1 left out: not finished, or an ensemble")


def test_two_columns_or_none_of_the_target_are_read_as_by_its_members(
    trained: Callable[[str], list[Trained]],
) -> None:
    """A new file has gaps, categories as numbers, other columns and another order."""
    runs, both = trained("classes"), made("runs=classes-*", "method=average", name="gaps")
    frame = pd.read_csv("classes.csv", dtype=str).drop(columns="y").head(20)[["d", "b", "client", "a", "c"]]
    frame.loc[3, "a"] = ""
    frame["more"] = "words"
    frame.to_csv("holes.csv", index=False)
    mean = sum(numbers(predict(run, "holes.csv")) for run in runs) / len(runs)
    pd.testing.assert_frame_equal(numbers(predict(both, "holes.csv")), mean, rtol=1e-5, atol=1e-6)


# Folds.


def folded(kind: str, n: int, *words: str) -> list[Data]:
    """The data of runs of each fold."""
    write(kind)
    base = ["data=csv", f"data.path={kind}.csv", f"data.target={TARGETS[kind]}", "data.id=client", "model=linear"]
    each = ([*base, "epochs=1", *SPLIT, f"data.split.folds={n}", f"data.split.fold={k}", *words] for k in range(n))
    return [launch(*typed).data for typed in each]


@pytest.mark.parametrize(("kind", "words"), [("number", ()), ("classes", ("data.split.test=0.2",))])
def test_every_row_but_those_of_the_test_is_in_one_fold(kind: str, words: tuple[str, ...]) -> None:
    each = folded(kind, 4, *words)
    test = each[0].test["row"]
    assert all(torch.equal(data.test["row"], test) for data in each)
    assert len(test) == (60 if words else 45)
    folds = [set(data.valid["row"].tolist()) for data in each]
    assert not any(one & other for one, other in combinations(folds, 2))
    assert set().union(*folds) | set(test.tolist()) == set(range(ROWS))
    assert {len(fold) for fold in folds} <= {63, 64, 60}
    for data, fold in zip(each, folds, strict=True):
        assert set(data.train["row"].tolist()) == set(range(ROWS)) - fold - set(test.tolist())
    if kind == "classes":
        shares = np.array([np.bincount(data.valid["target"], minlength=3) for data in each])
        assert (shares.max(0) - shares.min(0) <= 1).all(), "stratified"


def test_no_group_is_in_two_folds() -> None:
    frame = pd.read_csv(write("number")).assign(house=np.arange(ROWS) % 17)
    frame.to_csv("houses.csv", index=False)
    more = ("data.path=houses.csv", "data.ignore=[client]", "data.id=[]", "data.split.kind=group")
    each = folded("number", 3, *more, "data.split.by=house")
    house = frame["house"].to_numpy()
    sides = [{*house[data.valid["row"]]} for data in each] + [{*house[each[0].test["row"]]}]
    assert not any(one & other for one, other in combinations(sides, 2))
    assert set().union(*sides) == set(range(17))
    sizes = [len(data.valid["row"]) for data in each]
    assert max(sizes) - min(sizes) <= 2 * 18
    said = refused(
        "data=csv", "data.target=y", *more, "data.split.by=house", "data.split.folds=20", "data.split.fold=0", code=65
    )
    assert said == "houses.csv, column house: 14 groups cannot be cut into 20 folds"


@pytest.mark.parametrize("kind", ["number", "classes", "binary"])
def test_folds_are_trained_and_averaged(kind: str) -> None:
    write(kind)
    words = ["data=csv", f"data.path={kind}.csv", "data.target=y", "data.id=client", "model.hidden=[8]", "epochs=4"]
    words += ["optimizer.lr=0.01", *SPLIT]
    first = launch(*words, "data.split.folds=3", "data.split.fold=0")
    first.folder.rename(first.folder.with_name(first_name := f"csv-mlp-{hash_of(first)}"))
    both = made("folds=3", *words, name=f"folds-{kind}")
    assert f"{first_name} is finished" in both.printed, "what has been trained is not trained again"
    runs = [Trained(Path("outputs") / name) for name in both.result["members"]]
    assert len(runs) == 3
    mean = sum(numbers(predict(run, f"{kind}.csv")) for run in runs) / 3
    pd.testing.assert_frame_equal(numbers(predict(both, f"{kind}.csv")), mean, rtol=1e-5, atol=1e-6)
    truth = pd.read_csv(f"{kind}.csv")["y"]
    known = np.concatenate([valid_rows(run) for run in runs])
    apart = pd.concat([predict(run, f"{kind}.csv").iloc[valid_rows(run)] for run in runs])
    assert sorted(known.tolist()) == sorted(set(range(ROWS)) - set(both_test(runs).tolist()))
    if kind == "number":
        expected = mean_squared_error(truth.iloc[known], apart["prediction"]) ** 0.5
        assert both.result["valid"]["rmse"] == pytest.approx(expected, rel=1e-5)
    else:
        expected = accuracy_score(truth.iloc[known], apart["prediction"])
        assert both.result["valid"]["accuracy"] == pytest.approx(expected)
    command("evaluate", f"run={both.name}")
    assert command("ensemble", "folds=3", *words, f"name={both.name}").count("is finished") == 4


def hash_of(run: Trained) -> str:
    """The eight digits of its settings that a run is named by."""
    return str(yaml.safe_load((run.folder / "config.yaml").read_text())["hash"])[:8]


# What is refused.


REFUSED = [
    ([], "runs must be given, or folds in its place, got []"),
    (["runs=number-*", "folds=3"], "runs must be given, or folds in its place, got [number-*]"),
    (["runs=number-0"], "runs must be two finished runs or more, got [number-0]"),
    (["runs=number-0,number-0"], "runs must be two finished runs or more, got [number-0]"),
    (["runs=nobody-*"], "runs must be patterns that match a run in outputs, got nobody-*"),
    (["runs=nobody"], "runs must be a run or a sweep in outputs, got nobody"),
    (
        ["runs=number-*", "method=gready"],
        "method must be one of greedy, average, stack, got gready; did you mean greedy?",
    ),
    (["runs=number-*", "metric=accuracy"], "metric must be a metric of numbers, got accuracy"),
    (["runs=number-*", "metric=mea"], "metric must be a metric of numbers, got mea; did you mean mae? (loss, mae, r"),
    (["runs=number-*", "epochs=3"], "epochs: no such setting"),
    (["folds=1"], "folds must be a whole number of at least 2, got 1"),
    (["folds=two"], "folds must be a whole number, got two"),
    (["folds=3", "method=stack"], "method must be average of folds, which share no validation row, got stack"),
    (["folds=3", "metric=mae"], "metric must be left out with folds, which all count the same, got mae"),
    (
        ["folds=3", "data=iris", "data.split.kind=time"],
        "data.split.folds must be null where rows are split by time, got 3",
    ),
    (["folds=3", "modle=mlp"], "modle: no such setting"),
    (["folds=3", "data=iris", "data.split.fold=1"], "data.split.fold must be left out with folds, got 1"),
    (["folds=3", "data=iris", "trainer=ddp", "trainer.nodes=2"], "trainer.nodes must be 1 with folds, got 2"),
    (["runs=number-0,numbers-0"], "runs must have the same rows in every split, got number-0 and numbers-0, whose "),
    (["runs=number-*", "name=.."], "name must be letters, digits, '.', '_' and '-', beginning with a letter or digit"),
    (["runs=number-*", "name=x/y"], "name must be letters, digits, '.', '_' and '-', beginning with a letter or digit"),
    (["folds=3", "data=iris", "name=a b"], "name must be letters, digits, '.', '_' and '-', beginning with a letter"),
    (["runs=number-*", "name=number-0"], "name must be free or of the same settings, got number-0"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_is_refused(words: list[str], sentence: str, trained: Callable[[str], list[Trained]]) -> None:
    trained("number")
    trained("numbers")
    before = {path.name for path in Path("outputs").iterdir()}
    assert refused("ensemble", *words).startswith(sentence)
    assert {path.name for path in Path("outputs").iterdir()} == before


def test_two_ensembles(trained: Callable[[str], list[Trained]]) -> None:
    trained("number")
    made("runs=number-*", "method=average", name="alike")
    made("runs=number-*", name="picked")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.run(["diff", "alike", "picked"]) == 1
        assert cli.run(["diff", "number-0", "picked"]) == 1
    assert "is not known: alike and picked have no fingerprint: ensembles are not trained\n" in said.getvalue()
    assert "is not known: picked has no fingerprint: ensembles are not trained\n" in said.getvalue()


def test_a_name_of_another_ensemble_shows_settings_as_they_are_typed(
    trained: Callable[[str], list[Trained]],
) -> None:
    trained("number")
    words = ("data=csv", "data.path=number.csv", "data.target=y", "data.id=client", "model=linear", "epochs=1")
    command("ensemble", "folds=2", *words, "name=folded")
    said = refused("ensemble", "runs=number-*", "name=folded")
    assert said.startswith("name must be free or of the same settings, got folded, a run in which ")
    assert "null" in said
    assert "None" not in said


def test_runs_of_other_rows_are_refused(trained: Callable[[str], list[Trained]]) -> None:
    trained("number")
    words = ("data=csv", "data.path=number.csv", "data.target=y", "data.id=client", "model=linear", "epochs=1")
    launch(*words, "seed=5", name="elsewhere")
    assert refused("ensemble", "runs=number-0,elsewhere") == (
        "runs must have the same rows in every split, got elsewhere and number-0, whose data.split.seed is 5 and 0;"
        " data.split.seed=0 gives runs of every seed the same"
    )
    launch(*words, *SPLIT, "monitor=mae", name="by-mae")
    assert refused("ensemble", "runs=number-0,by-mae").startswith(
        "metric must be one of mae, rmse for runs that went by several, got null"
    )
    command("ensemble", "runs=number-0,by-mae", "metric=r2")
    frame = pd.read_csv("number.csv")
    frame.assign(a=frame["a"] + 1).to_csv("moved.csv", index=False)
    launch("data=csv", "data.path=moved.csv", *words[2:], *SPLIT, name="moved")
    assert "whose data.content is [" in refused("ensemble", "runs=number-0,moved")
    frame.head(200).to_csv("moved.csv", index=False)
    launch("data=csv", "data.path=moved.csv", *words[2:], *SPLIT, name="moved-too")
    frame.to_csv("moved.csv", index=False)
    shutil.copytree("outputs/moved-too", "outputs/moved-three")
    said = refused("ensemble", "runs=moved-t*", code=65)
    assert said.endswith("moved.csv: has changed since run moved-three was trained")


def test_tasks_whose_predictions_have_no_mean_are_refused() -> None:
    for k in range(2):
        launch("data=iris", "task=autoencoder", "task.code=2", "epochs=1", *SPLIT, f"seed={k}", name=f"codes-{k}")
    sentence = "runs must be of a task whose predictions have a mean, got task=autoencoder"
    assert refused("ensemble", "runs=codes-*") == sentence
    words = ("folds=2", "data=iris", "task=autoencoder", "task.code=2", "epochs=1", *SPLIT)
    assert refused("ensemble", *words) == sentence


def test_what_only_a_trained_run_can_do(trained: Callable[[str], list[Trained]]) -> None:
    trained("number")
    made("runs=number-*", "method=average", name="whole")
    sentence = "must be a run that was trained, got whole, an ensemble of several"
    assert refused("resume", "run=whole", "epochs=9") == f"run {sentence}"
    assert refused("verify", "run=whole") == f"run {sentence}"
    assert refused("reproduce", "run=whole") == f"run {sentence}"
    words = ("data=csv", "data.path=number.csv", "data.target=y", "epochs=1")
    assert refused(*words, "model.from_run=whole") == f"model.from_run {sentence}"
    assert refused("sample", "run=whole").startswith("run must be of a task that makes rows")


def test_a_damaged_ensemble_is_one_sentence(trained: Callable[[str], list[Trained]]) -> None:
    trained("number")
    both = made("runs=number-*", "method=average", name="hostile")
    [first, *_] = sorted((both.folder / "members").iterdir())
    first.write_text("data: [1, 2]\n")
    assert refused("evaluate", "run=hostile").endswith(f"whose members/{first.name} is damaged")


def test_its_model_json_may_say_anything(trained: Callable[[str], list[Trained]]) -> None:
    """What says which members there are, and what they read, is refused at once, or all that follows goes well."""
    trained("number")
    folder = made("runs=number-*", "method=average", name="stranger").folder / "model"
    good, refusals = json.loads((folder / "model.json").read_text()), 0
    for at in places(good):
        if at[:1] not in (("members",), ("preparation",)) or len(at) > 3:
            continue
        for text in VALUES.values():
            (folder / "model.json").write_text(with_text(good, at, text))
            (folder / "manifest.json").unlink()
            write_manifest(folder)
            try:
                model = dltrain.load("stranger")
            except ConfigError as error:
                refusals += "\n" not in str(error)
                continue
            with contextlib.suppress(UserError):
                model.predict(pd.read_csv("number.csv"))
    assert refusals > 100
    (folder / "model.json").write_text(json.dumps(good))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    dltrain.load("stranger")


# What it is good for.


@pytest.mark.slow
def test_greedy_is_better_than_the_member_that_validation_rows_choose(tmp_path: Path) -> None:
    """One of the five seeds of `benchmarks/ensemble.py`, in the mean over five tables."""
    script = Path(__file__).parents[1] / "benchmarks" / "ensemble.py"
    spec = util.spec_from_file_location("benchmark_ensemble", script)
    assert spec is not None
    assert spec.loader is not None
    benchmark = util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    sides = [benchmark.measured(tmp_path, table, 0, 30) for table in benchmark.TABLES]
    chosen, greedily = (np.mean([side[name]["loss"] for side in sides]) for name in ("chosen", "greedy"))
    assert greedily < chosen - 0.002


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TYPED = [shlex.split(line, comments=True) for line in re.findall(r"^    dltrain ensemble (.*)$", README, re.M)]


@pytest.mark.parametrize("words", TYPED, ids=" ".join)
def test_what_readme_types_is_known(words: list[str]) -> None:
    options, others = parse_known(words, Options)
    assert bool(options.runs) != bool(options.folds)
    assert compose(others)["choices"] if options.folds else not others


def test_readme_says_how() -> None:
    assert len(TYPED) >= 3

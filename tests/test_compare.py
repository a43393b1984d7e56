"""`dltrain compare`: variants by the settings in which they differ, over seeds, against scipy's own numbers."""

import contextlib
import csv
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import Trained, command, launch, working
from scipy.stats import sem, ttest_rel

from dltrain import cli

SCORES = {  # test accuracy by lr and seed; one seed is missing from the second
    0.1: {0: 0.90, 1: 0.92, 2: 0.95, 3: 0.91},
    0.01: {0: 0.88, 1: 0.91, 2: 0.93},
    0.001: {0: 0.93},
}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies of one run, whose settings and results are made up."""
    with working(tmp_path_factory.mktemp("compare")) as folder:
        first = launch("data=iris", "model=linear", "epochs=1", name="first")
        for lr, scores in SCORES.items():
            for seed, score in scores.items():
                made(first, f"lr{lr}-{seed}", {"seed": seed, "optimizer.lr": lr}, score)
        shutil.rmtree(first.folder)
        yield folder


def made(first: Trained, name: str, settings: dict[str, object], score: float, status: str = "finished") -> Path:
    folder = first.folder.with_name(name)
    shutil.copytree(first.folder, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in settings.items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    if "data.split.seed" not in settings:
        config["data"]["split"]["seed"] = config["seed"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = first.result | {"status": status, "seconds": 10.0 * score, "monitor": "accuracy", "direction": "max"}
    result |= {"valid": {"accuracy": score, "rmse": -score}, "test": {"accuracy": score, "own": score}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def table(*words: str) -> list[dict[str, str]]:
    command("compare", *words, "out=table.csv")
    with Path("table.csv").open() as file:
        return list(csv.DictReader(file))


def refused(*words: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert cli.run(["compare", *words]) == 2
    assert said.getvalue().count("\n") == 1
    return said.getvalue().removeprefix("dltrain: ").rstrip()


def test_means_errors_and_paired_tests_are_scipys() -> None:
    rows = {float(row["optimizer.lr"]): row for row in table("runs=lr*", "metric=test/accuracy")}
    assert [row["rank"] for row in rows.values()] == ["1", "2", "3"]
    assert [*rows] == [0.001, 0.1, 0.01], "the best first"
    for lr, scores in SCORES.items():
        values = [*scores.values()]
        assert float(rows[lr]["test/accuracy"]) == pytest.approx(np.mean(values))
        assert rows[lr]["seeds"] == str(len(values))
        assert float(rows[lr]["seconds"]) == pytest.approx(10 * np.mean(values))
        assert rows[lr]["runs"].split() == [f"lr{lr}-{seed}" for seed in scores]
        if len(values) > 1:
            assert float(rows[lr]["error of test/accuracy"]) == pytest.approx(sem(values))
    assert float(rows[0.1]["to best"]) == pytest.approx(0.90 - 0.93), "one seed in common"
    assert rows[0.1]["p"] == rows[0.001]["p"] == rows[0.001]["to best"] == ""
    assert [*rows[0.1]][:4] == ["rank", "optimizer.lr", "seeds", "test/accuracy"], "neither the seed nor the split's"


def test_seeds_of_one_split_are_seeds_of_one_variant() -> None:
    first = launch("data=iris", "model=mlp", "epochs=1", name="first")
    for lr, seed in itertools.product((0.5, 0.05), (0, 1)):
        made(first, f"one{lr}-{seed}", {"optimizer.lr": lr, "seed": seed, "data.split.seed": 0}, 0.9 + lr * (seed + 1))
    rows = table("runs=one*")
    assert [(row["optimizer.lr"], row["seeds"]) for row in rows] == [("0.5", "2"), ("0.05", "2")]
    assert [*rows[0]][:4] == ["rank", "optimizer.lr", "seeds", "valid/accuracy"]
    made(first, "one0.5-split", {"optimizer.lr": 0.5, "seed": 1, "data.split.seed": 7}, 0.5)
    assert [row["data.split.seed"] for row in table("runs=one*")] == ["0", "0", "7"]


def test_the_difference_is_over_seeds_in_common() -> None:
    first, second = table("runs=lr0.1-*,lr0.01-*")
    assert (first["optimizer.lr"], second["optimizer.lr"]) == ("0.1", "0.01")
    pairs = [[SCORES[lr][seed] for seed in (0, 1, 2)] for lr in (0.01, 0.1)]
    gaps = np.subtract(*pairs)
    assert float(second["to best"]) == pytest.approx(gaps.mean())
    assert float(second["error of to best"]) == pytest.approx(sem(gaps))
    assert float(second["p"]) == pytest.approx(ttest_rel(*pairs).pvalue)


def test_smaller_may_be_better() -> None:
    assert [row["optimizer.lr"] for row in table("runs=lr*", "metric=valid/rmse")] == ["0.001", "0.1", "0.01"]
    largest = table("runs=lr*", "metric=test/own", "direction=max")
    assert [row["optimizer.lr"] for row in largest] == ["0.001", "0.1", "0.01"]
    assert table("runs=lr*", "metric=test/own", "direction=min")[0]["optimizer.lr"] == "0.01"


def test_a_setting_of_one_network_alone_is_no_column() -> None:
    launch("data=iris", "model=mlp", "model.hidden=[4]", "epochs=1", name="net-a")
    launch("data=iris", "model=mlp", "model.hidden=[8]", "epochs=1", name="net-b")
    launch("data=iris", "model=linear", "epochs=1", name="net-c")
    rows = table("runs=net-*")
    assert {(row["model"], row["model.hidden"]) for row in rows} == {("mlp", "[4]"), ("mlp", "[8]"), ("linear", "")}
    assert [*rows[0]][1:3] == ["model", "model.hidden"]
    assert not any(name.startswith("model.") for name in table("runs=net-a,net-c")[0])


def test_a_sweep_is_compared_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.run(["-m", "data=iris", "model=linear", "epochs=1", "optimizer.lr=0.1,0.01", "seed=0,1", "name=mine"]) == 0
    )
    capsys.readouterr()
    said = command("compare", "runs=mine")
    assert " ".join(said.splitlines()[0].split()) == "rank optimizer.lr seeds valid/log_loss to best p seconds runs"
    assert len(said.splitlines()) == 4
    assert " ± " in said
    assert "p: paired t test" in said
    with Path("outputs/sweeps/mine/trials.jsonl").open("a") as file:
        file.write('{"trial": 5, "ru')  # the power went
    assert command("compare", "runs=mine") == said


def test_runs_that_are_not_finished_are_counted() -> None:
    first = Trained(Path("outputs/lr0.1-0"))
    stopped = made(first, "lr9-0", {"optimizer.lr": 9.0}, 0.5, status="stopped")
    said = command("compare", "runs=lr9-0,lr0.1-0")
    assert "1 run that is not finished is left out" in said
    assert "one seed says little" in said
    assert refused("runs=lr9-0") == "runs must be runs of which one is finished, got [lr9-0]"
    shutil.rmtree(stopped)


REFUSED = [
    (["runs=no*"], "runs must be patterns that match a run in outputs, got no*"),
    (["runs=nowhere"], "runs must be a run or a sweep in outputs, got nowhere"),
    (
        ["runs=lr*", "metric=test/x"],
        "metric must be one that every run has, got test/x, not in lr0.001-0; did you mean",
    ),
    (["runs=lr*", "metric=test/own"], "direction must be min or max for test/own, which is not known here, got null"),
    (["runs=lr*", "direction=up"], "direction must be min or max, got up"),
    (["runs=nowhere", "out=x.txt"], "out must be a .csv or a .html, got x.txt"),
    (["runs=lr*", "out=nowhere/x.csv"], "out must be in a folder that exists, got nowhere/x.csv"),
    ([], "runs must be given, as runs=..."),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_is_refused(words: list[str], sentence: str) -> None:
    assert refused(*words).startswith(sentence)


def test_a_misspelt_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "first").mkdir(parents=True)
    (tmp_path / "sweeps" / "first" / "trials.jsonl").touch()
    said = refused("runs=frist", f"output_root={tmp_path}")
    assert said == f"runs must be a run or a sweep in {tmp_path}, got frist; did you mean first? (first)"


def listed(*words: str) -> list[str]:
    """The names of runs that `dltrain list runs` shows, in its order."""
    return [line.split()[0] for line in command("list", "runs", *words).splitlines()[1:]]


def test_runs_of_some_settings_are_listed() -> None:
    assert set(listed("where=optimizer.lr=1e-1,model=linear")) >= {f"lr0.1-{seed}" for seed in range(4)}
    assert listed("where=optimizer.lr=0.01,seed=2") == ["lr0.01-2"]
    assert listed("where=model.hidden=[4]") == ["net-a"]
    assert listed("where=model=cnn") == []


@pytest.mark.parametrize(
    "value", ["[256,0.1]", "[256, 0.1]", "[ 256.0,1e-1 ]", "[256,0.1],seed=7", "[256,0.1], seed = 7"]
)
def test_a_value_is_the_same_however_it_is_typed(value: str) -> None:
    run = Trained(Path("outputs/lr0.1-0"))
    folder = made(run, "wide", {"seed": 7, "optimizer.betas": [256, 0.1]}, 0.5)
    try:
        assert listed(f"where=optimizer.betas={value}") == ["wide"]
    finally:
        shutil.rmtree(folder)


def test_runs_are_listed_the_best_first() -> None:
    best = sorted(SCORES[0.1], key=lambda seed: -SCORES[0.1][seed])
    words = ("where=optimizer.lr=0.1,epochs=1,batch_size=64", "sort=test/own")
    said = refused_list("sort=test/own")
    assert said == "direction must be min or max for test/own, which is not known here, got null"
    assert listed(words[0], "sort=test/accuracy")[:4] == [f"lr0.1-{seed}" for seed in best]
    assert listed("where=optimizer.lr=0.1", "sort=valid/rmse") == [f"lr0.1-{seed}" for seed in best]


def refused_list(*words: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert cli.run(["list", "runs", *words]) == 2
    assert said.getvalue().count("\n") == 1
    return said.getvalue().removeprefix("dltrain: ").rstrip()


def test_what_cannot_be_listed() -> None:
    assert refused_list("where=modle=mlp").startswith(
        "where must be a setting of runs, got modle=mlp; did you mean model?"
    )
    assert refused_list("where=model") == (
        "where must be settings with their values, such as model=cnn,seed=0, got model"
    )
    assert refused_list("where=model=mlp,") == (
        "where must be settings with their values, such as model=cnn,seed=0, got ''"
    )
    assert refused_list("sort=test/acc").startswith("sort must be a metric of a run, got test/acc; did you mean")

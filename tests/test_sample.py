"""`dltrain sample`: rows as their file has them, images as a grid, again and again the same."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from runs import Trained, command, launch, working

from dltrain import cli
from dltrain.errors import ConfigError

SMALL = ["model.hidden=[32]", "epochs=30", "trainer.threads=1", "optimizer.lr=0.005", "evaluate_every=30"]
CSV = ["data=csv", "data.path=rows.csv", "data.target=null"]
DIGITS = ["data=digits", "data.rows=300", "model.hidden=[32]", "epochs=2", "trainer.threads=1"]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("sample")) as folder:
        draw = np.random.default_rng(0)
        group = draw.integers(0, 3, 400)
        days = pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, 400), unit="D")
        columns = {"size": 10 * group + draw.normal(size=400), "town": np.array(["Rome", "Oslo", "Bern"])[group]}
        columns |= {"open": np.where(group == 1, "yes", "no"), "day": days.strftime("%Y-%m-%d")}
        frame = pd.DataFrame(columns | {"age": draw.normal(50, 5, 400)})
        frame.to_csv("rows.csv", index=False)
        launch(*CSV, *SMALL, "task=vae", "task.code=4", name="rows")
        launch(*DIGITS, "task=diffusion", "task.steps=20", "task.sampling_steps=5", name="digits")
        yield folder


@pytest.fixture(scope="module")
def digits(here: Path) -> Trained:
    return Trained(Path("outputs/digits"))


def rows(*words: str) -> pd.DataFrame:
    command("sample", *words)
    return pd.read_csv("samples.csv")


def opened(name: str) -> np.ndarray:
    """The pixels of an image (height, width, 3)."""
    with Image.open(name) as file:
        return np.asarray(file) / 255


def refused(*words: str) -> str:
    """The one sentence with which a command line is refused."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert cli.run(["sample", *words]) == 2
    assert said.getvalue().count("\n") == 1
    return said.getvalue().removeprefix("dltrain: ").rstrip()


def test_rows_are_as_their_file_has_them() -> None:
    assert command("sample", "run=rows", "n=200") == "wrote samples.csv (200 samples)\n"
    real, made = pd.read_csv("rows.csv"), pd.read_csv("samples.csv")
    assert list(made) == list(real)
    assert len(made) == 200
    assert set(made["town"]) == {"Rome", "Oslo", "Bern"}
    assert set(made["open"]) == {"yes", "no"}
    assert made["day"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    assert pd.to_datetime(made["day"]).between("2018-01-01", "2024-01-01").all()
    assert made["age"].mean() == pytest.approx(50, abs=2)
    assert made["size"].mean() == pytest.approx(real["size"].mean(), abs=3)
    assert made["size"].std() == pytest.approx(real["size"].std(), rel=0.4)
    agree = (made["open"] == "yes") == (made["town"] == "Oslo")
    assert agree.mean() > 0.9


@pytest.mark.parametrize("task", ["gan", "diffusion"])
def test_other_tasks_make_rows_of_the_same_columns(task: str) -> None:
    launch(*CSV, *SMALL, f"task={task}", "epochs=1", name=task)
    assert list(rows(f"run={task}", "n=5")) == list(pd.read_csv("rows.csv"))


def test_a_seed_repeats() -> None:
    first, again, other = rows("run=rows"), rows("run=rows", "seed=0"), rows("run=rows", "seed=1")
    pd.testing.assert_frame_equal(first, again)
    assert len(first) == 16
    assert not first["size"].equals(other["size"])


def test_the_caller_s_generator_is_left_alone() -> None:
    model, before = Trained(Path("outputs/rows")).model, torch.get_rng_state()
    model.sample(3, seed=5)
    model.predict(pd.read_csv("rows.csv"))
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_on_standard_output() -> None:
    assert command("sample", "run=rows", "n=3", "out=-") == rows("run=rows", "n=3").to_csv(index=False)


def test_images_are_a_grid() -> None:
    assert command("sample", "run=digits", "n=10", "out=grid.png") == "wrote grid.png (10 samples)\n"
    pixels = opened("grid.png")
    larger = 512 // (4 * 9 - 1)
    assert pixels.shape == ((3 * 9 - 1) * larger, (4 * 9 - 1) * larger, 3)
    cells = pixels[::larger, ::larger, 0]
    assert not cells[8].any()  # the dark line below the first row
    assert not cells[18:, 18:].any()  # the two places that nothing fills
    assert all(
        cells[9 * i : 9 * i + 8, 9 * j : 9 * j + 8].std() > 0.05 for i in range(3) for j in range(4) if 4 * i + j < 10
    )


def test_a_grid_shows_what_the_rows_say(digits: Trained) -> None:
    command("sample", "run=digits", "n=4", "out=grid.png")
    command("sample", "run=digits", "n=4", "out=grid.csv")
    table = pd.read_csv("grid.csv").to_numpy().reshape(2, 2, 8, 8)
    assert list(pd.read_csv("grid.csv")) == digits.model.preparation.columns
    larger = 512 // 17
    cells = opened("grid.png")[::larger, ::larger, 0]
    shown = np.array([[cells[9 * i : 9 * i + 8, 9 * j : 9 * j + 8] for j in range(2)] for i in range(2)])
    order = np.argsort(table.ravel())
    assert (np.diff(shown.ravel()[order]) >= -1e-9).all(), "what is larger is as bright at least"
    middle = slice(*np.quantile(np.arange(table.size), [0.03, 0.97]).astype(int))  # strays have the last shades
    between = [values.ravel()[order][middle] for values in (shown, table)]
    assert np.corrcoef(*between)[0, 1] > 0.999


def test_a_label_is_told() -> None:
    one, other, none = (rows("run=digits", "out=samples.csv", *more) for more in (["label=1"], ["label=7"], []))
    assert not np.allclose(one, other)
    assert not np.allclose(one, none)


REFUSED = [
    (["run=digits", "label=ten"], "label must be a class of the run, got ten (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"),
    (["run=rows", "label=1"], "label must be left out: the run was told no classes, got 1"),
    (["run=rows", "prompt=a"], "prompt must be left out with task=vae"),
    (["run=digits", "prompt=a"], "prompt must be left out with task=diffusion"),
    (["run=rows", "length=5"], "length must be left out with task=vae"),
    (["run=rows", "n=0"], "n must be at least 1, got 0"),
    (["run=rows", "n=few"], "n must be a whole number, got few"),
    (["run=rows", "out=rows.png"], "out must be a .csv for rows that are no images, got rows.png"),
    (["run=rows", "out=nowhere/rows.csv"], "out must be in a folder that exists, got nowhere/rows.csv"),
    (["run=rows", "seed=-1"], "seed must be a whole number from 0 to 18446744073709551615, got -1"),
    (["run=rows", "seed=99999999999999999999"], "seed must be a whole number from 0 to 18446744073709551615, got 9999"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_is_refused(words: list[str], sentence: str) -> None:
    Path("samples.csv").unlink(missing_ok=True)
    assert refused(*words).startswith(sentence)
    assert not Path("samples.csv").exists()


@pytest.mark.parametrize("task", ["supervised", "autoencoder", "contrastive", "clustering"])
def test_a_task_that_makes_no_rows(task: str) -> None:
    launch(*DIGITS, f"task={task}", "epochs=1", "data.rows=100", name=task)
    assert refused(f"run={task}") == f"run must be of a task that makes rows, got task={task}"


def test_a_label_where_there_are_no_classes() -> None:
    launch(*CSV, *SMALL, "task=diffusion", "epochs=1", name="unlabelled")
    assert refused("run=unlabelled", "label=Rome") == "label must be left out: the run was told no classes, got Rome"


def test_a_step_that_cannot_be_undone() -> None:
    step = ["pipeline=none", "+pipeline.poly._target_=sklearn.preprocessing.PolynomialFeatures"]
    launch("data=iris", *SMALL, "epochs=1", "task=vae", *step, name="poly")
    assert refused("run=poly") == "run must have a pipeline that can be undone, got poly (PolynomialFeatures)"


def test_pca_is_undone() -> None:
    launch("data=iris", *SMALL, "task=vae", "pipeline=pca", name="pca")
    made = rows("run=pca", "n=100")
    real = Trained(Path("outputs/pca")).model.preparation.columns
    assert list(made) == real
    assert (made.mean() > 0).all()


def watched(run: Trained) -> list[str]:
    return sorted(path.name for path in (run.folder / "samples").iterdir())


def test_samples_while_it_trains() -> None:
    words = [*DIGITS, "task=diffusion", "task.steps=20", "task.sampling_steps=5", "epochs=5", "evaluate_every=5"]
    run = launch(*words, "sample_every=2")
    assert watched(run) == ["epoch-00002.png", "epoch-00004.png"]
    assert f"samples of every 2 epochs are in {run.folder / 'samples'}" in run.printed
    assert opened(str(run.folder / "samples/epoch-00002.png")).shape[2] == 3
    none = launch(*words, "sample_every=null")
    assert not (none.folder / "samples").exists()
    assert none.result["weights_sha256"] == run.result["weights_sha256"]
    assert none.curve("train/loss") == run.curve("train/loss")


@pytest.mark.parametrize("more", [[], ["ema=0.9"]])
def test_samples_of_the_last_epoch_are_those_of_the_bundle(more: list[str]) -> None:
    run = launch(*CSV, *SMALL, "task=vae", "epochs=3", "evaluate_every=3", "sample_every=3", *more)
    assert run.result["best_epoch"] == 3
    rows(f"run={run.name}")
    assert (run.folder / "samples/epoch-00003.csv").read_text() == Path("samples.csv").read_text()


def test_texts_while_it_trains() -> None:
    Path("book.txt").write_text("the cat sat on the mat. " * 200)
    words = ["data=text", "data.path=book.txt", "data.length=16", "task=language", "model=gpt", "model.width=16"]
    run = launch(*words, "model.heads=2", "model.depth=1", "epochs=1", "sample_every=1")
    assert watched(run) == ["epoch-00001.txt"]
    texts = (run.folder / "samples/epoch-00001.txt").read_text()
    assert len(texts) >= 3 * 200
    assert set(texts) <= set("the cat sat on the mat.\n")


def test_nothing_is_sampled_of_a_task_that_makes_no_rows() -> None:
    assert not (launch(*DIGITS, "sample_every=1").folder / "samples").exists()


def test_a_step_that_cannot_be_undone_is_said_once() -> None:
    step = ["pipeline=none", "+pipeline.poly._target_=sklearn.preprocessing.PolynomialFeatures"]
    run = launch("data=iris", *SMALL, "epochs=3", "evaluate_every=1", "sample_every=1", "task=vae", *step)
    said = "warning: no samples are written while this trains: run must have a pipeline that can be undone, got poly"
    assert run.printed.count(said) == 1
    assert run.result["epochs"] == 3


@pytest.mark.parametrize("value", ["0", "often", "1.5", "2steps"])
def test_how_often_samples_are_written(value: str) -> None:
    with pytest.raises(ConfigError, match="sample_every must be a whole number"):
        launch(*DIGITS, f"sample_every={value}")

"""A user's own network: one Python file and one YAML file, and no edit elsewhere."""

import contextlib
import io
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import Trained, command, launch, predict, working
from torch import nn

from dltrain import cli
from dltrain.errors import ConfigError
from dltrain.train import Training

NETWORK = '''
"""Networks of our own."""

from collections.abc import Callable
from math import prod
from pathlib import Path

from torch import Tensor, nn

Path("imported.txt").touch()  # what a stranger's module might do


class Gated(nn.Module):
    """Affine map times a gate."""

    def __init__(self, shape_in: tuple, shape_out: tuple, activation: Callable, width: int = 8) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(prod(shape_in), width), nn.Linear(prod(shape_in), width)
        self.activation, self.head = activation(), nn.Linear(width, prod(shape_out))
        self.shape_out = shape_out

    def forward(self, features: Tensor) -> Tensor:
        x = features.flatten(1)
        return self.head(self.value(x) * self.activation(self.gate(x))).reshape(len(x), *self.shape_out)
'''
YAML = """# Affine maps with gates.
_target_: mynets.Gated
width: 16
"""
WORDS = ("data=csv", "data.path=rows.csv", "data.target=y", "model=mynet", "trust=[mynets]", "activation=tanh")
SETTINGS = ("epochs=6", "batch_size=16", "optimizer.lr=0.01", "regularizer=[l2]", "seed=3")
MARK = Path("imported.txt")


class Power(Exception):
    """It is gone."""


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder, from which `./mynets.py` can be imported as from the command line."""
    with working(tmp_path_factory.mktemp("mine")) as folder, pytest.MonkeyPatch.context() as patch:
        Path("mynets.py").write_text(NETWORK)
        Path("configs/model").mkdir(parents=True)
        Path("configs/model/mynet.yaml").write_text(YAML)
        x = np.random.default_rng(0).normal(size=(300, 3))
        pd.DataFrame(x, columns=list("abc")).assign(y=x[:, 0] * x[:, 1]).to_csv("rows.csv", index=False)
        patch.syspath_prepend(str(folder))
        yield folder
        sys.modules.pop("mynets", None)


@pytest.fixture(scope="module")
def run() -> Trained:
    return launch(*WORDS, *SETTINGS)


def refused(*words: str) -> str:
    """What a command line that must end with 2 says, in a process that has not imported the user's module."""
    imported = sys.modules.pop("mynets", None)
    MARK.unlink(missing_ok=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            assert cli.run(list(words)) == 2
        assert "mynets" not in sys.modules
    finally:
        if imported:
            sys.modules["mynets"] = imported
    assert not MARK.exists(), "the module was executed"
    return said.getvalue()


def test_it_trains_with_every_part_around_it(run: Trained) -> None:
    assert run.result["status"] == "finished"
    assert run.result["valid"]["r2"] > 0.5  # a product, which no affine map knows
    assert run.weights["value.weight"].shape == (16, 3)
    built = sys.modules["mynets"].Gated((3,), (1,), nn.Tanh, 16)
    built.load_state_dict(run.weights)
    expected = built(run.data.valid["features"]) * run.data.preparation.target.scale[0]
    expected = expected + run.data.preparation.target.mean[0]
    found = predict(run, "rows.csv", "trust=[mynets]")["prediction"].to_numpy()[run.data.valid["row"]]
    np.testing.assert_allclose(found, expected.detach()[:, 0], atol=1e-5)


def test_its_settings_are_checked_like_ours() -> None:
    with pytest.raises(ConfigError, match=r"model\.widht.* did you mean .*width"):
        launch(*WORDS, "model.widht=4")
    with pytest.raises(ConfigError, match=r"model\.width must be a whole number.*, got abc"):
        launch(*WORDS, "model.width=abc")
    assert launch(*WORDS, "model.width=4", "epochs=1").weights["gate.weight"].shape == (4, 3)


def test_it_resumes_to_the_same_bits(run: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*WORDS, *SETTINGS, "trainer.save_every=1")
    record = Training.record

    def fail(self: Training, evaluated: bool) -> bool:
        if self.position.epoch == 4:
            raise Power
        return record(self, evaluated)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "record", fail)
        with pytest.raises(Power):
            launch(*words, name="again")
    again = launch(*words, name="again")
    assert "continuing at epoch 3" in again.printed
    assert again.result["weights_sha256"] == run.result["weights_sha256"]


def test_without_trust_nothing_of_it_is_executed(run: Trained) -> None:
    said = refused("predict", f"run={run.name}", "input=rows.csv", "out=mine.csv")
    assert said.count("\n") == 1
    assert "must name a class of dltrain" in said
    assert "got mynets.Gated; trust=" in said
    assert not Path("mine.csv").exists()
    said = refused(*(word for word in WORDS if not word.startswith("trust")))
    assert said.count("\n") == 1
    assert "got mynets.Gated; trust=" in said


def test_with_trust_the_console_finds_it_in_the_current_folder(run: Trained) -> None:
    MARK.unlink(missing_ok=True)
    printed = run.printed.splitlines()[-1]
    assert printed == f"dltrain predict run={run.name} input=new.csv 'trust=[mynets]'"
    words = [word.replace("new.csv", "rows.csv") for word in shlex.split(printed)[1:]]
    code = "import sys; from dltrain.cli import main; sys.path.remove(''); main()"  # as the console script starts
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert MARK.exists()
    assert len(pd.read_csv("predictions.csv")) == 300


def test_a_stranger_s_run_brings_no_code_of_its_own(run: Trained, tmp_path: Path) -> None:
    """A run folder that names modules in its own `trust` and holds Python files is still only read."""
    stranger = tmp_path / "stranger"
    shutil.copytree(run.folder, stranger)
    assert "mynets" in (stranger / "config.yaml").read_text()  # what was trusted when it was trained
    shutil.copy("mynets.py", stranger)
    shutil.copy("mynets.py", stranger / "model")
    for words in (["predict", "input=rows.csv"], ["evaluate", "input=rows.csv"], ["evaluate"]):
        assert "mynets" in refused(words[0], f"run={stranger}", *words[1:])


def test_the_hash_knows_the_source_of_the_module() -> None:
    words = (*WORDS, "epochs=1")
    assert "is finished" not in command(*words)
    assert "is finished" in command(*words)
    with Path("mynets.py").open("a") as file:
        file.write("\n# changed\n")
    assert "is finished" not in command(*words)


def test_it_is_listed_like_ours() -> None:
    listed = command("list", "models")
    assert [line.split()[0] for line in listed.splitlines() if "Affine maps with gates" in line] == ["mynet"]
    assert "mlp" in listed

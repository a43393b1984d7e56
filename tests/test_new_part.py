"""A user's own network: one Python file and one YAML file, and no edit elsewhere."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from runs import Trained, launch, predict, working
from torch import nn

import dltrain
from dltrain.errors import ConfigError

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


def dltrain_process(*words: str) -> subprocess.CompletedProcess[str]:
    """The console script as a user starts it: nothing of theirs has been imported."""
    code = "import sys; from dltrain.cli import main; sys.argv[0] = 'dltrain'; main()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)


def test_it_trains_with_every_part_around_it(run: Trained) -> None:
    network = type(run.data.preparation) and sys.modules["mynets"].Gated
    assert run.result["status"] == "finished"
    assert run.result["valid"]["r2"] > 0.5  # a product, which no affine map knows
    assert run.weights["value.weight"].shape == (16, 3)
    built = network((3,), (1,), nn.Tanh, 16)
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
    from dltrain.train import Training

    class Power(Exception):
        """It is gone."""

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
    MARK.unlink(missing_ok=True)
    shown = dltrain_process("predict", f"run={run.name}", "input=rows.csv", "out=mine.csv")
    assert shown.returncode == 2
    assert shown.stderr.count("\n") == 1
    assert "trust=[mynets] allows it" in shown.stderr
    assert not Path("mine.csv").exists()
    trained = dltrain_process(*(word for word in WORDS if not word.startswith("trust")), "epochs=1")
    assert trained.returncode == 2
    assert "trust=[mynets] allows it" in trained.stderr
    assert not MARK.exists()
    allowed = dltrain_process("predict", f"run={run.name}", "input=rows.csv", "out=mine.csv", "trust=[mynets]")
    assert allowed.returncode == 0, allowed.stderr
    assert MARK.exists()
    assert len(pd.read_csv("mine.csv")) == 300


def test_a_stranger_s_run_brings_no_code_of_its_own(run: Trained, tmp_path: Path) -> None:
    """A run folder that names modules in its own `trust` and holds Python files is still only read."""
    stranger = tmp_path / "stranger"
    shutil.copytree(run.folder, stranger)
    assert "mynets" in (stranger / "config.yaml").read_text()  # what was trusted when it was trained
    shutil.copy("mynets.py", stranger)
    shutil.copy("mynets.py", stranger / "model")
    MARK.unlink(missing_ok=True)
    for command in ("predict", "evaluate"):
        shown = dltrain_process(command, f"run={stranger}", "input=rows.csv")
        assert shown.returncode == 2
        assert "mynets" in shown.stderr
    assert dltrain_process("evaluate", f"run={stranger}").returncode == 2
    assert not MARK.exists()


def test_the_hash_knows_the_source_of_the_module() -> None:
    words = (*WORDS, "epochs=1")
    first = dltrain_process(*words)
    assert first.returncode == 0, first.stderr
    assert "is finished" in dltrain_process(*words).stdout
    source = Path("mynets.py").read_text()
    try:
        Path("mynets.py").write_text(source + "\n# changed\n")
        changed = dltrain_process(*words)
    finally:
        Path("mynets.py").write_text(source)
    assert "is finished" not in changed.stdout


def test_no_file_of_ours_names_it() -> None:
    package = Path(dltrain.__file__).parent
    assert not [path for path in package.rglob("*.py") if "mynet" in path.read_text() and path.name != "settings.py"]
    assert isinstance(torch.nn.Module, type)

"""What a name in YAML may become, and what the builder hands to whom."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dltrain.build import Builder, locate
from dltrain.errors import ConfigError
from dltrain.models.mlp import MLP

ALLOWED = "model._target_ must name a class of dltrain, torch.nn, torch.optim or sklearn, or of a module in trust=[...]"
REFUSED = {
    ("model", "os.system"): f"{ALLOWED}, got os.system",
    ("model", "builtins.eval"): f"{ALLOWED}, got builtins.eval",
    ("model", "subprocess.Popen"): f"{ALLOWED}, got subprocess.Popen",
    ("model", "torch.load"): f"{ALLOWED}, got torch.load",
    ("model", "torch.hub.load"): f"{ALLOWED}, got torch.hub.load",
    ("model", "torch.nnet.Linear"): f"{ALLOWED}, got torch.nnet.Linear",
    ("model", "dltrainer.MLP"): f"{ALLOWED}, got dltrainer.MLP",
    ("model", "MLP"): f"{ALLOWED}, got MLP",
    ("model", ""): f"{ALLOWED}, got ",
    ("model", None): f"{ALLOWED}, got None",
    ("model", 3): f"{ALLOWED}, got 3",
    ("model", "torch.nn.Linear; import os"): f"{ALLOWED}, got torch.nn.Linear; import os",
    # the right prefix, and something else behind it
    ("model", "torch.nn.functional.importlib.import_module"): (
        "model._target_ must be importable, got torch.nn.functional.importlib.import_module "
        "(no module torch.nn.functional.importlib)"
    ),
    ("model", "torch.nn.modules.module.OrderedDict"): f"{ALLOWED}, got torch.nn.modules.module.OrderedDict",
    ("model", "dltrain.run.Path"): f"{ALLOWED}, got dltrain.run.Path",
    ("model", "dltrain.build.importlib"): f"{ALLOWED}, got dltrain.build.importlib",
    ("model", "torch.nn.functional.importlib"): f"{ALLOWED}, got torch.nn.functional.importlib",
    # ours, and not what the group holds
    ("model", "torch.nn.functional.relu"): "model._target_ must be a Module, got torch.nn.functional.relu",
    ("model", "torch.optim.AdamW"): "model._target_ must be a Module, got torch.optim.AdamW",
    ("optimizer", "torch.nn.Linear"): "optimizer._target_ must be a Optimizer, got torch.nn.Linear",
    ("scheduler", "torch.optim.AdamW"): "scheduler._target_ must be a LRScheduler, got torch.optim.AdamW",
    ("pipeline", "sklearn.svm.SVC"): "pipeline._target_ must be a TransformerMixin, got sklearn.svm.SVC",
    ("data", "dltrain.opening.set_aside"): (
        "data._target_ must be a data of dltrain.data or of a module in trust=[...], got dltrain.opening.set_aside"
    ),
    ("loss", "dltrain.run.write_whole"): (
        "loss._target_ must be a loss of dltrain.losses or of a module in trust=[...], got dltrain.run.write_whole"
    ),
    ("loss", "torch.nn.CrossEntropyLoss"): (
        "loss._target_ must be a loss of dltrain.losses or of a module in trust=[...], got torch.nn.CrossEntropyLoss"
    ),
    ("logger", "dltrain.losses.MSE"): (
        "logger._target_ must be a logger of dltrain.loggers or of a module in trust=[...], got dltrain.losses.MSE"
    ),
    # nothing there
    ("model", "dltrain.models.mpl.MLP"): (
        "model._target_ must be importable, got dltrain.models.mpl.MLP (no module dltrain.models.mpl)"
    ),
}


@pytest.mark.parametrize(("group", "path"), REFUSED)
def test_the_allow_list(group: str, path: Any) -> None:
    with pytest.raises(ConfigError) as error:
        locate(path, f"{group}._target_", group)
    said, _, hint = str(error.value).partition("; trust=")
    assert said == REFUSED[group, path]
    assert not (hint and str(path).startswith(("os", "builtins", "subprocess"))), "nobody is told to trust these"


@pytest.mark.parametrize(
    ("group", "path"),
    [
        ("model", "torch.nn.Linear"),
        ("model", "dltrain.models.mlp.MLP"),
        ("activation", "torch.nn.ReLU"),
        ("optimizer", "torch.optim.AdamW"),
        ("scheduler", "torch.optim.lr_scheduler.CosineAnnealingLR"),
        ("pipeline", "sklearn.decomposition.PCA"),
        ("loss", "dltrain.losses.MSE"),
        ("data", "dltrain.data.csv.CSV"),
    ],
)
def test_what_is_allowed(group: str, path: str) -> None:
    found = locate(path, f"{group}._target_", group)
    assert found.__name__ == path.rpartition(".")[2]


def test_a_name_that_is_not_there_gets_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"model\._target_ must be defined in torch\.nn, got Linaer; did you mean Linear\?"
    ):
        locate("torch.nn.Linaer", "model._target_", "model")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user's own, which notes that it was imported."""
    (tmp_path / "mynets_for_test.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, shape_in, shape_out, size=3):\n"
        "        super().__init__()\n"
        "        self.size, self.shape_in = size, shape_in\n"
        "def system(command): raise SystemError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "mynets_for_test"
    sys.modules.pop("mynets_for_test", None)


def test_a_module_that_is_trusted(module: str) -> None:
    config = {"model": {"_target_": f"{module}.Net", "size": 5}}
    with pytest.raises(ConfigError, match=rf"got {module}.Net; trust=\[{module}\] allows it"):
        Builder(config).part("model")
    assert module not in sys.modules, "what is not trusted is not even imported"
    built = Builder(config, (module,)).part("model")((4,), (1,))
    assert isinstance(built, nn.Module)
    assert (built.size, built.shape_in) == (5, (4,))
    with pytest.raises(ConfigError, match="model must be a Module"):
        locate(f"{module}.system", "model", "model", (module,))


def test_unknown_settings_name_the_nearest() -> None:
    config = {"model": {"_target_": "dltrain.models.mlp.MLP", "hiden": [3]}}
    with pytest.raises(ConfigError, match=r"model\.hiden must be a setting of MLP; did you mean hidden\?"):
        Builder(config).part("model")


@pytest.mark.parametrize("word", ["_args_", "_partial_", "_recursive_", "_convert_"])
def test_words_of_hydra_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{word} must be a setting of MLP"):
        Builder({"model": {"_target_": "dltrain.models.mlp.MLP", word: True}}).part("model")


def test_the_allow_list_holds_at_every_depth() -> None:
    config = {"model": {"_target_": "dltrain.models.mlp.MLP", "hidden": [{"deep": {"_target_": "os.system"}}]}}
    with pytest.raises(ConfigError, match=r"model\.hidden\.0\.deep\._target_ must name a class of dltrain"):
        Builder(config).part("model")


@pytest.mark.parametrize("node", [None, "relu", {}, {"hidden": [3]}, ["torch.nn.ReLU"]])
def test_a_component_has_a_target(node: Any) -> None:
    with pytest.raises(ConfigError, match="activation must be a component with a _target_, got"):
        Builder({"activation": node}).part("activation")


def test_parts_are_handed_where_a_signature_asks() -> None:
    config = {
        "model": {"_target_": "dltrain.models.mlp.MLP", "hidden": [6, 5]},
        "activation": {"_target_": "torch.nn.LeakyReLU", "negative_slope": 0.3},
    }
    builder = Builder(config)
    builder.handed |= {"activation": builder.part("activation"), "target": "nobody asks"}
    model = builder.part("model")((4,), (2,))
    assert isinstance(model, MLP)
    found = [module for module in model.modules() if isinstance(module, nn.LeakyReLU)]
    assert len(found) == len(set(map(id, found))) == 2, "an activation is built anew for every layer"
    assert found[0].negative_slope == 0.3
    assert builder.asked == {"activation"}
    assert builder.accepts("model", "hidden")
    assert not builder.accepts("model", "depth")


def test_a_setting_wins_over_what_is_handed() -> None:
    builder = Builder({"scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 7}})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    assert builder.part("scheduler")(optimizer, T_max=99, total_steps=99).T_max == 7


def test_what_a_constructor_says_is_told_with_the_settings_name() -> None:
    builder = Builder({"optimizer": {"_target_": "torch.optim.SGD", "momentum": -1}})
    with pytest.raises(ConfigError, match="optimizer: Invalid momentum value: -1"):
        builder.part("optimizer")([torch.zeros(1)], lr=0.1)
    with pytest.raises(ConfigError, match="model: MLP missing a required argument: 'shape_out'"):
        Builder({"model": {"_target_": "dltrain.models.mlp.MLP"}}).part("model")((3,))

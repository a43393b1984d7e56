"""Runs that begin with weights of another: what is copied, frozen, slow, and what is refused."""

import contextlib
import io
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from faults.forks import Server, outcome
from runs import Trained, command, launch, predict, working
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dltrain import cli, transfer
from dltrain.choices import configs_dir
from dltrain.completion import candidates
from dltrain.compose import compose
from dltrain.errors import ConfigError
from dltrain.models.cnn import CNN
from dltrain.models.gpt import GPT
from dltrain.models.linear import Linear
from dltrain.models.mlp import MLP
from dltrain.models.resmlp import ResMLP
from dltrain.models.transformer import Transformer
from dltrain.models.unet import UNet
from dltrain.opening import digest, identity
from dltrain.player import Finite, Player
from dltrain.run import find
from dltrain.settings import Transfer
from dltrain.tasks.task import Task
from dltrain.train import Training

ROWS = ("data=csv", "data.path=rows.csv", "data.target=null", "data.ignore=[y,z,w]")
CLASSES = ("data=csv", "data.path=rows.csv", "data.target=y", "data.ignore=[z,w]")
NUMBER = ("data=csv", "data.path=rows.csv", "data.target=z", "data.ignore=[y,w]")
SMALL = ("model.hidden=[16,12]", "batch_size=16", "epochs=2", "trainer.save_every=1h")
BEGIN = ("model.from_run=autoencoder", "model.head=new")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with rows, and runs to begin with."""
    with working(tmp_path_factory.mktemp("transfer")) as folder:
        draw = np.random.default_rng(0)
        x = draw.normal(size=(200, 4))
        y = np.array(["low", "middle", "high"])[np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.5])]
        w = np.where(x[:, 2] > 0, "yes", "no")
        frame = pd.DataFrame(x, columns=list("abcd")).assign(y=y, z=x[:, 0] - x[:, 2], w=w)
        frame.to_csv("rows.csv", index=False)
        frame[["b", "a", "c", "d", "y", "z", "w"]].to_csv("turned.csv", index=False)
        frame.rename(columns={"d": "e"}).to_csv("renamed.csv", index=False)
        frame.drop(columns="d").to_csv("fewer.csv", index=False)
        for task in SOURCES:
            launch(*(ROWS if task != "supervised" else NUMBER), *SMALL, f"task={task}", name=task)
        launch(*ROWS, *SMALL, "task=autoencoder", "model.norm=batch", name="normed")
        yield folder


SOURCES = {
    "autoencoder": "network.encoder",
    "contrastive": "network.encoder",
    "vae": "network.encoder",
    "gan": "discriminator",
    "supervised": "network",
}


def tensors_of(run: str, place: str) -> dict[str, Tensor]:
    """The tensors of one network of a run's bundle."""
    found = load_file(Path("outputs") / run / "model" / "model.safetensors")
    return {name.removeprefix(f"{place}."): value for name, value in found.items() if name.startswith(f"{place}.")}


def started(*words: str) -> tuple[Trained, dict[str, Tensor]]:
    """A run, and all tensors of its task before the first step."""
    seen: dict[str, Tensor] = {}
    course = Training.course

    def look(self: Training) -> Iterator[Any]:
        seen.update({name: value.clone() for name, value in self.task.state_dict().items()})
        return course(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "course", look)
        return launch(*words), seen


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a name, by the rest of theirs."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def test_the_settings_of_every_network_stand_in_the_config_with_their_defaults() -> None:
    body = yaml.safe_load((configs_dir() / "config.yaml").read_text())["model"]
    assert body == asdict(Transfer())


# What is copied.


@pytest.mark.parametrize("source", SOURCES)
def test_a_classifier_begins_with_the_bits_of_any_runs_network(source: str) -> None:
    words = (*CLASSES, *SMALL, "seed=1")
    _, plain = started(*words)
    run, before = started(*words, f"model.from_run={source}", "model.head=new")
    theirs = part(tensors_of(source, SOURCES[source]), "blocks.")
    assert len(theirs) == 4
    assert same(part(before, "network.blocks."), theirs)
    assert not same(part(plain, "network.blocks."), theirs)
    assert same(part(before, "network.head."), part(plain, "network.head.")), "as without: drawn by the seed"
    assert not same(part(run.weights, "blocks."), theirs), "and then it learns"


@pytest.mark.parametrize("task", ["autoencoder", "contrastive", "vae", "gan", "clustering", "diffusion"])
def test_any_task_begins_with_a_classifier(task: str) -> None:
    task_words = (*ROWS, *SMALL, f"task={task}", "epochs=1")
    if task == "diffusion":  # whose network reads the time as well
        with pytest.raises(ConfigError, match=r"model\.from_run must have the tensors of this network, got blocks\.0"):
            launch(*task_words, "model.from_run=supervised", "model.head=new")
        return
    _, before = started(*task_words, "model.from_run=supervised", "model.head=new")
    place = SOURCES.get(task, "network.encoder")
    assert same(part(before, f"{place}.blocks."), part(tensors_of("supervised", "network"), "blocks."))


def test_a_head_is_kept_where_it_fits() -> None:
    _, before = started(*NUMBER, *SMALL, "seed=1", "model.from_run=supervised")
    assert same(part(before, "network."), tensors_of("supervised", "network"))


def test_what_a_word_means(tmp_path: Path) -> None:
    """A folder, the beginning of a name, last and best name a source as they name a run elsewhere."""
    words = (*CLASSES, *SMALL, "model.head=new", "epochs=1")
    theirs = part(tensors_of("contrastive", "network.encoder"), "blocks.")
    shutil.copytree("outputs/contrastive", tmp_path / "moved")
    hashes = set()
    for word in ("contr", "outputs/contrastive", str(tmp_path / "moved")):
        run, before = started(*words, f"model.from_run={word}")
        assert same(part(before, "network.blocks."), theirs)
        hashes.add(yaml.safe_load((run.folder / "config.yaml").read_text())["hash"])
    assert len(hashes) == 1, "of what it begins with the content counts, not the place"
    last = launch(*ROWS, *SMALL, "task=autoencoder", "seed=5")
    run, before = started(*words, "model.from_run=last")
    assert same(part(before, "network.blocks."), part(tensors_of(last.name, "network.encoder"), "blocks."))
    (run.folder / "result.json").write_text('{"format": 1, "status": "stopped"}')
    assert find("last", setting="model.from_run").name == last.name, "until the run that began with it has ended"


def test_other_weights_are_another_run() -> None:
    words = [*CLASSES, *SMALL, *BEGIN]
    plain, begun = (digest(identity(compose(list(some)))) for some in ([*CLASSES, *SMALL], words))
    frozen = digest(identity(compose([*words, "model.freeze=body"])))
    slower = digest(identity(compose([*words, "model.layer_decay=0.5"])))
    other = digest(identity(compose([*words, "model.from_run=vae"])))
    assert len({plain, begun, frozen, slower, other}) == 5
    bare = compose([*CLASSES, *SMALL])
    bare["model"] = {key: value for key, value in bare["model"].items() if key not in asdict(Transfer())}
    assert digest(identity(bare)) == plain, "runs of before there were these settings keep their names"


def test_the_bundle_needs_no_source(here: Path) -> None:
    shutil.copytree("outputs/autoencoder", "outputs/going")
    run = launch(*CLASSES, *SMALL, "model.from_run=going", "model.head=new", "model.freeze=body")
    shutil.rmtree("outputs/going")
    assert len(predict(run, "rows.csv")) == 200
    parts = json.loads((run.folder / "model" / "model.json").read_text())["parts"]
    assert parts["model"].keys() == {"_target_", "hidden", "dropout", "norm", "init"}
    assert "accuracy" in command("evaluate", f"run={run.name}")
    shown = command("resume", f"run={run.name}")
    assert "is finished" in shown
    words = (*CLASSES, *SMALL, "model.from_run=going", "model.head=new", "model.freeze=body", f"name={run.name}")
    assert "is finished" in command(*words)
    refused(
        (*words, "fresh=true"), "model.from_run must be a run in outputs, got going; did you mean gan? (autoencoder, "
    )
    longer = command("resume", f"run={run.name}", "epochs=3")
    assert "finished, 3 epochs" in longer


# What is frozen.

HARD = ("optimizer.weight_decay=0.5", "ema=0.9", "regularizer=[l2,max_norm]", "regularizer.max_norm.limit=0.1")


@pytest.mark.parametrize(
    ("freeze", "moved"),
    [
        ("[blocks.0]", {"blocks.1.linear.weight", "blocks.1.linear.bias", "head.weight", "head.bias"}),
        ("[blocks.*.weight]", {"blocks.0.linear.bias", "blocks.1.linear.bias", "head.weight", "head.bias"}),
        ("body", {"head.weight", "head.bias"}),
        ("[head,blocks.1.linear.bias]", {"blocks.0.linear.weight", "blocks.0.linear.bias", "blocks.1.linear.weight"}),
    ],
)
def test_frozen_parameters_keep_their_bits(freeze: str, moved: set[str]) -> None:
    run, before = started(*CLASSES, *SMALL, *BEGIN, *HARD, f"model.freeze={freeze}")
    after = run.weights
    assert {name for name in after if not torch.equal(after[name], before[f"network.{name}"])} == moved
    frozen, total = (sum(v.numel() for n, v in after.items() if n not in names) for names in (moved, ()))
    assert f"\n{frozen} parameters are frozen, {total - frozen} learn\n" in run.printed
    kept = [
        name.split("|")[1]
        for name in load_file(sorted(run.folder.glob("checkpoints/step-*"))[-1] / "optim.safetensors")
    ]
    assert set(kept) == moved, "the optimizer keeps nothing of what is frozen"


def test_only_the_model_of_a_task_is_frozen() -> None:
    words = (*ROWS, *SMALL, "task=gan", "epochs=1", "model.from_run=gan", "model.freeze=body")
    run, before = started(*words)
    after = load_file(run.folder / "model" / "model.safetensors")
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.startswith("generator.")} | {
        "discriminator.head.weight",
        "discriminator.head.bias",
    }


def test_a_frozen_batch_norm_normalises_by_what_it_has_learnt() -> None:
    words = (*CLASSES, *SMALL, "model.norm=batch", "model.from_run=normed", "model.head=new")
    run, before = started(*words, "model.freeze=[blocks.0]", "shards=2", "ema=0.5")
    theirs = tensors_of("normed", "network.encoder")
    for name in ("running_mean", "running_var", "num_batches_tracked", "weight", "bias"):
        assert torch.equal(run.weights[f"blocks.0.norm.{name}"], theirs[f"blocks.0.norm.{name}"])
    assert not torch.equal(run.weights["blocks.1.norm.running_mean"], theirs["blocks.1.norm.running_mean"])
    task = Alone(MLP((4,), (3,), hidden=(16, 12), norm="batch"))
    task.network.load_state_dict(part(before, "network."))
    transfer.freeze(task, ["blocks.0.*"])
    task.train()
    x, network = torch.randn(7, 4), task.network
    norm = theirs
    reference = F.linear(x, norm["blocks.0.linear.weight"])
    reference = (reference - norm["blocks.0.norm.running_mean"]) / (norm["blocks.0.norm.running_var"] + 1e-5).sqrt()
    reference = torch.relu(reference * norm["blocks.0.norm.weight"] + norm["blocks.0.norm.bias"])
    torch.testing.assert_close(network.blocks[0](x), reference)
    assert network.blocks[1].training


class Alone(Task):
    """A task of one network."""

    place = "network"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


EXACT = (
    "exact=true",
    "shards=2",
    "trainer.threads=1",
    "model.layer_decay=0.5",
    "model.norm=batch",
    "ema=0.9",
    "clip_norm=1",
)


def test_frozen_and_slow_blocks_are_the_same_bits_on_every_trainer(here: Path, server: Server) -> None:
    words = [*CLASSES, *SMALL, *EXACT, "model.from_run=normed", "model.head=new", "model.freeze=[blocks.0]", "name=far"]
    theirs, found = part(tensors_of("normed", "network.encoder"), "blocks.0."), {}
    for trainer, ranks in (("single", 1), ("ddp", 2), ("fsdp", 2)):
        root = Path(f"outputs-{trainer}")
        shutil.copytree("outputs/normed", root / "normed")
        code, said = server.run([*words, f"output_root={root}", f"trainer={trainer}"], here, ranks=ranks)
        assert code == 0, said
        found[trainer] = json.loads((root / "far" / "result.json").read_text())["weights_sha256"]
        after = load_file(root / "far" / "model" / "model.safetensors")
        assert same(part(after, "network.blocks.0."), theirs)
    assert len(set(found.values())) == 1, found


def test_a_sweep_over_what_is_frozen() -> None:
    sizes = []
    words = (*CLASSES, *SMALL, *BEGIN, "epochs=1", "output_root=swept")
    shutil.copytree("outputs/autoencoder", "swept/autoencoder")
    said = command("-m", *words, "model.freeze=[],[blocks.0],body")
    assert "3 of 3 trials, 0 failed" in said
    for folder in sorted(Path("swept").glob("csv-mlp-*")):
        freeze = yaml.safe_load((folder / "config.yaml").read_text())["model"]["freeze"]
        last = sorted(folder.glob("checkpoints/step-*"))[-1]
        sizes.append((freeze, len({name.split("|")[1] for name in load_file(last / "optim.safetensors")})))
    assert sorted(sizes) == [([], 6), (["blocks.0"], 4), (["body"], 2)]


# What learns slowly.


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (MLP((4,), (3,), hidden=(8, 8)), [["blocks.0"], ["blocks.1"], ["head"]]),
        (Linear((4,), (3,)), [["head"]]),
        (ResMLP((4,), (3,), depth=2), [["stem"], ["blocks.0"], ["blocks.1"], ["last", "head"]]),
        (CNN((1, 8, 8), (3,)), [["stages.0"], ["stages.1"], ["stages.2"], ["stages.3"], ["head"]]),
        (
            Transformer((1, 8, 8), (3,), pool="cls"),
            [["first", "embedding"], ["blocks.0"], ["blocks.1"], ["norm", "head"]],
        ),
        (GPT((6,), (6, 9), vocabulary=9, depth=2), [["tokens"], ["blocks.0"], ["blocks.1"], ["norm"]]),
        (
            UNet((1, 8), (1, 8), channels=(8, 16)),
            [["stem"], ["down.0"], ["smaller.0"], ["middle", "up.0"], ["last", "head"]],
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
            [["1"], ["2", "4"]],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_levels_of_a_network(network: nn.Module, expected: list[list[str]]) -> None:
    """BEiT's: what embeds is level 0, block i level i + 1, and the head, with the norm before it, the last."""
    found = transfer.levels(network)
    names = [name for name, _ in network.named_parameters()]
    assert sorted(name for level in found for name in level) == sorted(names)
    assert found == [[name for name in names if transfer.within(name, parts)] for parts in expected]


def test_every_block_steps_by_its_own_rate() -> None:
    """Against torch's own optimizer with groups of parameters, and its own OneCycleLR with a peak for each."""
    moments: list[dict[str, Tensor]] = []
    step = Player.step

    def watch(self: Player, total: Tensor, count: Tensor | float, finite: Finite) -> None:
        moments.append({name: value.clone() for name, value in self.network.state_dict().items()})
        step(self, total, count, finite)
        moments[len(moments) - 1 :] = [moments[-1], {k: v.clone() for k, v in self.network.state_dict().items()}]

    words = (*NUMBER, "model.hidden=[16,12]", "batch_size=all", "epochs=12", "model.layer_decay=0.5", "loss=mse")
    words = (*words, "scheduler=onecycle", "optimizer.lr=0.05", "optimizer.weight_decay=0.1", "evaluate_every=12")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Player, "step", watch)
        run = launch(*words)
    states = [moments[0], *moments[1::2]]
    assert len(states) == 13
    x, y = run.data.train["features"], run.data.train["target"]
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 1))
    network.load_state_dict(dict(zip(network.state_dict(), states[0].values(), strict=True)))
    peaks = [0.0125, 0.025, 0.05]
    groups = [{"params": network[k].parameters(), "lr": lr} for k, lr in zip((0, 2, 4), peaks, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, 12, cycle_momentum=False)
    for state in states[1:]:
        optimizer.zero_grad()
        F.mse_loss(network(x), y).backward()
        optimizer.step()
        schedule.step()
        for ours, reference in zip(state.values(), network.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    assert run.curve("lr")[2] == pytest.approx(max(schedule.base_lrs) * 25, rel=0.1), (
        "the lr that is told is the head's"
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_blocks_of_a_rate_are_groups_of_the_optimizer(optimizer: str) -> None:
    """A step of sgd by hand: the change of each block over its gradient is its rate; groups are kept in order."""
    seen: list[tuple[list[float], list[str]]] = []

    def look(self: Training) -> None:
        made = self.players["network"].optimizer
        names = [name for group in made.param_groups for name in group["param_names"]]
        seen.append(([group["lr"] for group in made.param_groups], names))

    course = Training.course
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "course", lambda self: look(self) or course(self))
        words = (*CLASSES, *SMALL, "model.hidden=[8,8,8]", "epochs=1", f"optimizer={optimizer}", "optimizer.lr=0.1")
        run = launch(*words, "model.layer_decay=0.5", "model.freeze=[blocks.1]")
    [(rates, names)] = seen
    assert names == [name for name, _ in run.network.named_parameters() if not name.startswith("blocks.1")]
    assert sorted(set(rates)) == pytest.approx([0.0125, 0.05, 0.1])


# Killed, continued, and the source gone.

KILL = """
import os, signal
from dltrain.checkpoint import Checkpoints
write = Checkpoints._write
def killed(self, step, *rest):
    write(self, step, *rest)
    if step == 10:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints._write = killed
"""
LONG = (
    "optimizer=muon",
    "scheduler=onecycle",
    "optimizer.lr=0.02",
    "model.layer_decay=0.7",
    "model.freeze=[blocks.0]",
    "ema=0.9",
)


def test_killed_and_continued_without_the_source_is_as_uninterrupted(here: Path, server: Server) -> None:
    words = [*CLASSES, *SMALL, *LONG, "epochs=3", "trainer.save_every=5steps", "trainer.threads=1"]
    words += ["model.from_run=normed", "model.head=new", "model.norm=batch"]
    found = {}
    for case, patch, faults in (("whole", "", {}), ("killed", KILL, {}), ("at once", "", {"FAULT": "train:kill"})):
        folder = here / f"case {case}"
        shutil.copytree("outputs/normed", folder / "outputs" / "normed")
        shutil.copy("rows.csv", folder)
        code, said = server.run(words, folder, patch, **faults)
        assert code == (0 if case == "whole" else -signal.SIGKILL), said
        shutil.rmtree(folder / "outputs" / "normed")
        [run] = folder.glob("outputs/csv-mlp-*")
        if case != "whole":
            again = ["resume", f"run={run.name}"] if case == "at once" else words
            code, said = server.run(again, folder)
            assert code == 0, said
            assert ("continuing at" in said) == (case == "killed")
        code, said = server.run(words, folder)
        assert (code, "is finished" in said) == (0, True), said
        found[case] = run.name, outcome(run)
    assert found["killed"] == found["whole"]
    assert found["at once"] == found["whole"]


# Weights of a file, and networks of timm.

TIMM = '''
"""As much of timm as dltrain calls."""

from torch import nn


class Net(nn.Module):
    def __init__(self, in_chans, num_classes, drop_rate):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        self.drop, self.fc = nn.Dropout(drop_rate), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.drop(self.layer1(self.bn1(self.conv1(x)).relu()).relu().mean((2, 3))))

    def get_classifier(self):
        return self.fc


def create_model(name, pretrained, in_chans, num_classes, drop_rate):
    assert not pretrained
    return Net(in_chans, num_classes, drop_rate)


def is_model(name):
    return name in list_models()


def list_models():
    return ["resnet18", "resnet34"]
'''
DIGITS = ("data=digits", "data.rows=200", "batch_size=16", "epochs=1")
PRETRAINED = (*DIGITS, "model=pretrained", "model.weights=resnet18.safetensors")


@pytest.fixture
def timm(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that stands for timm, which is not installed here, and weights of its network for a thousand classes."""
    (here / "packages").mkdir(exist_ok=True)
    (here / "packages" / "timm.py").write_text(TIMM)
    monkeypatch.syspath_prepend(str(here / "packages"))
    import timm  # type: ignore[import-not-found]

    torch.manual_seed(7)
    save_file(timm.create_model("resnet18", False, 1, 1000, 0.0).state_dict(), "resnet18.safetensors")
    yield
    sys.modules.pop("timm")
    Path("resnet18.safetensors").unlink(missing_ok=True)


@pytest.mark.usefixtures("timm")
def test_a_network_of_timm_begins_with_weights_on_disk(here: Path) -> None:
    run, before = started(*PRETRAINED, "model.head=new", "model.freeze=body", "model.dropout=0.1")
    theirs = load_file("resnet18.safetensors")
    theirs = {name: value for name, value in theirs.items() if not name.startswith("fc.")}
    ours = part(before, "network.network.")
    assert same({name: ours[name] for name in theirs}, theirs)
    assert same({name: run.weights[f"network.{name}"] for name in theirs}, theirs), "frozen, the norm's statistics too"
    assert run.weights["network.fc.weight"].shape == (10, 8)
    assert not torch.equal(run.weights["network.fc.weight"], ours["fc.weight"])
    Path("resnet18.safetensors").unlink()
    assert run.model.outputs(run.data.test["features"]).shape == (30, 10), "the bundle has the weights"
    assert transfer.levels(run.network) == [
        ["network.conv1.weight", "network.bn1.weight", "network.bn1.bias"],
        *([f"network.layer1.{k}.weight", f"network.layer1.{k}.bias"] for k in (0, 1)),
        ["network.fc.weight", "network.fc.bias"],
    ]
    other = launch(*DIGITS, "model=pretrained", f"model.from_run={run.name}", "seed=1")
    assert "begins at random" not in other.printed
    assert "begins at random" in " ".join(launch(*DIGITS, "model=pretrained").printed.split())


@pytest.mark.usefixtures("timm")
def test_what_is_wrong_with_weights_on_disk(here: Path) -> None:
    refused(
        PRETRAINED,
        "model.weights must have the tensors of this network, got network.fc.weight [1000, 8] where [10, 8] is,"
        " network.fc.bias [1000] where [10] is; model.head=new begins the head anew",
    )
    refused(
        (*DIGITS, "model=pretrained", "model.name=resnet19"),
        "model.name must be a network of timm, got resnet19; did you mean resnet18? (resnet18, resnet34)",
    )
    refused(
        (*DIGITS, "model=pretrained", "model.name='hf-hub:timm/resnet18'"),
        "model.name must be a network of timm, got hf-hub:timm/resnet18; did you mean resnet18? (resnet18, resnet34)",
    )


def test_weights_of_a_file_for_any_network() -> None:
    network = MLP((4,), (3,), hidden=(16, 12))
    save_file(network.state_dict(), "mine.safetensors")
    run, before = started(*CLASSES, *SMALL, "model.weights=mine.safetensors")
    assert same(part(before, "network."), dict(network.state_dict()))
    hashed = [
        digest(identity(compose([*CLASSES, *SMALL, f"model.weights={name}"])))
        for name in ("mine.safetensors", str(Path("mine.safetensors").absolute()))
    ]
    assert len(set(hashed)) == 1
    save_file({name: value + 1 for name, value in network.state_dict().items()}, "mine.safetensors")
    assert digest(identity(compose([*CLASSES, *SMALL, "model.weights=mine.safetensors"]))) not in hashed
    Path("mine.safetensors").unlink()
    assert "is finished" in command("resume", f"run={run.name}")


# What is refused, in one sentence, and what is warned of.


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def refused(words: tuple[str, ...], sentence: str) -> None:
    """A command line that ends with 2, one sentence, and nothing left behind."""
    before, said = listing(Path.cwd()), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        assert cli.run(list(words)) == 2, said.getvalue()
    assert said.getvalue().startswith(f"dltrain: {sentence}" if sentence.endswith(", ") else f"dltrain: {sentence}\n")
    assert said.getvalue().count("\n") == 1
    assert [path for path in listing(Path.cwd()) if "__pycache__" not in path] == [
        p for p in before if "__pycache__" not in p
    ]


NAMES = "blocks, blocks.0, blocks.0.activation, blocks.0.linear, blocks.0.linear.bias, blocks.0.linear.weight, "
NAMES += NAMES.replace("0", "1").removeprefix("blocks, ") + "body, head, head.bias, head.weight"
BAD = {
    "model.from_run=autoencodr": (
        "model.from_run must be a run in outputs, got autoencodr; did you mean autoencoder? (autoencoder, "
    ),
    "model.from_run=nowhere/run": "model.from_run must be a run in outputs, got nowhere/run (autoencoder, ",
    "model.from_run=outputs": "model.from_run must be a run folder, got outputs, which has no config.yaml",
    "model.from_run=3": "model.from_run must be a run, or null, got 3",
    "model.from_run=autoencoder": (
        "model.from_run must have the tensors of this network, got head.weight [8, 12] where [3, 12] "
        "is, head.bias [8] where [3] is; model.head=new begins the head anew"
    ),
    "model.from_run=autoencoder model.hidden=[16,8] model.head=new": (
        "model.from_run must have the tensors of this network, got blocks.1.linear.weight [12, 16] "
        "where [8, 16] is, blocks.1.linear.bias [12] where [8] is"
    ),
    "model.from_run=autoencoder model.hidden=[16] model.head=new": (
        "model.from_run must have the tensors of this network, got blocks.1.linear.weight, blocks.1.linear.bias besides"
    ),
    "model.from_run=autoencoder model.hidden=[16,12,12] model.head=new": (
        "model.from_run must have the tensors of this network, got no blocks.2.linear.weight, blocks.2.linear.bias"
    ),
    "model.from_run=autoencoder model=resmlp": "model.from_run must be a run of a network ResMLP, got one of MLP",
    "model.from_run=autoencoder model.weights=a.safetensors": (
        "model.weights must be a file without from_run, or null, got a.safetensors"
    ),
    "model.weights=a.safetensors": "model.weights must be a .safetensors file, got a.safetensors",
    "model.weights=rows.csv": "model.weights must be a .safetensors file, got rows.csv",
    "model.head=new": "model.head must be kept without model.from_run or model.weights, got new",
    "model.head=old": "model.head must be kept or new, got old",
    "model.freeze=[blokcs.0]": (
        f"model.freeze must name parts of the network, got blokcs.0; did you mean blocks.0? ({NAMES})"
    ),
    "model.freeze=[blocks,3]": (
        "model.freeze must be a list of parts of the network, such as [body] or [blocks.0], got [blocks, 3]"
    ),
    "model.freeze=[body,head]": (
        "model.freeze must be parts that leave task.network something to learn, got [body, head]"
    ),
    "model.layer_decay=0": "model.layer_decay must be above 0 and at most 1, or null, got 0",
    "model.layer_decay=1.5": "model.layer_decay must be above 0 and at most 1, or null, got 1.5",
    "model.layer_decay=slow": "model.layer_decay must be above 0 and at most 1, or null, got slow",
    "-m model.from_run=last model.head=new seed=0,1": (
        "model.from_run must be the name or the folder of a run in a sweep, got last"
    ),
    "data.path=turned.csv model.from_run=autoencoder model.head=new": (
        "model.from_run must be of columns in the order of these, b, a, c, d, got a, b, c, d"
    ),
    "data.path=fewer.csv model.from_run=autoencoder model.head=new": (
        "model.from_run must have the tensors of this network, got blocks.0.linear.weight [16, 4] where "
        "[16, 3] is; these rows lack the columns d"
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_words(words: str) -> None:
    typed = words.split()
    hidden = [word for word in SMALL if not (word.startswith("model.hidden") and "model=resmlp" in typed)]
    flags = [word for word in typed if word == "-m"]
    refused((*flags, *CLASSES, *hidden, *(word for word in typed if word not in flags)), BAD[words])


def test_what_is_learnt_from_other_rows_or_with_other_settings_is_told() -> None:
    plain = launch(*CLASSES, *SMALL, *BEGIN, "epochs=1").printed
    assert "warning" not in plain
    printed = launch("data=csv", "data.path=renamed.csv", *CLASSES[2:], *SMALL, *BEGIN, "epochs=1").printed
    said = "the network has learnt from other columns, and takes one for another by their order: "
    said += "these rows lack the columns d; that run lacks the columns e"
    assert f"warning: {said}" in " ".join(printed.split())
    printed = launch(*CLASSES, *SMALL, *BEGIN, "epochs=1", "activation=tanh", "model.dropout=0.1").printed
    said = "the weights of model.from_run were learnt with other settings: activation was ReLU and is Tanh"
    assert f"warning: {said}" in " ".join(printed.split())


def test_a_network_s_own_file_has_no_setting_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: dltrain.models.linear.Linear\nhead: 3\n")
    monkeypatch.setenv("DLTRAIN_CONFIGS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^model=mine must not have a setting head: every model has$"):
        compose([*CLASSES, "model=mine"])


def test_tokens_of_another_text_are_refused() -> None:
    for name, text in (("one", "abc "), ("other", "xyz ")):
        Path(f"{name}.txt").write_text((text * 7 + "\n") * 80)
    words = ("data=text", "data.length=8", "task=language", "model=gpt", "model.width=16", "model.heads=2", "epochs=1")
    launch(*words, "data.path=one.txt", "batch_size=16", name="told")
    refused(
        (*words, "data.path=other.txt", "model.from_run=told"),
        "model.from_run must be a run whose tokens are those of this text, got one of another vocabulary",
    )
    refused(
        (*words, "data.path=one.txt", "model.from_run=told", "model.head=new"),
        "model.head must be kept with a network without a head, got new",
    )
    _, before = started(*words, "data.path=one.txt", "batch_size=16", "model.from_run=told", "seed=1")
    assert same(part(before, "network."), tensors_of("told", "network"))


def test_a_damaged_source_is_refused(tmp_path: Path) -> None:
    for name, damage, reason in (
        ("cut", lambda path: path.write_bytes(path.read_bytes()[:-1]), "model.safetensors has"),
        ("gone", lambda path: path.unlink(), "model.safetensors is missing"),
    ):
        shutil.copytree("outputs/autoencoder", tmp_path / name)
        damage(tmp_path / name / "model" / "model.safetensors")
        with pytest.raises(
            ConfigError, match=rf"^model\.from_run must have an undamaged model, got .*{name}: {reason}"
        ):
            launch(*CLASSES, *SMALL, f"model.from_run={tmp_path / name}", "model.head=new")
    shutil.copytree("outputs/autoencoder", tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "model")
    (tmp_path / "begun" / "result.json").write_text('{"format": 1, "status": "stopped"}')
    with pytest.raises(ConfigError, match=r"^model\.from_run must be a finished run, got begun, which is stopped; "):
        launch(*CLASSES, *SMALL, f"model.from_run={tmp_path / 'begun'}", "model.head=new")


# What it is good for.

PIXELS = tuple(f"data.columns.p{k}=number" for k in range(64))
IMAGES = (
    "data=csv",
    "pipeline=none",
    "model=cnn",
    "data.shape=[1,8,8]",
    "model.channels=[16,32,64]",
    "data.split.test=0",
)
PRETRAIN = ("task=autoencoder", "task.code=32", "task.noise=0.3", "epochs=60", "optimizer.lr=0.003", "scheduler=cosine")
LABELLED = ("epochs=30", "batch_size=32", "optimizer.lr=0.01", "scheduler=cosine", "evaluate_every=30")


def digits(seed: int) -> None:
    """Files of other rows: 1,000 without labels, of these 20 a class with labels, 200 to choose by, 597 to test by."""
    pixels, digit = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digit))
    frame = pd.DataFrame(pixels / 16, columns=[f"p{k}" for k in range(64)]).assign(digit=[f"d{k}" for k in digit])
    frame = frame.iloc[order]
    rows = {"train": frame[:1000], "valid": frame[1000:1200], "test": frame[1200:]}
    rows["few"] = rows["train"].groupby("digit").head(20)
    rows["unlabelled"], rows["unseen"] = (rows[name].drop(columns="digit") for name in ("train", "valid"))
    for name, some in rows.items():
        some.to_csv(f"{name}.csv", index=False)


@pytest.mark.slow
def test_few_labels_go_further_on_an_autoencoder_s_encoder() -> None:
    """Test accuracy of 20 labels a class over ten seeds, paired; all settings were chosen on validation rows.

    Of three rates the one that is best from scratch, and of four autoencoders, with and without layer_decay, one.
    """
    found = []
    for seed in range(10):
        digits(seed)
        rows = (*IMAGES, *PIXELS, f"seed={seed}", "trainer.save_every=1h")
        unlabelled = ("data.path=unlabelled.csv", "data.valid_path=unseen.csv", "data.target=null")
        labelled = ("data.path=few.csv", "data.valid_path=valid.csv", "data.test_path=test.csv", "data.target=digit")
        source = launch(*rows, *unlabelled, *PRETRAIN, "evaluate_every=60")
        assert source.data.train["features"].shape == (1000, 1, 8, 8)
        begun = (f"model.from_run={source.name}", "model.head=new", "model.layer_decay=0.7")
        scratch, begins = (launch(*rows, *labelled, *LABELLED, *words).result for words in ((), begun))
        found.append((scratch["test"]["accuracy"], begins["test"]["accuracy"]))
    scratch_, begins_ = np.array(found).T
    apart = begins_ - scratch_
    error = apart.std(ddof=1) / len(apart) ** 0.5
    print(f"scratch {scratch_.mean():.4f}, begun {begins_.mean():.4f}, apart {apart.mean():.4f} +- {error:.4f}", apart)
    assert apart.mean() > 2 * error


def test_tab_completion_knows_runs_and_files_to_begin_with() -> None:
    save_file({"x": torch.zeros(1)}, "mine.safetensors")
    assert candidates("dltrain model.from_run=autoen") == ["model.from_run=autoencoder"]
    assert candidates("dltrain model.weights=mi") == ["model.weights=mine.safetensors"]
    Path("mine.safetensors").unlink()

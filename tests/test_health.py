"""What is said of gradients, updates and units, against loops by hand and networks that are ill on purpose."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from runs import launch, working
from torch import Tensor, nn

from dltrain import cli, health
from dltrain.distributed import Single
from dltrain.errors import Stopped
from dltrain.health import FLAT, Health
from dltrain.train import Training

DEEP = f"model.hidden=[{','.join(['64'] * 20)}]"


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[None]:
    with working(tmp_path):
        yield


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_the_numbers_of_a_loop_by_hand(activation: str) -> None:
    """One step of the whole batch: torch's own gradients, its AdamW, and slopes by their formulas."""
    words = ["data=iris", "model.hidden=[16,8]", "batch_size=all", "epochs=1", "optimizer.lr=0.01"]
    run = launch(*words, f"activation={activation}", "optimizer.weight_decay=0.1")
    torch.manual_seed(0)
    first, second, head = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(8, 3)
    weights = {"blocks.0.linear": first.weight, "blocks.1.linear": second.weight, "head": head.weight}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    layers = nn.ModuleList([first, second, head])
    optimizer = torch.optim.AdamW(layers.parameters(), lr=0.01, weight_decay=0.1)
    act: Callable[[Tensor], Tensor] = getattr(torch, activation)
    x, y = run.data.train["features"], run.data.train["target"]
    z = first(x)
    deeper = second(act(z))
    F.cross_entropy(head(act(deeper)), y).backward()
    optimizer.step()

    [record] = run.records
    for name, weight in weights.items():
        assert weight.grad is not None
        moved = weight.detach() - before[name]
        assert record[f"gradient/{name}"] == pytest.approx(float(weight.grad.norm()), rel=1e-4)
        assert record[f"update/{name}"] == pytest.approx(float(moved.norm() / weight.detach().norm()), rel=1e-4)
    for name, pre in (("blocks.0", z), ("blocks.1", deeper)):
        sigmoid = pre.sigmoid()
        flat = pre <= 0 if activation == "relu" else sigmoid * (1 - sigmoid) < FLAT * 0.25
        assert record[f"dead/{name}.activation"] == pytest.approx(float(flat.all(0).float().mean()))
        assert (f"saturated/{name}.activation" in record) == (activation == "sigmoid")
        if activation == "sigmoid":
            assert record[f"saturated/{name}.activation"] == pytest.approx(float(flat.float().mean()))
    assert activation == "sigmoid" or 0 < record["dead/blocks.1.activation"] + record["dead/blocks.0.activation"] < 1


ILL = {
    f"{DEEP} activation=sigmoid": (
        "vanishing: layers 1-",
        "get less than 1e-6 of the strongest gradient; try activation=relu, model.norm=batch or model=resmlp",
    ),
    f"{DEEP} activation=tanh model.init=orthogonal optimizer.lr=0.3": (
        "vanishing: layers 1-",
        "of the strongest gradient, saturated: 100% of the values of blocks.",
    ),
    "model.hidden=[64] activation=tanh optimizer.lr=1": (
        "saturated: ",
        "of the values of blocks.0.activation are flat; try activation=relu, model.norm=batch or model=resmlp",
    ),
    "model.hidden=[64,64] optimizer.lr=3": (
        "dead: 100% of the units of blocks.0.activation are flat for every row",
        "try activation=leaky_relu, optimizer.lr=0.3 or model.norm=batch",
    ),
    "data=diabetes optimizer=sgd optimizer.lr=0.5": (
        "exploding: one thousandth more of ",
        " would change the loss by ",
        "try clip_norm=1, optimizer.lr=0.05 or model.norm=batch",
    ),
    "task=gan optimizer=sgd optimizer.lr=30": ("", "(discriminator)"),
}


@pytest.mark.parametrize("words", ILL)
def test_an_ill_network_is_told_so(words: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = cli.run([*words.split(), "epochs=8"])
    printed, said = capfd.readouterr()
    [warning, *_] = [line for line in printed.splitlines() if line.startswith("warning: ")]
    for part in ILL[words]:
        assert part in warning
    if code:  # it became infinite
        assert code == 76
        assert "became infinite or not a number" in said
    else:
        assert f"network {ILL[words][0]}" in printed


WELL = [
    *(f"{DEEP} model.norm=batch", f"{DEEP} model.norm=batch activation=sigmoid", "model=resmlp model.depth=20"),
    *("", "model=linear", "model=cnn", "model=gru", "model=transformer", "model=tabm", "activation=tanh"),
    *("activation=sigmoid", "model.dropout=0.5", "batch_size=1", "batch_size=8", "optimizer=sgd optimizer.lr=0.1"),
    *("data=xor", "data=diabetes", "data=wine", "optimizer.lr=0.01", "optimizer=muon", "ema=0.99 scheduler=onecycle"),
    *("task=autoencoder", "task=vae", "task=diffusion", "task=contrastive", "task=diffusion model=unet"),
]


@pytest.mark.parametrize("words", WELL)
def test_a_healthy_run_gets_no_alarm(words: str) -> None:
    run = launch(*words.split(), "epochs=2" if "batch_size=1" in words.split() else "epochs=6")
    assert run.result["health"].startswith("healthy: every layer gets at least ")
    assert "warning" not in run.printed
    assert f"network {run.result['health']}" in run.printed


def test_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["model.hidden=[16]", "model.dropout=0.2", "activation._target_=torch.nn.RReLU", "epochs=2"]
    looked = launch(*words)
    assert looked.curve("gradient/head")
    monkeypatch.setattr(health, "EVERY", 1)
    often = launch(*words)
    assert [len(run.curve("gradient/head")) for run in (looked, often)] == [1, 2]
    assert looked.curve("gradient/head")[0] != often.curve("gradient/head")[0]
    assert often.result["weights_sha256"] == looked.result["weights_sha256"]
    assert often.curve("train/loss") == looked.curve("train/loss")


def test_it_looks_often_at_first_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(Health, "_conclude", lambda self, step: steps.append(step))
    launch("data=wine", "batch_size=10", "epochs=60", "model=linear")
    assert steps == [0, 1, 4, 16, 64, 256, 512, 768]


@pytest.mark.parametrize(
    "words",
    [
        "activation._target_=torch.nn.PReLU precision=bfloat16",
        "activation._target_=torch.nn.PReLU",
        "activation._target_=torch.nn.Hardtanh +activation.inplace=true",
        "trainer.activation_checkpointing=true model=resmlp",
    ],
)
def test_units_of_any_activation_are_looked_at(words: str) -> None:
    run = launch("epochs=1", *words.split())
    dead = {name: value for name, value in run.records[0].items() if name.startswith("dead/")}
    assert dead
    assert all(0 <= value < 1 for value in dead.values())
    assert any(name.startswith("saturated/") for name in run.records[0]) == ("Hardtanh" in words)


class Half(nn.Module):
    """A layer of which some channels or numbers are never positive."""

    def __init__(self, layer: nn.Module, dead: int) -> None:
        super().__init__()
        self.layer, self.activation = layer, nn.ReLU()
        with torch.no_grad():
            cast(Tensor, layer.bias)[:dead] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.layer(x)))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(5, 8), (40, 5), 2 / 8),
        (nn.Linear(5, 8), (40, 6, 5), 2 / 8),  # tokens: a unit is a number of all of them
        (nn.Conv1d(3, 4, 3), (40, 3, 9), 2 / 4),  # maps: a unit is a channel
        (nn.Conv2d(3, 4, 3), (40, 3, 9, 7), 2 / 4),
    ],
)
def test_what_a_unit_is(layer: nn.Module, shape: tuple[int, ...], expected: float) -> None:
    torch.manual_seed(0)
    network = Half(layer, 2)
    looking = Health({"network": cast(Any, SimpleNamespace(name="network", network=network))}, Single(), nn.ReLU)
    with looking.look(0):
        network(torch.randn(shape))
        looking.counting = False  # as rows of another rank
        network(torch.full(shape, -1e3))
    assert looking.taken()["dead/activation"] == pytest.approx(expected)
    assert looking.taken() == {}
    assert "healthy" in looking.text
    with looking.look(3):
        network(torch.randn(shape))
    assert looking.taken() == {}, "step 3 is not looked at"


def test_two_looks_in_a_row_make_an_alarm_and_one_after_the_start_none(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = Health({}, Single(), nn.ReLU)
    found = {
        0: "dead: x",
        1: "dead: x",
        4: "dead: x",
        16: "healthy: x",
        64: "dead: x",
        256: "dead: y",
        512: "vanishing: x",
    }
    alarms = {}
    for step, text in found.items():
        monkeypatch.setattr(looking, "_judged", lambda layers, units, text=text: text)
        looking._conclude(step)
        alarms[step] = (looking.ailment, looking.verdict())
    assert alarms[1] == alarms[4] == ("", ""), "what is so at the start may be gone after a step"
    assert alarms[16] == ("", "healthy: x")
    assert alarms[64] == ("", "")
    assert alarms[256] == ("dead: y", "dead: y")
    assert alarms[512] == ("", "")
    restored = Health({}, Single(), nn.ReLU)
    restored.load(looking.state())
    monkeypatch.setattr(restored, "_judged", lambda layers, units: "vanishing: z")
    restored._conclude(768)
    assert restored.ailment == "vanishing: z"


@pytest.mark.parametrize("at", [3, 6])
def test_a_record_after_an_interruption_has_the_numbers_of_the_look_before(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks at steps 0, 1 and 4, interruptions before and after the last."""
    words = ["data=wine", "batch_size=16", "epochs=1"]
    undisturbed = launch(*words)
    agreed = Training._agreed
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_until_due", lambda self: 1)  # it may be asked after every step
        patched.setattr(Training, "_agreed", lambda self, ended: (self.position.step == at, agreed(self, ended)[1]))
        with pytest.raises(Stopped):
            launch(*words, name="stopped")
    continued = launch(*words, name="stopped")
    assert f"continuing at epoch 0, step {at}" in continued.printed
    clock = {"time", "rows_per_second"}
    [record], [expected] = (
        [{key: value for key, value in line.items() if key not in clock} for line in run.records]
        for run in (continued, undisturbed)
    )
    assert record == expected
    assert expected["gradient/head"] > 0
    assert continued.result["health"] == undisturbed.result["health"]

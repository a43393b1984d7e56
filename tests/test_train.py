"""The loop and the step against loops, gradients and formulas written by hand with torch and scikit-learn."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import Trained, launch, of_network, working
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from dltrain import bundle, evaluate
from dltrain.assembly import assemble
from dltrain.build import Builder
from dltrain.checkpoint import Checkpoints
from dltrain.compose import compose
from dltrain.course import alone
from dltrain.errors import ConfigError, NonFinite
from dltrain.order import epoch_order, shard_bounds
from dltrain.settings import Settings
from dltrain.tasks.task import Move, Task
from dltrain.train import Training

SMALL = ["data=iris", "model.hidden=[16]", "trainer.threads=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[None]:
    with working(tmp_path):
        yield


def built(*words: str, task: Task | None = None) -> Training:
    """A training that has not begun."""
    config = compose(list(words))
    settings = Settings(**{f.name: config[f.name] for f in fields(Settings)})
    builder = Builder(config)
    builder.handed |= {"exact": settings.exact, "precision": settings.precision}
    builder.handed["pipeline"] = builder.parts("pipeline")
    trainer, data = builder.part("trainer")(), builder.part("data")().load()
    trainer.seed(settings.seed)
    task = task or bundle.make_task(builder, data.preparation)
    return assemble(settings, builder, trainer, data, task, Checkpoints(Path("checkpoints"), pytest.fail))


def batch_of(training: Training, rows: int) -> dict[str, Tensor]:
    return {key: values[:rows] for key, values in training.train_rows.items()}


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def network_of(training: Training) -> nn.Module:
    return training.players["network"].network


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=1e-5, msg=name)


def same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def by_hand(run: Trained, epochs: int, size: int, lr: float) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and mean training losses of a loop that owes nothing to ours but the order of the rows."""
    torch.manual_seed(0)
    layers = {"blocks.0.linear": nn.Linear(4, 16), "head": nn.Linear(16, 3)}
    first, head = layers.values()
    optimizer = torch.optim.AdamW([p for layer in layers.values() for p in layer.parameters()], lr=lr)
    x, y = run.data.train["features"], run.data.train["target"]
    means = []
    for epoch in range(epochs):
        total = 0.0
        for rows in epoch_order(len(x), 0, epoch).split(size):
            optimizer.zero_grad()
            loss = F.cross_entropy(head(F.relu(first(x[rows]))), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        means.append(total / len(x))
    weights = {f"{name}.{key}": p.detach() for name, layer in layers.items() for key, p in layer.named_parameters()}
    return weights, means


@pytest.mark.parametrize("size", [22, 64])
def test_a_loop_written_by_hand(size: int) -> None:
    """Five steps an epoch of 106 rows, the last of them smaller; and 64, where the last has 42."""
    run = launch(*SMALL, f"batch_size={size}", "epochs=3", "optimizer.lr=0.01", "trainer.save_every=1")
    weights, losses = by_hand(run, 3, size, 0.01)
    close(run.weights_at(run.steps[-1]), weights)
    assert run.curve("train/loss") == pytest.approx(losses, abs=1e-6)
    assert run.result["steps"] == 3 * -(-106 // size)


@pytest.mark.parametrize(("size", "steps"), [("all", 2), ("1", 2 * 106), ("1000", 2), ("105", 4)])
def test_batch_sizes(size: str, steps: int) -> None:
    run = launch(*SMALL, f"batch_size={size}", "epochs=2", "evaluate_every=2", "optimizer.lr=0.001")
    assert run.result["steps"] == steps
    weights, _ = by_hand(run, 2, 106 if size == "all" else int(size), 0.001)
    close(run.weights_at(run.steps[-1]), weights, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("exact", ["true", "false"])
@pytest.mark.parametrize("rows", [64, 29, 5])
@pytest.mark.parametrize("weights", ["null", "balanced"])
def test_shards_give_the_gradient_of_the_whole_batch(shards: int, exact: str, rows: int, weights: str) -> None:
    words = [f"shards={shards}", f"exact={exact}", f"loss.class_weights={weights}", "data.split.kind=random"]
    training = built(*SMALL, *words)
    batch, network, y = batch_of(training, rows), network_of(training), training.train_rows["target"].numpy()
    each = compute_class_weight("balanced", classes=np.arange(3), y=y) if weights == "balanced" else [1, 1, 1]
    weight = torch.tensor(each, dtype=torch.float32)
    F.cross_entropy(network(batch["features"]), batch["target"], weight).backward()
    expected = gradients(network)
    training.step(batch, rows, 0)
    close(gradients(network), expected)


@pytest.mark.parametrize("rows", [64, 30])
def test_exact_sums_over_the_binary_tree_of_the_shards(rows: int) -> None:
    training = built(*SMALL, "shards=4", "exact=true")
    batch, network = batch_of(training, rows), network_of(training)
    shards = []
    for start, end in shard_bounds(rows, 4):
        network.zero_grad()
        F.cross_entropy(network(batch["features"][start:end]), batch["target"][start:end], reduction="sum").backward()
        shards.append(gradients(network))
    a, b, c, d = shards
    factor = torch.tensor(1 / rows)
    tree = {name: ((a[name] + b[name]) + (c[name] + d[name])) * factor for name in a}
    chain = {name: (((a[name] + b[name]) + c[name]) + d[name]) * factor for name in a}
    training.step(batch, rows, 0)
    assert same_bits(gradients(network), tree)
    assert not same_bits(tree, chain), "another order of the sum has other bits"


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("rows", [64, 30, 7])
def test_batch_statistics_advance_once_a_step_by_the_mean_over_the_rows(shards: int, rows: int) -> None:
    training = built(*SMALL, "model.norm=batch", f"shards={shards}")
    network, batch = network_of(training), batch_of(training, rows)
    norm = network.get_submodule("blocks.0.norm")
    with torch.no_grad():
        hidden = network.get_submodule("blocks.0.linear")(batch["features"])
    pieces = [hidden[start:end] for start, end in shard_bounds(rows, shards, least=2) if end > start]
    mean = sum(0.1 * piece.mean(0) * len(piece) for piece in pieces) / rows
    var = sum((0.9 + 0.1 * piece.var(0)) * len(piece) for piece in pieces) / rows
    training.step(batch, rows, 0)
    close({"mean": norm.running_mean, "var": norm.running_var}, {"mean": mean, "var": var})
    assert norm.num_batches_tracked == 1


def test_a_batch_of_one_row_has_no_statistics() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 2 with batch normalisation, got 1"):
        built(*SMALL, "model.norm=batch", "batch_size=1")
    training = built(*SMALL, "model.norm=batch", "batch_size=105")
    assert training.bounds == [(0, 106)], "a last row joins the batch before it"


@pytest.mark.parametrize("clip", [0.01, 100.0])
@pytest.mark.parametrize("shards", [1, 4])
def test_clip_norm_is_that_of_torch(clip: float, shards: int) -> None:
    training = built(*SMALL, f"clip_norm={clip}", f"shards={shards}")
    batch, network = batch_of(training, 60), network_of(training)
    F.cross_entropy(network(batch["features"]), batch["target"]).backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
    assert (norm > clip) == (clip == 0.01)
    expected = gradients(network)
    training.step(batch, 60, 0)
    close(gradients(network), expected, atol=1e-8 if clip == 0.01 else 1e-6)


def test_the_average_follows_its_formula_and_is_what_is_scored() -> None:
    training = built(*SMALL, "ema=0.7", "optimizer.lr=0.1")
    network, player = network_of(training), training.players["network"]
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    for step in range(5):
        training.step(batch_of(training, 32), 32, step)
        average = {name: 0.7 * average[name] + 0.3 * p.detach() for name, p in network.named_parameters()}
    close(player.average, average)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    scored = training.evaluate(training.valid_rows)["loss"]
    assert same_bits(network.state_dict(), own), "scoring leaves the weights that are trained"
    x, y = training.valid_rows["features"], training.valid_rows["target"]
    outputs = torch.func.functional_call(network, average, (x,))
    assert scored == pytest.approx(F.cross_entropy(outputs, y).item(), abs=1e-6)
    assert scored != pytest.approx(F.cross_entropy(network(x), y).item(), abs=1e-3)


def test_averaged_weights_of_the_best_evaluation_end_in_the_bundle() -> None:
    run = launch(*SMALL, "ema=0.9", "epochs=4", "optimizer.lr=0.05", "batch_size=16", "trainer.save_every=1")
    best = (run.folder / "checkpoints" / "best").read_text().strip()
    averaged = of_network(load_file(run.folder / "checkpoints" / best / "ema.safetensors"))
    assert same_bits(run.weights, averaged)
    assert not same_bits(run.weights, run.weights_at(int(best[5:])))


def test_early_stopping_keeps_the_best_weights() -> None:
    words = ["data=xor", "data.noise=0.5", "model.hidden=[32]", "regularizer=[early_stopping]", "seed=1"]
    run = launch(*words, "regularizer.early_stopping.patience=3", "optimizer.lr=0.05", "epochs=100")
    curve = run.curve("valid/log_loss")
    assert run.result["stopped_early"]
    assert run.result["epochs"] == len(curve) == curve.index(min(curve)) + 1 + 3 < 100
    assert run.result["best_epoch"] == curve.index(min(curve)) + 1
    assert run.result["valid"]["log_loss"] == pytest.approx(min(curve), abs=1e-9)
    steps = len(curve) and run.result["steps"] // len(curve)
    assert same_bits(run.weights, run.weights_at(steps * run.result["best_epoch"]))
    assert not same_bits(run.weights, run.weights_at(run.steps[-1]))


@pytest.mark.parametrize(
    ("every", "evaluated", "recorded"),
    [
        ("1", [7, 14, 21, 28], [7, 14, 21, 28]),
        ("3", [21, 28], [7, 14, 21, 28]),
        ("5steps", [5, 10, 15, 20, 25, 28], [5, 7, 10, 14, 15, 20, 21, 25, 28]),
        ("100steps", [28], [7, 14, 21, 28]),
    ],
)
def test_evaluations_come_when_they_are_asked_for(every: str, evaluated: list[int], recorded: list[int]) -> None:
    """Four epochs of seven steps: a record at every epoch, and an evaluation at the end whatever was asked."""
    run = launch(*SMALL, "batch_size=16", "epochs=4", f"evaluate_every={every}")
    assert run.curve("step") == recorded
    assert [record["step"] for record in run.records if "valid/loss" in record] == evaluated
    assert [record["epoch"] for record in run.records] == [step // 7 for step in recorded]


def test_the_best_step_may_lie_within_an_epoch() -> None:
    run = launch(*SMALL, "batch_size=16", "epochs=3", "evaluate_every=4steps", "optimizer.lr=0.05", "seed=4")
    scored = {record["step"]: record["valid/log_loss"] for record in run.records if "valid/log_loss" in record}
    best = min(scored, key=lambda step: scored[step])
    assert same_bits(run.weights, run.weights_at(best))


def test_bfloat16_runs_and_differs() -> None:
    whole, half = (launch(*SMALL, "epochs=3", f"precision={p}") for p in ("float32", "bfloat16"))
    assert all(value.dtype is torch.float32 for value in half.weights.values()), "weights stay float32"
    assert not same_bits(whole.weights, half.weights)
    close(half.weights, whole.weights, atol=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in what the compiler imports
def test_compiled_networks_train_alike() -> None:
    plain, compiled = (launch(*SMALL, "epochs=3", f"trainer.compile={c}") for c in ("false", "true"))
    assert compiled.result["compile"]
    assert compiled.curve("train/loss") == pytest.approx(plain.curve("train/loss"), abs=1e-4)


class TwoPlayers(Task):
    """Each player scales a number; the second is asked for its loss once the first has moved."""

    def __init__(self, moves: list[tuple[str, float, float]]) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(1, 1, bias=False) for _ in range(2))
        self.moves = moves

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        rows = len(batch["target"])
        ones = torch.ones(rows, 1)
        for name, mine in (("first", self.first), ("second", self.second)):
            self.moves.append((name, self.first.weight.item(), self.second.weight.item()))
            yield name, (mine(ones) - 3).square().sum(), rows

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["features"]


@pytest.mark.parametrize("shards", [1, 2])
def test_players_move_one_after_the_other(shards: int) -> None:
    moves: list[tuple[str, float, float]] = []
    words = [*SMALL, f"shards={shards}", "optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "batch_size=50"]
    training = built(*words, task=TwoPlayers(moves))
    first, second = (player.network.weight.item() for player in training.players.values())
    training.step(batch_of(training, 50), 50, 0)
    moved = [w - 0.1 * 2 * (w - 3) for w in (first, second)]  # the gradient of the mean of (w - 3)^2
    expected = [("first", first, second)] * shards + [("second", moved[0], second)] * shards
    assert [move[0] for move in moves] == [move[0] for move in expected]
    assert sum([move[1:] for move in moves], ()) == pytest.approx(sum([move[1:] for move in expected], ()), abs=1e-6)
    assert [p.network.weight.item() for p in training.players.values()] == pytest.approx(moved, abs=1e-6)
    assert training.step.mean_losses() == pytest.approx({"first": (first - 3) ** 2, "second": (second - 3) ** 2})


def test_a_whole_training_of_two_players() -> None:
    training = built(*SMALL, "optimizer.lr=0.1", "epochs=80", task=TwoPlayers([]))
    records: list[dict[str, Any]] = []
    training.report = lambda record, improved: records.append(record)
    alone(training.course())
    assert {"train/first_loss", "train/second_loss", "train/loss"} <= records[-1].keys()
    assert records[-1]["train/loss"] == records[-1]["train/first_loss"] + records[-1]["train/second_loss"]
    assert [p.network.weight.item() for p in training.players.values()] == pytest.approx([3, 3], abs=0.05)


class Rows(Task):
    """Predicts the number of the row; its loss counts how often each was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)
        self.seen: list[int] = []

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        yield "network", batch["number"].sum(), len(batch["number"])

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        self.seen += batch["number"].tolist()
        return batch["number"]


@pytest.mark.parametrize("rows", [1, 16, 17, 100])
def test_every_row_is_evaluated_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK_NUMBERS", 1)  # chunks of 16 rows
    task = Rows()
    trainer = built(*SMALL).trainer
    numbers = torch.arange(rows, dtype=torch.float64)
    found = {"features": torch.zeros(rows, 4), "number": numbers, "target": numbers}
    losses, predictions = evaluate.assess(task, {}, found, trainer)
    assert task.seen == predictions.tolist() == list(range(rows))
    assert losses["network"] == pytest.approx((rows - 1) / 2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rprop"])  # fused, fused without state, not fused
def test_a_step_that_is_not_finite_changes_nothing(optimizer: str) -> None:
    training = built(*SMALL, f"optimizer={optimizer}", "ema=0.9")
    network = network_of(training)
    training.step(batch_of(training, 32), 32, 0)
    training.step.finite.check(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bad = batch_of(training, 32)
    bad["features"] = bad["features"].clone()
    bad["features"][7, 2] = float("nan")
    for step in (1, 2):
        training.step(bad, 32, step)
    training.step(batch_of(training, 32), 32, 3)
    assert same_bits(network.state_dict(), before), "and nothing after it does"
    with pytest.raises(NonFinite, match="step 2: the loss or a gradient became infinite or not a number; no weight"):
        training.step.finite.check(4)
    with pytest.raises(NonFinite):
        training.save()
    assert not Path("checkpoints").exists()

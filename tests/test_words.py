"""Every word of the command line does what it says, seen through whole runs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from runs import Trained, command, launch, predict, working
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score, log_loss, mean_absolute_error, mean_squared_error
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor, nn

from dltrain.build import locate
from dltrain.choices import options
from dltrain.data import Data
from dltrain.order import shard_bounds
from dltrain.player import Finite, Player

SMALL = ("model.hidden=[16]", "batch_size=32", "trainer.save_every=1h")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the words name."""
    with working(tmp_path_factory.mktemp("words")) as folder:
        write_files()
        yield folder


def write_files(rows: int = 400) -> None:
    """One file for each kind of target; all have the same features."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, 4))
    features = pd.DataFrame(x, columns=list("abcd")) * [1.0, 10.0, 0.1, 1.0] + [0.0, 100.0, 0.0, -5.0]
    rate = np.exp(1 + 0.8 * x[:, 0])
    signal = 2 * x[:, 0] - x[:, 1] + np.abs(x[:, 2])
    columns = {
        "number": {"y": signal + 0.1 * draw.normal(size=rows)},
        "counts": {"y": draw.poisson(rate)},
        "binary": {"y": np.where(signal + 0.3 * draw.normal(size=rows) > 1, "yes", "no")},
        "classes": {"y": np.array(["low", "middle", "high"])[np.digitize(signal, [-0.5, 1.5])]},
        "multilabel": {"y": np.where(x[:, 0] > 0, "yes", "no"), "z": np.where(x[:, 1] > 0.5, "yes", "no")},
        "rare": {"y": np.where(signal + draw.normal(size=rows) > 4, "yes", "no")},
        "exponential": {"y": np.exp(2 * x[:, 0] - x[:, 1] + 0.1 * draw.normal(size=rows))},
        "noise": {"y": draw.normal(size=rows)},
    }
    for name, targets in columns.items():
        features.assign(**targets).to_csv(f"{name}.csv", index=False)
    many = x @ draw.normal(size=(4, 12)) + 0.2 * draw.normal(size=(rows, 12))
    price = 0.3 * many[:, 0] - 0.2 * many[:, 1] + 0.1 * draw.normal(size=rows)
    price[7] = 1000.0  # in no test a plausible price
    houses = pd.DataFrame(many * 5 + 50, columns=[f"measure {k}" for k in range(12)]).assign(price=price)
    houses.to_csv("houses.csv", index=False)


def csv(name: str, *targets: str) -> tuple[str, ...]:
    """The words that name one of the files."""
    return "data=csv", f"data.path={name}.csv", f"data.target=[{','.join(targets or ('y',))}]"


@dataclass
class Moment:
    """One step of a player: what it had before, the gradient it moved by, and what it had after."""

    lr: float
    before: dict[str, Tensor]
    gradients: dict[str, Tensor]
    after: dict[str, Tensor]
    fused: bool
    deterministic: bool


def watched(*words: str) -> tuple[Trained, list[Moment]]:
    """A run, and every step of it."""
    moments: list[Moment] = []
    step = Player.step

    def watch(self: Player, total: Tensor, count: Tensor | float, finite: Finite) -> None:
        lr, before = self.lr, copies(self.network)
        step(self, total, count, finite)
        gradients = {name: p.grad.clone() for name, p in self.network.named_parameters() if p.grad is not None}
        fused = bool(self.optimizer.param_groups[0].get("fused"))
        deterministic = torch.are_deterministic_algorithms_enabled()
        moments.append(Moment(lr, before, gradients, copies(self.network), fused, deterministic))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Player, "step", watch)
        return launch(*words), moments


def copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def matrices(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [value for value in tensors.values() if value.ndim > 1]


def small(tensors: dict[str, Tensor]) -> float:
    """The share of weights below 1e-3."""
    weights = torch.cat([matrix.flatten() for matrix in matrices(tensors)])
    return float((weights.abs() < 1e-3).float().mean())


def norm(tensors: dict[str, Tensor]) -> float:
    return float(sum(matrix.square().sum() for matrix in matrices(tensors)) ** 0.5)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """True of the same bits under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def near(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 2e-5) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], rtol=1e-4, atol=atol) for n in one)


# The sentence: each of its words, in one run, and what is missing where the word is missing.

SENTENCE = (
    *("data=csv", "data.path=houses.csv", "data.target=price", "pipeline=pca", "pipeline.pca.n_components=0.95"),
    *("model=mlp", "activation=tanh", "loss=huber", "optimizer=sgd", "scheduler=cosine"),
    "regularizer=[l1,max_norm,early_stopping]",
)
SETTINGS = ("model.hidden=[16]", "optimizer.lr=0.05", "regularizer.l1.weight=0.005", "regularizer.max_norm.limit=0.5")


@pytest.fixture(scope="module")
def sentence() -> tuple[Trained, list[Moment]]:
    return watched(*SENTENCE, *SETTINGS, "epochs=4", "batch_size=8")


def without(group: str, *instead: str) -> tuple[Trained, list[Moment]]:
    """The sentence without its words about one group."""
    words = [w for w in (*SENTENCE, *SETTINGS, "epochs=4", "batch_size=8") if not w.startswith((f"{group}=", f"{group}."))]
    return watched(*words, *instead)


def sklearn_components(run: Trained) -> np.ndarray:
    """The run's training rows as scikit-learn makes them, each component's largest loading positive."""
    frame = pd.read_csv("houses.csv").drop(columns="price").iloc[run.data.train["row"].numpy()]
    scaled = StandardScaler().fit_transform(frame)
    pca = PCA(0.95).fit(scaled)
    largest = np.abs(pca.components_).argmax(1)
    signs = np.sign(pca.components_[np.arange(len(largest)), largest])
    return np.asarray(pca.transform(scaled) * signs)


def test_the_sentence_as_it_stands_is_a_run() -> None:
    run = launch(*SENTENCE, "epochs=2")
    assert run.result["status"] == "finished"
    assert run.result["epochs"] == 2


def test_the_sentence_is_the_loop_written_by_hand() -> None:
    run, moments = watched(*SENTENCE, *SETTINGS, "epochs=12", "batch_size=all")
    x = torch.from_numpy(sklearn_components(run)).float()
    price = pd.read_csv("houses.csv")["price"].to_numpy()[run.data.train["row"].numpy()]
    y = torch.from_numpy((price - price.mean()) / price.std()).float()[:, None]
    network = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 1))
    network.load_state_dict(dict(zip(network.state_dict(), moments[0].before.values(), strict=True)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for moment in moments:
        optimizer.zero_grad()
        weights = [p for p in network.parameters() if p.ndim > 1]
        (F.huber_loss(network(x), y) + 0.005 * sum(w.abs().sum() for w in weights)).backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            for weight in weights:
                weight.copy_(weight.renorm(2, 0, 0.5))
        for ours, reference in zip(moment.after.values(), network.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    assert len(moments) == 12


def test_n_components_keeps_as_many_as_scikit_learn(sentence: tuple[Trained, list[Moment]]) -> None:
    run, _ = sentence
    reference = sklearn_components(run)
    assert 2 <= reference.shape[1] < 12
    np.testing.assert_allclose(run.data.train["features"].numpy(), reference, rtol=1e-4, atol=1e-5)
    all_of_them, _ = without("pipeline")
    assert all_of_them.data.preparation.shape_in == (12,)


def test_tanh_stands_between_the_layers(sentence: tuple[Trained, list[Moment]]) -> None:
    network = sentence[0].network
    x = sentence[0].data.train["features"]
    hidden = network.blocks(x)
    torch.testing.assert_close(hidden, torch.tanh(network.blocks[0].linear(x)))
    assert [type(m) for m in network.modules() if not list(m.children())] == [nn.Linear, nn.Tanh, nn.Linear]
    relu = without("activation")[0].network
    assert relu.blocks(x).min() == 0 > hidden.min()


def test_huber_bounds_the_pull_of_an_outlier() -> None:
    words = (*csv("houses", "price"), "model=linear", "batch_size=1", "epochs=1", "optimizer=sgd", "optimizer.lr=1e-4")
    pulls = {}
    for loss in ("huber", "mse"):
        _, moments = watched(*words, f"loss={loss}")
        pulls[loss] = max(abs(float(moment.gradients["head.bias"])) for moment in moments)
    assert pulls["huber"] <= 1 < 20 < pulls["mse"]


def test_sgd_moves_by_the_gradient_and_its_momentum() -> None:
    _, moments = without("regularizer")
    parameters = [p.clone().requires_grad_() for p in moments[0].before.values()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for moment in moments[:20]:
        optimizer.param_groups[0]["lr"] = moment.lr
        for parameter, gradient in zip(parameters, moment.gradients.values(), strict=True):
            parameter.grad = gradient
        optimizer.step()
        for ours, reference in zip(moment.after.values(), parameters, strict=True):
            torch.testing.assert_close(ours, reference.detach(), rtol=1e-5, atol=1e-6)


def test_cosine_is_its_formula_at_every_step(sentence: tuple[Trained, list[Moment]]) -> None:
    run, moments = sentence
    n = len(moments)
    assert n == run.result["steps"] == 4 * math.ceil(len(run.data.train["target"]) / 8)
    expected = [0.05 * (1 + math.cos(math.pi * t / n)) / 2 for t in range(n)]
    assert [moment.lr for moment in moments] == pytest.approx(expected, abs=1e-9)
    assert {moment.lr for moment in without("scheduler")[1]} == {0.05}


def test_l1_brings_weights_to_zero(sentence: tuple[Trained, list[Moment]]) -> None:
    _, plain = without("regularizer", "regularizer=[max_norm,early_stopping]", "regularizer.max_norm.limit=0.5")
    assert small(sentence[1][-1].after) > small(plain[-1].after) + 0.2


def test_max_norm_holds_after_every_step(sentence: tuple[Trained, list[Moment]]) -> None:
    def largest(moments: list[Moment]) -> float:
        return max(float(w.norm(dim=1).max()) for moment in moments for w in matrices(moment.after))

    _, free = without("regularizer", "regularizer=[l1,early_stopping]", "regularizer.l1.weight=0.005")
    assert largest(sentence[1]) <= 0.5 * (1 + 1e-6) < 0.7 < largest(free)


def test_early_stopping_stops_and_the_best_weights_are_restored() -> None:
    words = (*csv("noise"), *SMALL, "epochs=40", "optimizer.lr=0.01", "regularizer=[early_stopping]")
    run = launch(*words, "regularizer.early_stopping.patience=3")
    errors = run.curve("valid/rmse")
    best = int(np.argmin(errors)) + 1
    assert run.result["stopped_early"]
    assert run.result["best_epoch"] == best
    assert run.result["epochs"] == len(errors) == best + 3
    named = int((run.folder / "checkpoints" / "best").read_text().strip()[5:])
    assert named == run.records[best - 1]["step"]
    assert same(run.weights, run.weights_at(named))
    assert not same(run.weights, run.weights_at(run.steps[-1]))
    assert run.result["valid"]["rmse"] == pytest.approx(min(errors))


# The other regularizers: with and without, where each shall make a difference.


FITTED = (*csv("classes"), *SMALL, "epochs=20", "evaluate_every=20", "optimizer.lr=0.01")


@pytest.fixture(scope="module")
def plain() -> Trained:
    """The run without a regularizer."""
    return launch(*FITTED)


def test_l2_makes_weights_small(plain: Trained) -> None:
    held = launch(*FITTED, "regularizer=[l2]", "regularizer.l2.weight=0.03")
    assert norm(held.weights) < 0.7 * norm(plain.weights)
    assert small(held.weights) < 0.2


def test_elastic_net_makes_weights_small_and_many_zero() -> None:
    words = (*FITTED, "optimizer=sgd", "scheduler=cosine", "optimizer.lr=0.05")
    plain, held = launch(*words), launch(*words, "regularizer=[elastic_net]", "regularizer.elastic_net.weight=0.06")
    assert norm(held.weights) < 0.6 * norm(plain.weights)
    assert small(held.weights) > small(plain.weights) + 0.2


def test_dropout_makes_training_harder_than_evaluation(plain: Trained) -> None:
    held = launch(*FITTED, "regularizer=[dropout]", "model.dropout=0.5")
    assert [m.p for m in held.network.modules() if isinstance(m, nn.Dropout)] == [0.5]
    assert not [m for m in plain.network.modules() if isinstance(m, nn.Dropout)]
    assert held.curve("train/loss")[-1] > 1.3 * training_loss(held)  # noise in training, none afterwards
    assert plain.curve("train/loss")[-1] < 1.3 * training_loss(plain)


def training_loss(run: Trained) -> float:
    """Cross-entropy of the bundle on the training rows, by scikit-learn."""
    rows = run.data.train
    return float(log_loss(rows["target"], run.model.outputs(rows["features"]).numpy()))


def test_batch_norm_centres_what_enters_the_activations(plain: Trained) -> None:
    held = launch(*FITTED, "optimizer.lr=0.001", "regularizer=[batch_norm]")
    block = held.network.requires_grad_(False).blocks[0]
    entering = block.norm(block.linear(held.data.train["features"]))
    torch.testing.assert_close(entering.mean(0), block.norm.bias, rtol=0, atol=0.1)
    torch.testing.assert_close(entering.std(0), block.norm.weight, rtol=0.1, atol=0)
    assert not any("norm" in name for name in plain.weights)


def test_activity_makes_activations_small(plain: Trained) -> None:
    held = launch(*FITTED, "regularizer=[activity]", "regularizer.activity.l1=0.01")
    with torch.no_grad():
        ours, plains = (run.network.blocks(run.data.valid["features"]).mean() for run in (held, plain))
    assert ours < 0.7 * plains


def test_noise_makes_the_network_less_sensitive_to_its_features(plain: Trained) -> None:
    def slope(run: Trained) -> float:
        x = run.data.valid["features"].clone().requires_grad_()
        run.network(x)[:, 0].sum().backward()
        assert x.grad is not None
        return float(x.grad.norm(dim=1).mean())

    held = launch(*FITTED, "regularizer=[noise]", "regularizer.noise.std=1.0")
    assert slope(held) < 0.7 * slope(plain)


def confidence(run: Trained) -> float:
    """The mean probability of the class that is predicted."""
    return float(run.model.outputs(run.data.train["features"]).max(1).values.mean())


def test_label_smoothing_keeps_probabilities_from_the_ends(plain: Trained) -> None:
    held = launch(*FITTED, "regularizer=[label_smoothing]", "loss.label_smoothing=0.3")
    assert confidence(held) < 0.83 < 0.88 < confidence(plain)  # the target of a right class is 0.8


def test_mixup_makes_the_network_linear_between_rows(plain: Trained) -> None:
    def bend(run: Trained) -> float:
        x = run.data.train["features"]
        one, other = x[: len(x) // 2], x[len(x) // 2 : len(x) // 2 * 2]
        ends = (run.model.outputs(one) + run.model.outputs(other)) / 2
        return float((run.model.outputs((one + other) / 2) - ends).abs().mean())

    held = launch(*FITTED, "regularizer=[mixup]", "regularizer.mixup.alpha=1.0")
    assert bend(held) < 0.8 * bend(plain)


def test_augment_makes_the_network_bear_shifted_images() -> None:
    def shifted_loss(run: Trained) -> float:
        rows = run.data.valid
        moved = torch.roll(rows["features"], 1, -1)
        return float(log_loss(rows["target"], run.model.outputs(moved).numpy(), labels=range(10)))

    words = ("data=digits", "data.rows=500", "model.hidden=[64]", "epochs=12", "evaluate_every=12", "batch_size=32")
    words = (*words, "optimizer.lr=0.003")
    assert shifted_loss(launch(*words, "regularizer=[augment]")) < 0.7 * shifted_loss(launch(*words))


def test_none_changes_no_bit(plain: Trained) -> None:
    assert same(launch(*FITTED, "regularizer=none").weights, plain.weights)
    assert not same(launch(*FITTED, "regularizer=[l2]").weights, plain.weights)


# Every file of the listing: composes, builds, trains three epochs, and beats predicting a constant.

KINDS = {"number": ("y",), "counts": ("y",), "binary": ("y",), "classes": ("y",), "multilabel": ("y", "z")}
NEEDS = {  # what a data source needs besides its name
    "csv": csv("classes"),
    "digits": ("data.rows=400",),
    "diabetes": ("optimizer.lr=0.003",),
}
THREE = ("model.hidden=[32]", "batch_size=4", "epochs=3", "trainer.save_every=1h")


def beats_a_constant(run: Trained) -> None:
    """On validation rows the bundle is better than the best constant of the training rows, by scikit-learn."""
    assert run.result["epochs"] == 3
    truth, past = run.data.valid["target"], run.data.train["target"]
    target, found = run.data.preparation.target, run.model.outputs(run.data.valid["features"])
    if target.kind == "number":
        truth, past = target.decode(truth), target.decode(past)
        assert mean_squared_error(truth, found) < 0.8 * mean_squared_error(truth, past.mean(0).expand_as(truth))
        assert mean_absolute_error(truth, found) < 0.9 * mean_absolute_error(truth, past.median(0).values.expand_as(truth))
    elif target.kind == "classes":
        found = found.double() / found.double().sum(1, keepdim=True)  # scikit-learn asks for sums of 1 in float64
        prior = (torch.bincount(past).double() / len(past)).expand_as(found)
        labels = range(prior.shape[1])
        assert log_loss(truth, found, labels=labels) < 0.9 * log_loss(truth, prior, labels=labels)
    else:
        for column in range(truth.shape[1]):
            yes, p = truth[:, column], found[:, column]
            assert log_loss(yes, p) < 0.9 * log_loss(yes, past[:, column].mean().expand_as(p))


@pytest.mark.parametrize("activation", options("activation"))
def test_every_activation_learns(activation: str) -> None:
    beats_a_constant(launch(*csv("classes"), *THREE, f"activation={activation}"))


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_optimizer_learns(optimizer: str) -> None:
    beats_a_constant(launch(*csv("classes"), *THREE, f"optimizer={optimizer}"))


@pytest.mark.parametrize("scheduler", options("scheduler"))
def test_every_scheduler_learns(scheduler: str) -> None:
    beats_a_constant(launch(*csv("classes"), *THREE, f"scheduler={scheduler}"))


@pytest.mark.parametrize("pipeline", options("pipeline"))
def test_every_pipeline_learns(pipeline: str) -> None:
    beats_a_constant(launch(*csv("number"), *THREE, f"pipeline={pipeline}"))


@pytest.mark.parametrize("regularizer", options("regularizer"))
def test_every_regularizer_learns(regularizer: str) -> None:
    beats_a_constant(launch("data=digits", "data.rows=400", *THREE, f"regularizer=[{regularizer}]"))


@pytest.mark.parametrize("model", options("model"))
def test_every_model_learns(model: str) -> None:
    beats_a_constant(launch(*csv("classes"), *THREE[1:], f"model={model}"))


@pytest.mark.parametrize("data", options("data"))
def test_every_data_source_learns(data: str) -> None:
    beats_a_constant(launch(f"data={data}", *NEEDS.get(data, ()), *THREE))


def losses() -> list[tuple[str, str]]:
    """Every loss with every kind of target that it takes."""
    pairs = []
    for name, file in options("loss").items():
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        kinds = locate(node.get("loss", node)["_target_"], "loss._target_", "loss").kinds
        pairs += [(name, "counts" if name == "poisson" else kind) for kind in kinds]
    return pairs


@pytest.mark.parametrize(("loss", "kind"), losses())
def test_every_loss_learns(loss: str, kind: str) -> None:
    number = ("data.columns.y=number",) if kind == "counts" else ()
    beats_a_constant(launch(*csv(kind, *KINDS[kind]), *THREE, f"loss={loss}", *number))

"""Every word of the command line does what it says, seen through whole runs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from runs import Trained, command, launch, predict, working
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score, log_loss, mean_absolute_error, mean_squared_error
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor, nn

from dltrain.build import locate
from dltrain.choices import options
from dltrain.data import Data
from dltrain.errors import ConfigError
from dltrain.order import epoch_order, shard_bounds
from dltrain.player import Finite, Player
from dltrain.step import Step

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
    days = pd.date_range("2024-01-01", periods=rows)
    close = np.sin(np.arange(rows) / 5) + 0.1 * draw.normal(size=rows)
    pd.DataFrame({"date": days, "close": close}).to_csv("prices.csv", index=False)
    for shape, bright in (("left", np.s_[:, :4]), ("right", np.s_[:, 4:])):
        Path("shapes", shape).mkdir(parents=True)
        for number in range(40):
            pixels = draw.random((8, 8)) / 2
            pixels[bright] += 0.4
            Image.fromarray((255 * pixels).astype(np.uint8)).save(f"shapes/{shape}/{number}.png")


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
    words = [
        w for w in (*SENTENCE, *SETTINGS, "epochs=4", "batch_size=8") if not w.startswith((f"{group}=", f"{group}."))
    ]
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
    leaves = [m for m in network.modules() if not list(m.children())]
    assert len(leaves) == 3
    assert all(isinstance(m, kind) for m, kind in zip(leaves, (nn.Linear, nn.Tanh, nn.Linear), strict=True))
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
    "images": ("data.path=shapes", "data.channels=1"),
    "series": ("data.path=prices.csv", "data.time=date", "data.target=close"),
}
ELSEWHERE = {"decoder", "encoder_decoder", "gpt", "pretrained", "unet"}  # make maps, or read others: test_matrix.py
TOKENS = {"text", "pairs"}  # are learnt from in tests/test_language.py
THREE = ("model.hidden=[32]", "batch_size=4", "epochs=3", "trainer.save_every=1h")


def beats_a_constant(run: Trained) -> None:
    """On validation rows the bundle is better than the best constant of the training rows, by scikit-learn."""
    assert run.result["epochs"] == 3
    truth, past = run.data.valid["target"], run.data.train["target"]
    target, found = run.data.preparation.target, run.model.outputs(run.data.valid["features"])
    if target.kind == "number":
        truth, past = target.decode(truth), target.decode(past)
        assert mean_squared_error(truth, found) < 0.8 * mean_squared_error(truth, past.mean(0).expand_as(truth))
        assert mean_absolute_error(truth, found) < 0.9 * mean_absolute_error(
            truth, past.median(0).values.expand_as(truth)
        )
    elif target.kind == "classes":
        found = found.double() / found.double().sum(1, keepdim=True)  # scikit-learn asks for sums of 1 in float64
        prior = (torch.bincount(past).double() / len(past)).expand_as(found)
        labels = range(prior.shape[1])
        assert log_loss(truth, found, labels=labels) < 0.95 * log_loss(truth, prior, labels=labels)
    else:
        for column in range(truth.shape[1]):
            yes, p = truth[:, column], found[:, column]
            assert log_loss(yes, p) < 0.95 * log_loss(yes, past[:, column].mean().expand_as(p))


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
    words = (*csv("classes"), *THREE[1:], f"model={model}")
    if model not in ELSEWHERE:
        beats_a_constant(launch(*words))
        return
    with pytest.raises(ConfigError, match=f"model={model}") as misfit:
        launch(*words)
    assert "\n" not in str(misfit.value)


@pytest.mark.parametrize("data", sorted({*options("data")} - TOKENS))
def test_every_data_source_learns(data: str) -> None:
    beats_a_constant(launch(f"data={data}", *NEEDS.get(data, ()), *THREE))


def losses() -> list[tuple[str, str]]:
    """Every loss with every kind of target that it takes; tokens are in test_language."""
    pairs = []
    for name, file in options("loss").items():
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        kinds = locate(node.get("loss", node)["_target_"], "loss._target_", "loss").kinds
        pairs += [(name, "counts" if name == "poisson" else kind) for kind in kinds if kind != "tokens"]
    return pairs


@pytest.mark.parametrize(("loss", "kind"), losses())
def test_every_loss_learns(loss: str, kind: str) -> None:
    number = ("data.columns.y=number",) if kind == "counts" else ()
    beats_a_constant(launch(*csv(kind, *KINDS[kind]), *THREE, f"loss={loss}", *number))


# The settings of the run itself.

QUICK = (*csv("number"), *SMALL, "epochs=3")


@pytest.fixture(scope="module")
def quick() -> tuple[Trained, list[Moment]]:
    return watched(*QUICK)


def test_seed_draws_weights_and_split(quick: tuple[Trained, list[Moment]]) -> None:
    run, moments = quick
    again, other = launch(*QUICK), watched(*QUICK, "seed=1")
    assert again.result["weights_sha256"] == run.result["weights_sha256"]
    assert not same(other[1][0].before, moments[0].before)
    assert not torch.equal(other[0].data.test["row"], run.data.test["row"])


def test_seed_and_epoch_draw_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    call = Step.__call__

    def watch(self: Step, batch: Mapping[str, Tensor], n_rows: int, step: int) -> None:
        seen.append(batch["features"])
        call(self, batch, n_rows, step)

    monkeypatch.setattr(Step, "__call__", watch)
    run = launch(*QUICK, "epochs=2", "data.split.seed=0")
    launch(*QUICK, "epochs=1", "data.split.seed=0", "seed=1")
    first, second, other = (torch.cat(seen[k : k + 9]) for k in (0, 9, 18))
    rows = {tuple(row) for row in run.data.train["features"].tolist()}
    assert len(rows) == len(first) == len(second) == len(other) == 280
    assert all({tuple(row) for row in order.tolist()} == rows for order in (first, second, other))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("batch_size", "steps"), [("32", 9), ("1", 280), ("all", 1)])
def test_batch_size_and_epochs_make_the_steps(batch_size: str, steps: int) -> None:
    run, moments = watched(*QUICK, f"batch_size={batch_size}", "epochs=2")
    assert len(run.data.train["target"]) == 280
    assert run.result["epochs"] == 2
    assert run.result["steps"] == len(moments) == 2 * steps


def test_clip_norm_bounds_every_gradient(quick: tuple[Trained, list[Moment]]) -> None:
    def largest(moments: list[Moment]) -> float:
        return max(float(torch.cat([g.flatten() for g in m.gradients.values()]).norm()) for m in moments)

    assert largest(watched(*QUICK, "clip_norm=0.2")[1]) <= 0.2 * (1 + 1e-5) < 0.5 < largest(quick[1])


def test_shards_change_nothing_but_what_couples_rows(quick: tuple[Trained, list[Moment]]) -> None:
    assert near(launch(*QUICK, "shards=4").weights, quick[0].weights)
    normed = (*QUICK, "regularizer=[batch_norm]")  # normalises within a shard
    assert not near(launch(*normed, "shards=4").weights, launch(*normed).weights, atol=1e-3)


def test_exact_sums_the_shards_in_a_tree() -> None:
    words = (*csv("number"), "model.hidden=[16]", "loss=mse", "batch_size=all", "epochs=1", "shards=8")
    run, [moment] = watched(*words, "exact=true")
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    network.load_state_dict(dict(zip(network.state_dict(), moment.before.values(), strict=True)))
    order = epoch_order(280, 0, 0)
    x, y = (run.data.train[name][order] for name in ("features", "target"))
    sums = []
    for start, end in shard_bounds(280, 8):
        loss = F.mse_loss(network(x[start:end]), y[start:end], reduction="sum")
        sums.append(torch.autograd.grad(loss, list(network.parameters())))
    while len(sums) > 1:
        sums = [tuple(a + b for a, b in zip(*two, strict=True)) for two in zip(sums[::2], sums[1::2], strict=True)]
    for ours, tree in zip(moment.gradients.values(), sums[0], strict=True):
        assert torch.equal(ours, tree * (torch.ones(()) / 280))
    loose = watched(*words)[1][0]
    assert near(loose.gradients, moment.gradients)
    assert not same(loose.gradients, moment.gradients)
    assert (loose.fused, moment.fused) == (True, False)


def test_precision_is_that_of_the_products(quick: tuple[Trained, list[Moment]]) -> None:
    seen: set[torch.dtype] = set()

    def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) and module.training:
            seen.add(output.dtype)

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        run = launch(*QUICK, "precision=bfloat16")
    finally:
        handle.remove()
    assert torch.bfloat16 in seen
    assert {value.dtype for value in run.weights.values()} == {torch.float32}
    assert run.curve("train/loss") == pytest.approx(quick[0].curve("train/loss"), rel=0.05)
    assert run.curve("train/loss") != quick[0].curve("train/loss")


def test_monitor_picks_the_best_epoch() -> None:
    words = (*csv("noise"), *SMALL, "epochs=12", "optimizer.lr=0.01")
    by_rmse, by_r2 = launch(*words), launch(*words, "monitor=mae")
    assert by_rmse.result["best_epoch"] == int(np.argmin(by_rmse.curve("valid/rmse"))) + 1
    assert by_r2.result["best_epoch"] == int(np.argmin(by_r2.curve("valid/mae"))) + 1
    assert by_rmse.result["best_epoch"] != by_r2.result["best_epoch"]
    assert by_r2.result["monitor"] == "mae"


def test_evaluate_every_counts_epochs_or_steps() -> None:
    words = (*csv("number"), *SMALL, "epochs=5")  # of nine steps
    by_epoch = launch(*words, "evaluate_every=2")
    assert [r["epoch"] for r in by_epoch.records if "valid/rmse" in r] == [2, 4, 5]
    assert [r["epoch"] for r in by_epoch.records] == [1, 2, 3, 4, 5]
    by_step = launch(*words, "evaluate_every=10steps")
    assert [r["step"] for r in by_step.records if "valid/rmse" in r] == [10, 20, 30, 40, 45]


def test_ema_is_the_average_of_the_weights() -> None:
    run, moments = watched(*QUICK, "ema=0.9", "evaluate_every=3")
    average = moments[0].before
    for moment in moments:
        average = {name: 0.9 * value + 0.1 * moment.after[name] for name, value in average.items()}
    assert near(run.weights, average)
    assert not near(run.weights, moments[-1].after, atol=1e-3)


def test_name_and_output_root_say_where(tmp_path: Path) -> None:
    command(*QUICK, f"output_root={tmp_path}", "name=mine")
    assert (tmp_path / "mine" / "result.json").is_file()
    command(*QUICK, f"output_root={tmp_path}")
    [hashed] = [path for path in tmp_path.iterdir() if path.name != "mine"]
    assert hashed.name.startswith("csv-mlp-")


def test_threads_are_those_asked_for() -> None:
    before = torch.get_num_threads()
    assert [launch(*ROWS, f"trainer.threads={n}").result["threads"] for n in (2, 1)] == [2, 1]
    torch.set_num_threads(before)


def test_save_every_is_when_checkpoints_are_written() -> None:
    words = (*csv("number"), "model.hidden=[16]", "batch_size=32", "epochs=3", "evaluate_every=3")
    assert launch(*words, "trainer.save_every=1h").steps == [27]
    assert launch(*words, "trainer.save_every=1steps").steps == [25, 26, 27]
    assert launch(*words, "trainer.save_every=10steps").steps == [10, 20, 27]
    assert launch(*words, "trainer.save_every=2").steps == [18, 27]


def test_deterministic_turns_torchs_own_switch(quick: tuple[Trained, list[Moment]]) -> None:
    run, moments = watched(*QUICK, "trainer.deterministic=false")
    assert not any(moment.deterministic for moment in moments)
    assert all(moment.deterministic for moment in quick[1])
    assert (run.result["deterministic"], quick[0].result["deterministic"]) == (False, True)


@pytest.mark.parametrize("model", ["cnn", "resmlp"])
def test_norm_may_be_null_where_another_is_shipped(model: str) -> None:
    words = ("data=digits", "data.rows=200", "epochs=1", f"model={model}")
    run, plain = launch(*words), launch(*words, "model.norm=null")
    assert any(".norm." in name for name in run.weights)
    assert not any(".norm." in name for name in plain.weights)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler
def test_compile_computes_the_same(quick: tuple[Trained, list[Moment]]) -> None:
    run = launch(*QUICK, "trainer.compile=true")
    assert run.result["compile"]
    assert near(run.weights, quick[0].weights, atol=1e-4)


def test_tensorboard_is_told_every_record() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = launch(*QUICK, "logger=[tensorboard]")
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    written = [event.value for event in events.Scalars("valid/rmse")]
    assert written == pytest.approx(run.curve("valid/rmse"), rel=1e-6)
    assert len(written) == 3


def test_a_choice_that_nothing_uses_is_said() -> None:
    words = (*csv("number"), "epochs=1", "batch_size=32")
    said = "activation=tanh changes nothing here"
    assert said in launch(*words, "activation=tanh", "model=linear").printed
    assert said not in launch(*words, "activation=tanh").printed
    assert "changes nothing" not in launch(*words, "model=linear").printed


# The settings of the data, and those of losses and tasks that act on rows.

ROWS = (*csv("number"), "model=linear", "epochs=1", "batch_size=all")


def test_counts_of_about_twenty_kinds_are_one_kind_of_target_on_every_side() -> None:
    """All rows have more different counts than training rows have."""
    y = np.concatenate([np.arange(20).repeat(5), np.arange(20, 26)])
    pd.DataFrame({"a": np.arange(len(y)) % 7, "y": y}).to_csv("some_counts.csv", index=False)
    words = (*csv("some_counts"), "model=linear", "epochs=1", "data.split.kind=time")
    data = launch(*words, "data.split.valid=3", "data.split.test=3").data
    assert data.preparation.target.kind == "number"
    assert len(np.unique(data.train["target"])) == 20
    frame = pd.read_csv("some_counts.csv")
    frame[frame["y"] < 20].to_csv("few_counts.csv", index=False)
    with pytest.raises(
        ConfigError, match=r"loss=poisson must go with .* got classes \(y\); .* or data.columns.y=number"
    ):
        launch(*csv("few_counts"), "model=linear", "epochs=1", "loss=poisson")
    words = (*csv("few_counts"), "model=linear", "epochs=1", "loss=poisson", "data.columns.y=number")
    assert launch(*words).data.preparation.target.kind == "number"


def sizes(data: Data) -> tuple[int, int, int]:
    return len(data.train["row"]), len(data.valid["row"]), len(data.test["row"])


def test_rows_are_the_first_so_many() -> None:
    data = launch(*ROWS, "data.rows=100").data
    assert sizes(data) == (70, 15, 15)
    assert max(int(rows["row"].max()) for rows in (data.train, data.valid, data.test)) == 99


@pytest.mark.parametrize(
    ("settings", "expected"),
    [((), (280, 60, 60)), (("valid=0.2", "test=0.1"), (280, 80, 40)), (("valid=50", "test=0"), (350, 50, 0))],
)
def test_split_sizes_are_fractions_or_counts(settings: tuple[str, ...], expected: tuple[int, int, int]) -> None:
    run = launch(*ROWS, *(f"data.split.{setting}" for setting in settings))
    assert sizes(run.data) == expected
    assert list(run.read("data.json")["splits"].values()) == list(expected)
    assert bool(run.result["test"]) == (expected[2] > 0)


def test_split_seed_moves_rows_and_nothing_else() -> None:
    one, [first] = watched(*ROWS)
    other, [moment] = watched(*ROWS, "data.split.seed=5")
    assert not torch.equal(one.data.test["row"], other.data.test["row"])
    assert same(first.before, moment.before)


def test_split_by_time_tests_the_last_rows() -> None:
    data = launch(*ROWS, "data.split.kind=time").data
    assert int(data.train["row"].max()) < int(data.valid["row"].min())
    assert int(data.valid["row"].max()) < int(data.test["row"].min())
    assert int(data.test["row"].max()) == 399
    by = pd.read_csv("number.csv")["c"].to_numpy()
    data = launch(*ROWS, "data.split.kind=time", "data.split.by=c").data
    times = [by[rows["row"].numpy()] for rows in (data.train, data.valid, data.test)]
    assert all(one.max() <= other.min() for one, other in pairwise(times))


def test_split_by_group_leaves_no_group_on_two_sides() -> None:
    frame = pd.read_csv("number.csv").assign(house=np.arange(400) % 37)
    frame.to_csv("groups.csv", index=False)
    words = (*csv("groups"), "data.ignore=[house]", *ROWS[3:])
    assert sides(launch(*words, "data.split.kind=group", "data.split.by=house").data, frame["house"]) == 37
    assert sides(launch(*words).data, frame["house"]) > 60


def sides(data: Data, groups: pd.Series) -> int:
    """How many pairs of a group and a side there are."""
    return sum(groups.iloc[rows["row"].numpy()].nunique() for rows in (data.train, data.valid, data.test))


def test_a_row_of_weight_two_is_that_row_twice() -> None:
    frame = pd.read_csv("number.csv")
    weights = np.random.default_rng(1).integers(0, 4, 300)
    frame[:300].assign(w=weights).to_csv("weighted.csv", index=False)
    frame[:300].loc[np.repeat(np.arange(300), weights)].to_csv("repeated.csv", index=False)
    frame[300:].assign(w=1).to_csv("other.csv", index=False)
    words = ("model=linear", "data.target=y", "pipeline=none", "data.target_transform=none", "data.ignore=[b]")
    words = (*words, "batch_size=all", "epochs=30", "optimizer=sgd")
    words = (*words, "data.valid_path=other.csv", "data.test_path=other.csv")
    weighted = launch("data=csv", "data.path=weighted.csv", "data.weight=w", *words)
    repeated = launch("data=csv", "data.path=repeated.csv", *words)
    assert near(weighted.weights, repeated.weights)
    plain = launch("data=csv", "data.path=weighted.csv", *(word.replace("[b]", "[b,w]") for word in words))
    assert not near(plain.weights, repeated.weights, atol=1e-2)


def test_balanced_class_weights_are_scikit_learns() -> None:
    words = (*csv("rare"), *SMALL, "epochs=10", "optimizer.lr=0.01", "evaluate_every=10", "batch_size=all")
    plain, balanced = launch(*words), launch(*words, "loss.class_weights=balanced")
    frame = pd.read_csv("rare.csv")
    train = balanced.data.train["row"].numpy()
    weights = np.ones(len(frame))
    weights[train] = compute_sample_weight("balanced", frame["y"].iloc[train])
    frame.assign(w=weights).to_csv("rare_weighted.csv", index=False)
    by_row = launch("data=csv", "data.path=rare_weighted.csv", "data.target=y", "data.weight=w", *words[3:])
    assert near(balanced.weights, by_row.weights)
    assert balanced.result["valid"]["balanced_accuracy"] > plain.result["valid"]["balanced_accuracy"] + 0.1


def test_an_automatic_threshold_finds_the_rare_class() -> None:
    words = (*csv("rare"), *SMALL, "epochs=30", "optimizer.lr=0.01", "evaluate_every=30", "optimizer.weight_decay=0")
    words = (*words, "regularizer=[noise]", "regularizer.noise.std=1")
    plain, tuned = launch(*words), launch(*words, "task.threshold=auto")
    assert tuned.result["valid"]["f1"] > plain.result["valid"]["f1"] + 0.05
    assert same(tuned.weights, plain.weights)
    threshold = float(tuned.model.task.threshold)
    assert 0 < threshold < 0.5
    found = predict(tuned, "rare.csv")
    assert ((found["p_yes"] > threshold) == (found["prediction"] == "yes")).all()
    rows = tuned.data.valid["row"].numpy()
    truth = pd.read_csv("rare.csv")["y"].iloc[rows]
    assert f1_score(truth, found["prediction"].iloc[rows], pos_label="yes") == pytest.approx(
        tuned.result["valid"]["f1"]
    )


def test_a_logarithmic_target_is_linear_again() -> None:
    words = (*csv("exponential"), "model=linear", "optimizer=sgd", "optimizer.lr=0.1", "batch_size=all", "epochs=100")
    words = (*words, "evaluate_every=100")
    plain, log = launch(*words), launch(*words, "data.target_transform=log")
    found = predict(log, "exponential.csv")["prediction"]
    truth = pd.read_csv("exponential.csv")["y"]
    assert (found > 0).all()
    assert np.abs(np.log(found) - np.log(truth)).mean() < 0.1  # the noise has a deviation of 0.1
    assert (predict(plain, "exponential.csv")["prediction"] < 0).any()
    rows = log.data.valid["row"].numpy()
    rmse = mean_squared_error(truth.iloc[rows], found.iloc[rows]) ** 0.5
    assert log.result["valid"]["rmse"] == pytest.approx(rmse, rel=1e-5)

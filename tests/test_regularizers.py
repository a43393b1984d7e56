"""Regularizers: each has the effect that its name promises, and only that."""

import inspect
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from sklearn.linear_model import ElasticNet as Reference
from torch import nn

from dltrain import regularizers
from dltrain.build import locate
from dltrain.data.target import Target
from dltrain.errors import ConfigError
from dltrain.losses import CrossEntropy
from dltrain.models.cnn import CNN
from dltrain.models.linear import Linear
from dltrain.models.mlp import MLP
from dltrain.order import row_seeds
from dltrain.regularizers import (
    L1,
    L2,
    ORDER,
    Activity,
    Augment,
    EarlyStopping,
    ElasticNet,
    MaxNorm,
    Mixup,
    Noise,
    Regularizer,
)

FOLDER = Path(__file__).parent.parent / "configs" / "regularizer"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TARGET = Target("classes", ("species",), ("a", "b", "c"), (4, 4, 4))
NUMBER = Target("number", ("price",))


def shipped(name):
    """A shipped YAML: its package, and its settings."""
    path = FOLDER / f"{name}.yaml"
    package = path.read_text().splitlines()[0].removeprefix("# @package ")
    return package, OmegaConf.to_container(OmegaConf.load(path))


CLASSES = [name for name in SHIPPED if "_target_" in shipped(name)[1]]


def batch(rows=12, shape=(6,), seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "features": torch.randn(rows, *shape, generator=draw),
        "target": torch.arange(rows) % 3,
        "row": torch.arange(rows),
        "weight": torch.rand(rows, generator=draw),
        "seed": row_seeds(torch.arange(rows), seed, epoch=0),
    }


def seeded(part, rows, seed=0):
    torch.manual_seed(seed)
    return part.rows(rows)


def trained(part=None, steps=150, lr=0.03, seed=0):
    """A small network and its activations after steps on 20 features of which two matter; verbs called as in a loop."""
    torch.manual_seed(seed)
    network = MLP((20,), (1,), hidden=[24])
    x = torch.randn(64, 20)
    y = x[:, :1] - 2 * x[:, 1:2] + 0.3 * torch.randn(64, 1)
    activations: list[torch.Tensor] = []
    network.blocks[0].activation.register_forward_hook(lambda _m, _i, output: activations.append(output))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)  # or weights swing around zero
        activations.clear()
        loss = nn.functional.mse_loss(network(x), y)
        extra = None if part is None else part.penalty(network, activations)
        if extra is not None:
            loss = loss + (extra / len(x) if part.reads_activations else extra)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if part is not None:
            part.constrain(network)
            if isinstance(part, MaxNorm):
                assert max(row_norms(network)) <= part.limit * (1 + 1e-6)
    activations.clear()
    network(x)
    return network, activations[0].detach()


def row_norms(network):
    return [norm.item() for p in network.parameters() if p.ndim > 1 for norm in p.detach().flatten(1).norm(dim=1)]


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters() if p.ndim > 1])


@pytest.fixture(scope="module")
def plain():
    torch.set_num_threads(1)
    return trained()


def test_l1_brings_weights_to_zero(plain):
    near = [(weights(network).abs() < 1e-3).float().mean() for network in (plain[0], trained(L1(0.02))[0])]
    assert near[0] < 0.05
    assert near[1] > 0.3


def test_l2_shrinks_the_norm(plain):
    assert weights(trained(L2(0.01))[0]).norm() < 0.7 * weights(plain[0]).norm()


@pytest.mark.parametrize("make", [lambda: L1(0.02), lambda: L2(0.02), lambda: ElasticNet(0.02, 0.3)])
def test_a_weight_penalty_is_its_formula_and_spares_biases_and_norms(make):
    torch.manual_seed(0)
    network = MLP((5,), (2,), hidden=[7], norm="layer")
    part = make()
    w = weights(network).double()
    expected = {
        L1: 0.02 * w.abs().sum(),
        L2: 0.02 * (w**2).sum(),
        ElasticNet: 0.02 * (0.3 * w.abs().sum() + 0.5 * 0.7 * (w**2).sum()),
    }[type(part)]
    penalty = part.penalty(network, [])
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-5)
    penalty.backward()
    assert all((p.grad is not None) == (p.ndim > 1) for p in network.parameters())


def test_a_penaltys_gradient_is_elementwise_so_a_shard_has_the_same_bits():
    torch.manual_seed(0)
    whole = nn.Linear(9, 8, bias=False)
    halves = [nn.Linear(9, 4, bias=False) for _ in range(2)]
    for half, rows in zip(halves, whole.weight.detach().chunk(2), strict=True):
        half.weight.data.copy_(rows)
    for part in (L1(0.3), L2(0.3), ElasticNet(0.3, 0.2)):
        for network in (whole, *halves):
            network.zero_grad()
            part.penalty(network, []).backward()
        assert torch.equal(whole.weight.grad, torch.cat([half.weight.grad for half in halves]))


def test_elastic_net_finds_scikit_learns_solution():
    torch.manual_seed(0)
    x = torch.randn(80, 5)
    y = x @ torch.tensor([2.0, -1.0, 0.0, 0.0, 0.5]) + 0.1 * torch.randn(80)
    alpha, ratio = 0.2, 0.6
    expected = (
        Reference(alpha=alpha, l1_ratio=ratio, fit_intercept=False, tol=1e-8)
        .fit(x.double().numpy(), y.double().numpy())
        .coef_
    )
    network, part = Linear((5,), (1,), bias=False), ElasticNet(2 * alpha, ratio)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step / 50)
        optimizer.zero_grad()
        (nn.functional.mse_loss(network(x).squeeze(1), y) + part.penalty(network, [])).backward()
        optimizer.step()
    torch.testing.assert_close(network.head.weight.detach()[0], torch.tensor(expected).float(), atol=3e-3, rtol=0)


def test_max_norm_holds_after_every_step_and_leaves_small_rows_alone(plain):
    assert max(row_norms(plain[0])) > 1.0
    network, _ = trained(MaxNorm(0.5))  # checks the limit after every step
    assert max(row_norms(network)) == pytest.approx(0.5, rel=1e-5)
    kernels = CNN((1, 6, 6), (2,), channels=[4])
    with torch.no_grad():
        kernels.stages[0].conv.weight[0] *= 100
    before = kernels.stages[0].conv.weight.detach().clone()
    biases = kernels.head.bias.detach().clone()
    MaxNorm(2.0).constrain(kernels)
    after = kernels.stages[0].conv.weight.detach()
    assert torch.equal(after[1:], before[1:])
    torch.testing.assert_close(after[0], before[0] * 2.0 / before[0].norm())
    assert torch.equal(kernels.head.bias, biases)


@pytest.mark.parametrize("settings", [{"l1": 0.03}, {"l1": 0.0, "l2": 0.03}])
def test_activity_lowers_activations(plain, settings):
    assert trained(Activity(**settings))[1].abs().mean() < 0.8 * plain[1].abs().mean()


def test_activity_is_a_sum_over_rows():
    part, a = Activity(0.1, 0.2), torch.randn(6, 4)
    expected = 0.1 * a.abs().sum() + 0.2 * (a**2).sum()
    torch.testing.assert_close(part.penalty(nn.Linear(1, 1), [a[:2], a[2:]]), expected)
    assert part.reads_activations
    assert part.penalty(nn.Linear(1, 1), []) is None


def test_noise_changes_only_features_by_its_deviation():
    rows = batch(2000)
    noisy = seeded(Noise(0.3), rows)
    difference = noisy["features"] - rows["features"]
    assert difference.std().item() == pytest.approx(0.3, rel=0.05)
    assert abs(difference.mean().item()) < 0.02
    assert all(noisy[key] is rows[key] for key in ("target", "row", "weight"))
    assert torch.equal(rows["features"], batch(2000)["features"])
    assert torch.equal(noisy["features"], seeded(Noise(0.3), rows)["features"])
    assert not torch.equal(noisy["features"], seeded(Noise(0.3), rows, seed=1)["features"])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_makes_probabilities_by_a_share_from_beta(alpha):
    rows = batch(4000, (1,)) | {"target": torch.arange(4000) % 3}
    rows["features"] = rows["target"].float().unsqueeze(1)
    mixed = seeded(Mixup(TARGET, alpha), rows)
    soft = mixed["target"]
    assert soft.shape == (4000, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(4000))
    torch.testing.assert_close(mixed["features"][:, 0], soft @ torch.tensor([0.0, 1.0, 2.0]))  # the same share for both
    share = soft.gather(1, rows["target"].unsqueeze(1)).squeeze(1)[(soft > 0).sum(1) == 2]
    # Beta(alpha, alpha): mean 1/2, variance 1 / (4 * (2 * alpha + 1))
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    assert torch.equal(mixed["row"], rows["row"])
    output = torch.randn(4000, 3, requires_grad=True)
    CrossEntropy(TARGET)(output, soft)[0].backward()
    assert output.grad.isfinite().all()


def test_mixup_mixes_numbers_and_weights_by_the_same_share():
    rows = batch(50, (1,))
    rows["target"] = 3 * rows["features"] + 1
    rows["weight"] = rows["features"][:, 0] + 5
    mixed = seeded(Mixup(NUMBER, 1.0), rows)
    torch.testing.assert_close(mixed["target"], 3 * mixed["features"] + 1)
    torch.testing.assert_close(mixed["weight"], mixed["features"][:, 0] + 5)
    assert not torch.allclose(mixed["features"], rows["features"])


@pytest.mark.parametrize("shape", [(2, 16), (1, 8, 8), (3, 16, 8)])
def test_augment_moves_every_row_by_its_own_whole_number_of_places(shape):
    rows = batch(200, shape)
    moved = seeded(Augment(shape), rows)
    assert moved["features"].shape == rows["features"].shape
    assert all(moved[key] is rows[key] for key in ("target", "row", "weight"))
    reach = [round(0.125 * side) for side in shape[1:]]
    seen = set()
    for before, after in zip(rows["features"], moved["features"], strict=True):
        padded = nn.functional.pad(before, [r for side in reversed(reach) for r in (side, side)])
        moves = []
        for move in product(*[range(-r, r + 1) for r in reach]):
            window = [slice(r - m, r - m + n) for r, m, n in zip(reach, move, shape[1:], strict=True)]
            if torch.equal(after, padded[(slice(None), *window)]):
                moves.append(move)
        assert len(moves) == 1
        seen.add(moves[0])
    assert len(seen) == prod(2 * r + 1 for r in reach)


def test_augment_mirrors_half_of_the_images_and_scales_rows():
    rows = batch(400, (2, 4, 6))
    mirrored = seeded(Augment((2, 4, 6), shift=0.0, flip=True), rows)["features"]
    same = (mirrored == rows["features"]).flatten(1).all(1)
    flipped = (mirrored == rows["features"].flip(-1)).flatten(1).all(1)
    assert (same ^ flipped).all()
    assert 0.4 < same.float().mean() < 0.6
    scaled = seeded(Augment((2, 4, 6), shift=0.0, scale=0.2), rows)["features"]
    factor = (scaled / rows["features"]).flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), rtol=1e-4, atol=1e-5)
    assert factor[:, 0].std().item() == pytest.approx(0.2, rel=0.15)
    assert torch.equal(seeded(Augment((2, 4, 6), shift=0.0), rows)["features"], rows["features"])


def test_early_stopping_waits_for_its_patience_and_asks_for_its_delta():
    rule = EarlyStopping(patience=3, min_delta=0.1)
    assert [rule.should_stop(n) for n in range(5)] == [False, False, False, True, True]
    cases = [(1.0, None), (1.0, 1.2), (1.15, 1.2), (1.25, 1.2), (float("nan"), 1.2), (float("nan"), None)]
    assert [rule.improved(value, best, "min") for value, best in cases] == [True, True, False, False, False, False]
    assert [rule.improved(value, best, "max") for value, best in cases] == [True, False, False, False, False, False]
    assert rule.improved(1.31, 1.2, "max")
    assert not EarlyStopping().improved(1.2, 1.2, "min")


@pytest.mark.parametrize("name", CLASSES)
def test_a_yaml_stands_in_its_own_package_says_every_default_and_has_a_place_in_the_order(name):
    package, settings = shipped(name)
    kind = locate(settings.pop("_target_"), "regularizer", "regularizer")
    assert package == f"regularizer.{name}"
    assert issubclass(kind, Regularizer)
    assert kind in ORDER
    handed = {"target": TARGET, "shape_in": (1, 8, 8)}
    asked = {key: value for key, value in handed.items() if key in inspect.signature(kind).parameters}
    assert vars(kind(**asked, **settings)) == vars(kind(**asked))
    # the loop seeds the generator only before parts that say that they draw
    rows = batch(shape=(1, 8, 8))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    changed = kind(**asked, **settings).rows(rows)
    assert (changed is not rows) == (kind.rows is not Regularizer.rows)
    assert kind.draws != torch.equal(torch.get_rng_state(), before)
    if kind is not EarlyStopping:
        assert kind(**asked, **settings | {"players": ["generator"]}).players == ["generator"]


def test_the_order_holds_every_class_once_in_the_order_of_the_table():
    kinds = [k for k in vars(regularizers).values() if inspect.isclass(k) and issubclass(k, Regularizer)]
    assert set(ORDER) == set(kinds) - {Regularizer}
    assert [L1, L2, ElasticNet, MaxNorm, Activity, Noise, Mixup, Augment, EarlyStopping] == ORDER


def test_files_without_a_class_change_the_part_that_they_name():
    others = {name: shipped(name) for name in SHIPPED if name not in CLASSES}
    assert others == {
        "batch_norm": ("model", {"norm": "batch"}),
        "dropout": ("model", {"dropout": 0.5}),
        "label_smoothing": ("loss", {"label_smoothing": 0.1}),
        "none": ("_global_", {}),
    }
    models = {path.stem: OmegaConf.load(path) for path in (FOLDER.parent / "model").glob("*.yaml")}
    assert "dropout" not in models["linear"]
    assert "norm" not in models["linear"]


SPATIAL = (
    "regularizer=augment must go with rows of shape (channels, length) or (channels, height, width), "
    "got (10,); set data.shape or leave augment out"
)
PATIENCE = "regularizer.early_stopping.patience must be a whole number of at least 1"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: L1(-1), "regularizer.l1.weight must be a number of at least 0, got -1"),
        (lambda: L2(float("nan")), "regularizer.l2.weight must be a number of at least 0, got nan"),
        (lambda: L2(None), "regularizer.l2.weight must be a number of at least 0, got null"),
        (lambda: ElasticNet(0.1, 1.5), "regularizer.elastic_net.ratio must be in [0, 1], got 1.5"),
        (lambda: MaxNorm(0), "regularizer.max_norm.limit must be a number above 0, got 0"),
        (lambda: Activity(l2=-0.5), "regularizer.activity.l2 must be a number of at least 0, got -0.5"),
        (lambda: Noise("loud"), "regularizer.noise.std must be a number of at least 0, got loud"),
        (lambda: Mixup(TARGET, 0), "regularizer.mixup.alpha must be a number above 0, got 0"),
        (lambda: Augment((1, 8), shift=1), "regularizer.augment.shift must be in [0, 1), got 1"),
        (
            lambda: Augment((1, 8), flip=True),
            "regularizer.augment.flip must be false for signals (it mirrors images), got true",
        ),
        (lambda: Augment((1, 8, 8), flip="yes"), "regularizer.augment.flip must be true or false, got yes"),
        (lambda: Augment((10,)), SPATIAL),
        (lambda: EarlyStopping(0), f"{PATIENCE}, got 0"),
        (lambda: EarlyStopping(True), f"{PATIENCE}, got true"),
        (
            lambda: EarlyStopping(5, -0.1),
            "regularizer.early_stopping.min_delta must be a number of at least 0, got -0.1",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(make, sentence):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == sentence

"""Losses against torch's own modules and independent formulas, in value and gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from dltrain import losses
from dltrain.build import locate
from dltrain.data.target import Target
from dltrain.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "configs" / "loss"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ROWS = 12


def numbers(n=1, transform="standard"):
    names = tuple(f"y{i}" for i in range(n))
    return Target("number", names, transform=transform, mean=(0.0,) * n, scale=(1.0,) * n)


def classes(counts=(5, 4, 3)):
    return Target("classes", ("species",), tuple("abcdef"[: len(counts)]), tuple(counts))


def binary(counts=(9, 3)):
    return Target("binary", ("churn",), ("no", "yes"), tuple(counts))


def multilabel(n=3):
    return Target("multilabel", ("red", "green", "blue")[:n], counts=(3,) * n)


TARGETS = {"number": numbers(transform="none"), "binary": binary(), "classes": classes(), "multilabel": multilabel()}


def values(target, rows=ROWS, seed=0):
    """What `Target.encode` gives for a target of this kind."""
    draw = torch.Generator().manual_seed(seed)
    if target.kind == "number":
        return torch.randn(rows, len(target.names), generator=draw)
    if target.kind == "classes":
        return torch.arange(rows) % len(target.classes)
    return torch.randint(0, 2, (rows, len(target.names)), generator=draw).float()


def outputs(loss, rows=ROWS, seed=1):
    return torch.randn(rows, *loss.shape_out, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def shipped(name):
    """The class that a shipped YAML names, and its settings."""
    node = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    node = node.get("loss", node)
    return locate(node.pop("_target_"), "loss", "loss"), node


def mean(loss, output, target, weight=None):
    total, count = loss(output, target, weight)
    return total / count


def assert_same(ours, theirs, output):
    """Equal values and equal gradients with respect to the output."""
    torch.testing.assert_close(ours, theirs)
    mine, reference = (torch.autograd.grad(value, output, retain_graph=True)[0] for value in (ours, theirs))
    torch.testing.assert_close(mine, reference)
    assert reference.abs().sum() > 0


WEIGHTS = [0.5, 2.0, 1.5]
REFERENCES = [
    (losses.MSE(numbers()), nn.MSELoss()),
    (losses.MSE(numbers(3)), nn.MSELoss()),
    (losses.MAE(numbers(2)), nn.L1Loss()),
    (losses.Huber(numbers(2), delta=0.4), nn.HuberLoss(delta=0.4)),
    (losses.CrossEntropy(classes()), nn.CrossEntropyLoss()),
    (losses.CrossEntropy(classes(), 0.2), nn.CrossEntropyLoss(label_smoothing=0.2)),
    (losses.CrossEntropy(classes(), 0.2, WEIGHTS), nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.2)),
    (losses.BCE(multilabel()), nn.BCEWithLogitsLoss()),
    (losses.BCE(binary()), nn.BCEWithLogitsLoss()),
    (losses.Auto(numbers(2)), nn.MSELoss()),
    (losses.Auto(classes(), 0.1, WEIGHTS), nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.1)),
    (losses.Auto(multilabel()), nn.BCEWithLogitsLoss()),
]
KINDS = [numbers(), numbers(3), numbers(2), numbers(2), *[classes()] * 3, multilabel(), binary(), numbers(2)]
KINDS += [classes(), multilabel()]


@pytest.mark.parametrize(("pair", "target"), list(zip(REFERENCES, KINDS, strict=True)))
def test_a_loss_equals_torchs_module(pair, target):
    ours, theirs = pair
    output, truth = outputs(ours), values(target)
    assert_same(mean(ours, output, truth), theirs(output, truth), output)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_nll_equals_torchs_log_softmax_and_nll(class_weights):
    ours = losses.NLL(classes(), class_weights)
    theirs = nn.NLLLoss(None if class_weights is None else torch.tensor(class_weights))
    output, truth = outputs(ours), values(classes())
    assert_same(mean(ours, output, truth), theirs(output.log_softmax(1), truth), output)


def test_poisson_equals_torch_and_predicts_the_mean():
    ours = losses.Poisson(numbers(2, "none"))
    output, truth = outputs(ours), torch.randint(0, 9, (ROWS, 2)).float()
    assert_same(mean(ours, output, truth), nn.PoissonNLLLoss(log_input=True)(output, truth), output)
    torch.testing.assert_close(ours.predict(output), output.exp())


def test_gaussian_equals_torch_predicts_the_mean_and_has_a_floor():
    ours = losses.GaussianNLL(numbers(2))
    output, truth = outputs(ours), values(numbers(2))
    theirs = nn.GaussianNLLLoss()(output[..., 0], truth, output[..., 1].exp())
    assert ours.shape_out == (2, 2)
    assert_same(mean(ours, output, truth), theirs, output)
    assert torch.equal(ours.predict(output), output[..., 0])
    certain = torch.stack([truth, torch.full_like(truth, -1000.0)], dim=-1)
    assert mean(ours, certain, truth).item() == pytest.approx(-7)


def test_quantile_equals_its_formula_and_finds_the_quantile():
    levels = [0.1, 0.5, 0.9]
    ours = losses.Quantile(numbers(2), levels)
    output, truth = outputs(ours), values(numbers(2))
    error = truth.double().numpy()[..., None] - output.detach().double().numpy()
    expected = np.where(error >= 0, np.array(levels) * error, (np.array(levels) - 1) * error).mean()
    assert mean(ours, output, truth).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(ours.predict(output), output[..., 1])
    sample = torch.arange(1000.0).unsqueeze(1)
    single = losses.Quantile(numbers(), 0.9)
    costs = [mean(single, torch.full((1000, 1, 1), float(guess)), sample).item() for guess in range(0, 1000, 10)]
    assert 880 <= 10 * int(np.argmin(costs)) <= 910
    assert torch.equal(losses.Quantile(numbers(), [0.9, 0.4]).predict(torch.eye(2).view(2, 1, 2)), torch.eye(2)[1:].T)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_focal_equals_its_formula(gamma, class_weights):
    ours = losses.Focal(classes(), gamma, class_weights)
    output, truth = outputs(ours), values(classes())
    p = output.double().softmax(1)[torch.arange(ROWS), truth]
    w = torch.tensor(class_weights or [1.0, 1.0, 1.0]).double()[truth]
    expected = (w * (1 - p) ** gamma * -p.log()).sum() / w.sum()
    assert_same(mean(ours, output, truth), expected.float(), output)
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    gradient = torch.autograd.grad(mean(ours, sure, torch.tensor([0])), sure)[0]
    assert gradient.isfinite().all()


def test_focal_counts_an_easy_row_less():
    easy, hard = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    truth = torch.tensor([0])
    plain, focal = losses.CrossEntropy(classes()), losses.Focal(classes())
    assert mean(focal, easy, truth) / mean(plain, easy, truth) < 0.01
    assert mean(focal, hard, truth) / mean(plain, hard, truth) > 0.9


def test_huber_bounds_the_pull_of_an_outlier():
    output, truth = torch.zeros(ROWS, 1, requires_grad=True), torch.zeros(ROWS, 1)
    truth[3] = 1e4
    pull = {}
    for loss in (losses.MSE(numbers()), losses.Huber(numbers(), delta=0.5)):
        pull[type(loss)] = torch.autograd.grad(loss(output, truth)[0], output)[0].abs().max().item()
    assert pull == {losses.MSE: 2e4, losses.Huber: 0.5}


def fitting(name):
    """Every (loss, target) that a shipped YAML can make."""
    kind, settings = shipped(name)
    return [(kind(target, **settings), target) for key, target in TARGETS.items() if key in kind.kinds]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_row_of_weight_two_counts_twice_and_of_weight_zero_not_at_all(name):
    for loss, target in fitting(name):
        output, truth = outputs(loss), values(target)
        weight = torch.ones(ROWS)
        weight[0], weight[1] = 2, 0
        rows = [0, 0, *range(2, ROWS)]
        assert_same(mean(loss, output, truth, weight), mean(loss, output[rows], truth[rows]), output)


@pytest.mark.parametrize("name", SHIPPED)
def test_parts_of_a_batch_add_up(name):
    for loss, target in fitting(name):
        output, truth = outputs(loss), values(target)
        whole, parts = loss(output, truth), [loss(output[i], truth[i]) for i in (slice(0, 5), slice(5, ROWS))]
        torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
        torch.testing.assert_close(float(parts[0][1] + parts[1][1]), float(whole[1]))
        assert loss.predict(output.detach()).shape[0] == ROWS


@pytest.mark.parametrize("name", SHIPPED)
def test_a_loss_falls_when_its_output_follows_the_gradient(name):
    for loss, target in fitting(name):
        output, truth = outputs(loss), values(target).abs()
        before = mean(loss, output, truth)
        step = torch.autograd.grad(before, output)[0]
        assert mean(loss, output - 0.1 * step, truth) < before


@pytest.mark.parametrize("kind", [losses.CrossEntropy, losses.NLL, losses.Focal])
@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_soft_targets_mix_hard_ones(kind, class_weights):
    loss = kind(classes(), class_weights=class_weights)
    output, truth = outputs(loss), values(classes())
    other = truth.roll(1)
    hot = [nn.functional.one_hot(labels, 3).float() for labels in (truth, other)]
    for soft, share in ((hot[0], 1.0), (0.3 * hot[0] + 0.7 * hot[1], 0.3)):
        total, count = loss(output, soft)
        (one, n_one), (two, n_two) = loss(output, truth), loss(output, other)
        torch.testing.assert_close(total, share * one + (1 - share) * two)
        torch.testing.assert_close(float(count), share * float(n_one) + (1 - share) * float(n_two))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, "balanced", [1, 3]])
def test_two_classes_by_one_output_or_by_two_are_the_same(smoothing, class_weights):
    one, two = (kind(binary(), smoothing, class_weights) for kind in (losses.BCE, losses.CrossEntropy))
    output, truth, weight = outputs(one), values(binary()), torch.rand(ROWS)
    pair = torch.cat([torch.zeros_like(output), output], dim=1)
    for weights in (None, weight):
        assert_same(mean(one, output, truth, weights), mean(two, pair, truth, weights), output)
    torch.testing.assert_close(one.predict(output), two.predict(pair))
    assert (one.shape_out, two.shape_out) == ((1,), (2,))


def test_weights_of_several_columns_are_torchs_pos_weight():
    loss = losses.BCE(multilabel(), class_weights=[2, 1, 5])
    output, truth = outputs(loss), values(multilabel())
    theirs = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0, 5.0]), reduction="sum")
    total, count = loss(output, truth)
    assert_same(3 * total, theirs(output, truth), output)
    assert float(count) == pytest.approx((1 + truth * torch.tensor([1.0, 0.0, 4.0])).mean(1).sum().item())


def test_balanced_weights_are_scikit_learns():
    counts = (50, 7, 3)
    labels = np.repeat([0, 1, 2], counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = losses.CrossEntropy(classes(counts), class_weights="balanced").weights
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    total, count = losses.CrossEntropy(classes(counts), class_weights="balanced")(
        torch.zeros(60, 3), torch.tensor(labels)
    )
    assert float(count) == pytest.approx(60, rel=1e-5)
    assert float(total / count) == pytest.approx(np.log(3), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        (losses.Auto, numbers(2), ((2,), (ROWS, 2))),
        (losses.Auto, binary(), ((1,), (ROWS, 1))),
        (losses.Auto, classes(), ((3,), (ROWS, 3))),
        (losses.Auto, multilabel(), ((3,), (ROWS, 3))),
        (losses.Quantile, numbers(2), ((2, 3), (ROWS, 2))),
        (losses.Focal, binary(), ((2,), (ROWS, 1))),
    ],
)
def test_shapes_of_outputs_and_predictions(kind, target, expected):
    loss = kind(target)
    prediction = loss.predict(outputs(loss))
    assert (loss.shape_out, tuple(prediction.shape)) == expected
    if target.kind == "classes":
        torch.testing.assert_close(prediction.sum(1), torch.ones(ROWS))
    if target.kind in ("binary", "multilabel"):
        assert ((prediction > 0) & (prediction < 1)).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_yaml_says_every_default(name):
    kind, settings = shipped(name)
    loss, bare = (kind(TARGETS[kind.kinds[0]], **given) for given in (settings, {}))
    output, truth = outputs(loss), values(TARGETS[kind.kinds[0]])
    assert losses.NAMES[kind] == name
    assert torch.equal(mean(loss, output, truth), mean(bare, output, truth))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_target_that_does_not_fit_is_one_sentence(name):
    kind, settings = shipped(name)
    for key, target in TARGETS.items():
        if key in kind.kinds:
            continue
        with pytest.raises(
            ConfigError, match=rf"^loss={name} must go with a target of .*, got .*; use loss=\w+ or loss=auto$"
        ):
            kind(target, **settings)
        use = losses.USE[key]
        shipped(use)[0](target)  # what the sentence advises works


WEIGHTS_OF, THREE = "loss.class_weights must be", "or 3 numbers above 0 (one for each of"
LEVELS = "loss.quantiles must be between 0 and 1, one number or a list"
FIT = "must go with a target of"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: losses.MSE(classes()),
            f"loss=mse {FIT} numbers, got classes (species); use loss=cross_entropy or loss=auto",
        ),
        (
            lambda: losses.CrossEntropy(numbers(2)),
            f"loss=cross_entropy {FIT} classes or two classes, got numbers (y0, y1); use loss=mse or loss=auto",
        ),
        (lambda: losses.Auto(numbers(), 0.1), "loss.label_smoothing must be 0 for a target of numbers, got 0.1"),
        (lambda: losses.Auto(numbers(), 0.0, "balanced"), f"{WEIGHTS_OF} null for a target of numbers, got balanced"),
        (lambda: losses.Poisson(numbers()), "data.target_transform must be none with loss=poisson, got standard"),
        (lambda: losses.Huber(numbers(), 0), "loss.delta must be a number above 0, got 0"),
        (lambda: losses.Quantile(numbers(), [0.5, 1]), f"{LEVELS}, got [0.5, 1]"),
        (lambda: losses.Quantile(numbers(), []), f"{LEVELS}, got []"),
        (lambda: losses.Quantile(numbers(), "half"), f"{LEVELS}, got half"),
        (lambda: losses.Focal(classes(), -1), "loss.gamma must be a number of at least 0, got -1"),
        (lambda: losses.BCE(binary(), 1), "loss.label_smoothing must be in [0, 1), got 1"),
        (
            lambda: losses.CrossEntropy(classes(), 0.0, [1, 2]),
            f"{WEIGHTS_OF} null, balanced, {THREE} a, b, c), got [1, 2]",
        ),
        (
            lambda: losses.CrossEntropy(classes(), 0.0, "balance"),
            f"{WEIGHTS_OF} null, balanced, {THREE} a, b, c), got balance",
        ),
        (
            lambda: losses.CrossEntropy(classes(), 0.0, [1, 2, 0]),
            f"{WEIGHTS_OF} null, balanced, {THREE} a, b, c), got [1, 2, 0]",
        ),
        (
            lambda: losses.BCE(multilabel(), 0.0, "balanced"),
            f"{WEIGHTS_OF} null, {THREE} red, green, blue), got balanced",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(make, sentence):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == sentence

"""Metrics against scikit-learn's, at their edges, and what a monitor may be called."""

import math
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from dltrain.errors import ConfigError
from dltrain.metrics import NAMES, best_threshold, check_monitor, default_monitor, direction, names, score, score_each

torch.set_num_threads(1)


def target(kind, columns=("y",), classes=()):
    return SimpleNamespace(kind=kind, names=tuple(columns), classes=tuple(classes))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6, rel=1e-6), name


def calibration(confidence, hit, bins=15):
    """The expected calibration error of Guo et al. 2017, bin by bin."""
    total = 0.0
    for k in range(bins):
        inside = (confidence >= k / bins) & (confidence < (k + 1) / bins)
        if inside.any():
            total += inside.sum() / len(hit) * abs(hit[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("n_classes", [3, 7])
def test_classes_agree_with_scikit_learn(n_classes):
    logits = draw(200, n_classes)
    truth = (logits + draw(200, n_classes, seed=1)).argmax(1)
    p = logits.softmax(1)
    y, probability, guess = truth.numpy(), p.numpy(), p.argmax(1).numpy()
    expected = {
        "accuracy": reference.accuracy_score(y, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(y, guess),
        "f1": reference.f1_score(y, guess, average="macro"),
        "auroc": reference.roc_auc_score(y, probability, multi_class="ovr", average="macro"),
        "log_loss": reference.log_loss(y, probability),
        "calibration_error": calibration(probability.max(1), guess == y),
    }
    close(score(target("classes"), p, truth), expected)
    assert set(expected) == set(NAMES["classes"])


def test_areas_of_several_with_ties_agree_with_scikit_learn():
    """Ties within a class and across classes and predictions, which lie side by side in memory."""
    each = torch.stack([draw(90, 4, seed=k).softmax(1) for k in range(4)])
    each[1] = (each[1] * 10).round() / 10
    each[2] = 0.25
    each[3] = torch.eye(4)[torch.arange(90) % 4]
    truth = draw(90, 4).argmax(1)
    for p, found in zip(each, score_each(target("classes"), each, truth), strict=True):
        areas = [reference.roc_auc_score(truth == k, p[:, k].numpy()) for k in range(4)]
        assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_binary_agrees_with_scikit_learn(threshold):
    logits = draw(300, 1)
    truth = (logits + draw(300, 1, seed=1) > 0.5).float()
    p = (logits.sigmoid() * 50).round() / 50  # ties, which an area under a curve has to share out
    y, probability = truth[:, 0].numpy().astype(int), p[:, 0].numpy()
    guess = (probability > threshold).astype(int)
    expected = {
        "accuracy": reference.accuracy_score(y, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(y, guess),
        "f1": reference.f1_score(y, guess),
        "auroc": reference.roc_auc_score(y, probability),
        "average_precision": reference.average_precision_score(y, probability),
        "log_loss": reference.log_loss(y, probability),
        "calibration_error": calibration(probability.astype(float), y),
    }
    close(score(target("binary"), p, truth, threshold), expected)
    assert set(expected) == set(NAMES["binary"])


@pytest.mark.parametrize("columns", [("price",), ("price", "rent", "a/b")])
def test_numbers_agree_with_scikit_learn(columns):
    n = len(columns)
    truth = draw(150, n).double() * torch.tensor([3.0, 0.1, 700.0])[:n] + torch.tensor([1e9, 5.0, -4.0])[:n]
    prediction = truth + draw(150, n, seed=1).double()
    y, guess = truth.numpy(), prediction.numpy()
    measures = {
        "rmse": reference.root_mean_squared_error,
        "mae": reference.mean_absolute_error,
        "r2": reference.r2_score,
    }
    expected = {name: measure(y, guess) for name, measure in measures.items()}
    if n > 1:
        for name, measure in measures.items():
            expected |= {f"{name}/{c}": measure(y[:, k], guess[:, k]) for k, c in enumerate(columns)}
    found = score(target("number", columns), prediction, truth)
    close(found, expected)
    assert set(found) == set(names(target("number", columns)))


def test_labels_agree_with_scikit_learn():
    columns = ("rain", "wind", "snow")
    logits = draw(120, 3)
    truth = (logits + draw(120, 3, seed=1) > torch.tensor([0.0, 1.0, -0.5])).float()
    p = logits.sigmoid()
    y, guess = truth.numpy().astype(int), (p > 0.5).numpy().astype(int)
    expected = {
        "accuracy": np.mean(y == guess),
        "f1": reference.f1_score(y, guess, average="macro"),
        "auroc": reference.roc_auc_score(y, p.numpy(), average="macro"),
    }
    for k, name in enumerate(columns):
        expected[f"accuracy/{name}"] = reference.accuracy_score(y[:, k], guess[:, k])
        expected[f"f1/{name}"] = reference.f1_score(y[:, k], guess[:, k])
    found = score(target("multilabel", columns), p, truth)
    close(found, expected)
    assert set(found) == set(names(target("multilabel", columns)))


def test_a_class_that_the_rows_lack_is_left_out_of_the_means():
    p = draw(60, 4).softmax(1)
    p[:, 3] *= 0.01  # neither there nor predicted
    p = p / p.sum(1, keepdim=True)
    truth = torch.arange(60) % 2  # class 2 is predicted, never there
    y, guess = truth.numpy(), p.argmax(1).numpy()
    assert set(guess) == {0, 1, 2}
    found = score(target("classes"), p, truth)
    recall = [np.mean(guess[y == k] == k) for k in (0, 1)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recall), abs=1e-9)
    assert found["f1"] == pytest.approx(reference.f1_score(y, guess, average="macro"), abs=1e-9)
    areas = [reference.roc_auc_score(y == k, p[:, k].numpy()) for k in (0, 1)]
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)


ONE_SIDED = {
    "classes, all one": (target("classes"), draw(5, 3).softmax(1), torch.full((5,), 2), {"auroc"}),
    "classes, one row": (target("classes"), draw(1, 3).softmax(1), torch.tensor([0]), {"auroc"}),
    "binary, no yes": (target("binary"), draw(5, 1).sigmoid(), torch.zeros(5, 1), {"auroc", "average_precision"}),
    "binary, one row": (target("binary"), draw(1, 1).sigmoid(), torch.ones(1, 1), {"auroc", "average_precision"}),
    "number, constant": (target("number"), draw(5, 1).double(), torch.full((5, 1), 3.0, dtype=torch.float64), {"r2"}),
    "number, one row": (target("number"), draw(1, 1).double(), draw(1, 1).double(), {"r2"}),
    "labels, all no": (target("multilabel", ("a", "b")), draw(5, 2).sigmoid(), torch.zeros(5, 2), {"auroc"}),
}


@pytest.mark.parametrize("case", ONE_SIDED)
def test_what_the_rows_leave_undefined_is_absent_without_a_warning(case):
    kind, prediction, truth, absent = ONE_SIDED[case]
    found = score(kind, prediction, truth)  # a warning is an error in these tests
    assert set(found) == set(names(kind)) - absent
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_one_constant_column_leaves_the_others_their_r2():
    truth = torch.stack([torch.full((20,), 0.1), draw(20)], 1).double()
    found = score(target("number", ("flat", "y")), truth + 0.5, truth)
    expected = reference.r2_score(truth[:, 1].numpy(), truth[:, 1].numpy() + 0.5)
    assert "r2/flat" not in found
    assert found["r2"] == found["r2/y"] == pytest.approx(expected)


def test_certain_and_wrong_costs_a_finite_log_loss():
    p = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = score(target("classes"), p, torch.tensor([0, 0]))
    assert found["log_loss"] == pytest.approx(reference.log_loss([0, 0], p.numpy(), labels=[0, 1]), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_predictions_that_are_not_finite_have_no_metrics(bad):
    prediction = torch.tensor([[1.0], [bad]])
    assert score(target("number"), prediction, torch.zeros(2, 1)) == {}
    assert score(target("number"), torch.zeros(0, 1), torch.zeros(0, 1)) == {}


def test_a_perfect_prediction_beats_a_noisy_one_in_the_direction_of_every_name():
    classes = torch.arange(30) % 3
    labels, yes, numbers = torch.eye(3)[classes], (classes == 1).float()[:, None], draw(30, 1).double()
    noise = draw(30, 3, seed=3).softmax(1)
    cases = [
        (target("number"), numbers, numbers, numbers + draw(30, 1, seed=3)),
        (target("classes"), classes, labels, noise),
        (target("binary"), yes, yes, noise[:, :1]),
        (target("multilabel", ("a", "b", "c")), labels, labels, noise),
    ]
    for kind, truth, perfect, noisy in cases:
        best, worse = score(kind, perfect, truth), score(kind, noisy, truth)
        for name in names(kind):
            sign = 1 if direction(name) == "max" else -1
            assert sign * best[name] > sign * worse[name], (kind.kind, name)


@pytest.mark.parametrize(
    ("typed", "kind", "columns", "means"),
    [
        ("accuracy", "classes", ("y",), "accuracy"),
        ("valid/accuracy", "classes", ("y",), "accuracy"),
        ("loss", "number", ("y",), "loss"),
        ("valid/loss", "binary", ("y",), "loss"),
        ("mae/rent", "number", ("price", "rent"), "mae/rent"),
    ],
)
def test_a_monitor_by_its_names(typed, kind, columns, means):
    assert check_monitor(typed, target(kind, columns)) == means


def test_a_monitor_that_is_no_metric_is_one_sentence():
    with pytest.raises(ConfigError) as caught:
        check_monitor("acuracy", target("classes"))
    assert str(caught.value) == (
        "monitor must be a metric of classes, got acuracy; did you mean accuracy? "
        "(accuracy, auroc, balanced_accuracy, calibration_error, f1, log_loss, loss)"
    )
    with pytest.raises(ConfigError, match="monitor must be a metric of numbers, got accuracy"):
        check_monitor("accuracy", target("number"))
    with pytest.raises(ConfigError, match="got mae/rent"):
        check_monitor("mae/rent", target("number"))


def test_every_kind_has_a_monitor_of_its_own():
    for kind, known in NAMES.items():
        assert default_monitor(kind) in known
    typed = ("loss", "valid/loss", "rmse", "valid/mae/rent", "accuracy")
    assert [direction(name) for name in typed] == ["min", "min", "min", "min", "max"]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_has_the_best_f1_of_all(seed):
    p = (draw(80, 1, seed=seed).sigmoid() * 20).round() / 20
    truth = (p + 0.4 * draw(80, 1, seed=seed + 50) > 0.7).float()
    found = score(target("binary"), p, truth, best_threshold(p, truth))["f1"]
    y, probability = truth[:, 0].numpy(), p[:, 0].numpy()
    every = [reference.f1_score(y, probability > level) for level in np.arange(0.0, 1.0, 0.001)]
    assert found == pytest.approx(max(every))
    assert found > reference.f1_score(y, probability > 0.5)


def test_the_best_threshold_lies_between_neighbours_and_is_defined_without_a_yes():
    low = torch.tensor(0.25)
    high = torch.nextafter(low, torch.tensor(1.0))  # no float32 in between
    p, truth = torch.stack([low, high])[:, None], torch.tensor([[0.0], [1.0]])
    assert score(target("binary"), p, truth, best_threshold(p, truth))["f1"] == 1.0
    assert best_threshold(torch.tensor([[0.2], [0.6]]), truth) == pytest.approx(0.4)
    assert best_threshold(p, torch.zeros(2, 1)) == 0.5


def test_importing_metrics_does_not_import_torchmetrics():
    """It brings matplotlib along, 0.6 s that `--help` and a wrong word need not wait for."""
    code = "import sys, dltrain.metrics; print('torchmetrics' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_cost_is_printed(capsys):
    lines = []
    for rows in (300, 10_000):
        for n_classes in (3, 10, 100):
            p, y = draw(rows, n_classes).softmax(1), torch.arange(rows) % n_classes
            score(target("classes"), p, y)
            start = time.perf_counter()
            score(target("classes"), p, y)
            lines.append(f"{rows} rows, {n_classes} classes: {1e3 * (time.perf_counter() - start):.1f} ms")
    with capsys.disabled():
        print("", *lines, sep="\n")

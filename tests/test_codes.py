"""autoencoder and contrastive: codes against PCA and formulas, and rows without a target."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from runs import launch, predict, working
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from dltrain.data.target import Target
from dltrain.errors import ConfigError
from dltrain.models.linear import Linear
from dltrain.tasks.autoencoder import Autoencoder
from dltrain.tasks.clustering import Clustering
from dltrain.tasks.contrastive import Contrastive

ROWS = ["data=csv", "data.path=rows.csv", "data.target=null", "trainer.threads=1"]
SMALL = [*ROWS, "model.hidden=[16]", "epochs=2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[None]:
    with working(tmp_path):
        torch.manual_seed(0)
        draw = np.random.default_rng(0)
        rows = draw.normal(size=(300, 3)) @ draw.normal(size=(3, 8)) + 0.3 * draw.normal(size=(300, 8))
        pd.DataFrame(rows, columns=list("abcdefgh")).round(4).to_csv("rows.csv", index=False)
        yield


def of(task: Any, shape: tuple[int, ...] = (5,), **settings: Any) -> Any:
    return task(SimpleNamespace(shape_in=shape, target=Target("none", ())), Linear, **settings)


# Autoencoders.


def test_a_linear_autoencoder_is_pca() -> None:
    words = ["model=linear", "model@task.decoder=linear", "task=autoencoder", "task.code=3", "optimizer.weight_decay=0"]
    steps = ["epochs=150", "batch_size=32", "optimizer.lr=0.02", "scheduler=cosine", "evaluate_every=10"]
    run = launch(*ROWS, *words, *steps)
    features = run.data.train["features"].flatten(1)
    pca = PCA(3).fit(features)
    least = np.square(pca.inverse_transform(pca.transform(features)) - features.numpy()).mean()
    error = run.model.outputs(features)[:, -1].mean().item()
    assert least * 0.999 < error < least * 1.02
    held_out = run.data.test["features"]
    expected = np.square(pca.inverse_transform(pca.transform(held_out)) - held_out.numpy()).mean()
    assert run.result["test"]["mse"] == pytest.approx(expected, rel=0.05)
    assert run.result["test"]["explained_variance"] > 0.8


def test_noise_is_for_training_alone() -> None:
    task, rows = of(Autoencoder, decoder=Linear, code=2, noise=0.5), torch.randn(6, 5)
    assert task.draws
    torch.manual_seed(1)
    seen = rows + 0.5 * torch.randn(6, 5)
    told = task.network.decoder(task.network.encoder(seen))
    torch.manual_seed(1)
    [(name, total, count)] = task.losses({"features": rows})
    assert (name, count) == ("network", 6)
    torch.testing.assert_close(total, 6 * (told - rows).square().mean())
    task.eval()
    [(_, total, _)] = task.losses({"features": rows})
    torch.testing.assert_close(total, 6 * (task.network(rows)[1] - rows).square().mean())
    assert not of(Autoencoder, decoder=Linear).draws


def test_what_an_autoencoder_predicts() -> None:
    run = launch(*SMALL, "task=autoencoder", "task.code=3")
    found = predict(run, "rows.csv")
    assert list(found) == ["row", "code_1", "code_2", "code_3", "error"]
    features = run.model.preparation.features(pd.read_csv("rows.csv"), "rows.csv")
    with torch.no_grad():
        code, told = run.network(features)
    np.testing.assert_allclose(found.filter(like="code_"), code, atol=1e-5)
    np.testing.assert_allclose(found["error"], (told - features).square().mean(1), atol=1e-5)


def test_a_sparse_autoencoder_is_an_activity_penalty() -> None:
    words = [*SMALL, "task=autoencoder", "epochs=10", "optimizer.lr=0.01"]
    plain, sparse = (launch(*words, *more) for more in ([], ["regularizer=activity", "regularizer.activity.l1=0.01"]))

    def active(run: Any) -> float:
        blocks = run.network.encoder.blocks
        with torch.no_grad():
            return float(blocks(run.data.train["features"]).abs().mean())

    assert active(sparse) < 0.7 * active(plain)


# Contrastive codes.


def independent(one: Tensor, other: Tensor, temperature: float) -> float:
    """NT-Xent of SimCLR, equation 1, a pair at a time; the mean over both looks, summed over rows."""
    seen = [*one, *other]
    n, total = len(one), 0.0
    for i in range(2 * n):
        like = [float(torch.cosine_similarity(seen[i], seen[k], 0)) / temperature for k in range(2 * n)]
        others = [np.exp(like[k]) for k in range(2 * n) if k != i]
        total -= like[(i + n) % (2 * n)] - np.log(sum(others))
    return total / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_of_contrastive(temperature: float) -> None:
    task, seen = of(Contrastive, temperature=temperature), torch.randn(10, 4)
    found = task._unlike(seen)
    assert float(found) == pytest.approx(independent(seen[:5], seen[5:], temperature), rel=1e-5)


def test_looks_are_rows_in_which_others_lend() -> None:
    task, rows = of(Contrastive, corruption=0.4, noise=0.0), torch.arange(500.0).view(100, 5)
    look = task._look(rows)
    assert (look % 5).eq(rows % 5).all()
    assert 0.3 < (look != rows).float().mean() < 0.5
    kept = of(Contrastive, corruption=0.0, noise=0.1)._look(rows) - rows
    assert kept.std() == pytest.approx(0.1, rel=0.2)


def test_looks_at_images_are_windows_of_them_alone() -> None:
    flat = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 6, 6)
    look = {"shift": 0.0, "crop": 0.5, "flip": True}
    task = of(Contrastive, (1, 6, 6), noise=0.0, look=look)
    torch.testing.assert_close(task._look(flat), flat)  # nothing of another image
    lent = of(Contrastive, (1, 6, 6), noise=0.0, look=look, corruption=0.3)._look(flat)
    assert 0.15 < (lent != flat).float().mean() < 0.45
    ramp = torch.arange(6.0).expand(50, 1, 6, 6)
    steps = task._look(ramp).diff(dim=3)
    torch.testing.assert_close(steps, steps[..., :1, :1].expand_as(steps), atol=1e-4, rtol=0)
    assert 0.5 <= steps.abs().min() < 0.6
    assert 0.9 < steps.abs().max() <= 1.0001
    assert 10 < (steps[:, 0, 0, 0] > 0).sum() < 40  # the others are mirrored
    assert not torch.equal(task._look(ramp), task._look(ramp))


def test_windows_teach_codes_of_images_that_borrowed_pixels_do_not() -> None:
    words = ["data=digits", "task=contrastive", "model=cnn", "model.channels=[16,32]", "batch_size=256", "epochs=15"]
    words += ["evaluate_every=15", "trainer.threads=1"]
    found = {}
    for corruption in ("auto", "0.3"):
        more = [] if corruption == "auto" else [f"task.look.{off}" for off in ("crop=1", "cutout=0", "brightness=0")]
        run = launch(*words, f"task.corruption={corruption}", *more)
        train, test = (run.model.outputs(rows["features"]) for rows in (run.data.train, run.data.test))
        neighbours = KNeighborsClassifier().fit(train, run.data.train["target"])
        found[corruption] = neighbours.score(test, run.data.test["target"])
    assert found["auto"] > found["0.3"] + 0.03


def test_contrastive_learns_and_predicts_its_code() -> None:
    run = launch(*SMALL, "task=contrastive", "task.code=4", "epochs=8", "optimizer.lr=0.005")
    curve = run.curve("valid/loss")
    assert curve[-1] < curve[0]
    found = predict(run, "rows.csv")
    assert list(found) == ["row", "code_1", "code_2", "code_3", "code_4"]
    features = run.model.preparation.features(pd.read_csv("rows.csv"), "rows.csv")
    with torch.no_grad():
        np.testing.assert_allclose(found.filter(like="code_"), run.network.encoder(features), atol=1e-5)


# Clusters.


def test_the_loss_of_clustering() -> None:
    """InfoNCE of the nearest neighbours among the rows, by hand."""
    task, rows = of(Clustering, decoder=Linear, code=2, neighbours=2, attraction=3.0), torch.randn(7, 5)
    code, told = task.network(rows)
    total = 7 * (told - rows).square().mean()
    for i in range(7):
        others = [k for k in range(7) if k != i]
        near = {k: 1 / (1 + (code[i] - code[k]).square().sum()) for k in others}
        for k in sorted(others, key=lambda k: float((rows[i] - rows[k]).norm()))[:2]:
            total = total - 3 * (near[k] / sum(near.values())).log() / 2
    [(name, found, count)] = task.losses({"features": rows})
    assert (name, count) == ("network", 7)
    torch.testing.assert_close(found, total)
    [(_, alone, _)] = task.losses({"features": rows[:1]})
    torch.testing.assert_close(alone, (told[0] - rows[0]).square().mean())


def test_clusters_are_those_of_training_rows() -> None:
    run = launch("data=digits", "data.rows=300", "task=clustering", "epochs=2", "trainer.threads=1")
    assert {"silhouette", "adjusted_rand", "mse"} < run.result["test"].keys()
    assert "valid/adjusted_rand" in run.records[-1]
    codes = run.model.outputs(run.data.train["features"])[:, :-1]
    means = KMeans(10, n_init=10, random_state=0).fit(codes.double().numpy())
    np.testing.assert_allclose(run.model.task.centres, means.cluster_centers_, atol=1e-4)
    assert run.result["train"]["silhouette"] == pytest.approx(silhouette_score(codes, means.labels_), abs=1e-4)
    truth = run.data.train["target"]
    assert run.result["train"]["adjusted_rand"] == pytest.approx(adjusted_rand_score(truth, means.labels_), abs=1e-6)
    told = run.model.task.columns(run.model.outputs(run.data.train["features"]))
    assert np.array_equal(told["cluster"], means.labels_ + 1)
    np.testing.assert_allclose(told["distance"], means.transform(codes.double()).min(1), atol=1e-4)


def test_more_clusters_than_rows_that_differ() -> None:
    task = of(Clustering, decoder=Linear, code=2, clusters=5)
    codes = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 0.1], [1.0, 1.0, 0.1]])
    task.conclude(codes, {})
    assert set(task.columns(codes)["cluster"]) == {1, 2}
    assert task.metrics(codes[:1], {"features": torch.randn(1, 5)})["silhouette"] == 0


@pytest.mark.slow
def test_digits_are_grouped_better_than_by_k_means() -> None:
    """Adjusted Rand index of test rows, a mean over ten seeds, against k-means on the features and on PCA of them."""
    words = ["data=digits", "task=clustering", "batch_size=256", "optimizer.lr=0.003", "scheduler=cosine"]
    found = []
    for seed in range(10):
        run = launch(*words, "epochs=50", "evaluate_every=50", f"seed={seed}", "trainer.threads=1")
        train, test = (run.data.train["features"].flatten(1), run.data.test["features"].flatten(1))
        scores = [run.result["test"]["adjusted_rand"]]
        for seen in (lambda rows: rows, PCA(10, random_state=0).fit(train).transform):
            means = KMeans(10, n_init=10, random_state=seed).fit(seen(train))
            scores.append(adjusted_rand_score(run.data.test["target"], means.predict(seen(test))))
        found.append(scores)
    ours, raw, pca = np.mean(found, axis=0)
    print(f"adjusted Rand index: {ours:.3f}, k-means {raw:.3f}, k-means on PCA {pca:.3f}")
    assert ours > max(raw, pca) + 0.05


# Rows without a target.


@pytest.mark.parametrize("task", ["autoencoder", "vae", "gan", "diffusion", "contrastive", "clustering"])
def test_rows_without_a_target(task: str) -> None:
    run = launch(*SMALL, f"task={task}")
    assert run.result["status"] == "finished"
    assert run.data.train["target"].shape == (len(run.data.train["features"]), 0)
    assert len(predict(run, "rows.csv")) == 300


def test_supervised_needs_a_target() -> None:
    with pytest.raises(ConfigError) as caught:
        launch(*SMALL)
    assert str(caught.value) == "data.target must be a column to predict with task=supervised, got null"


REFUSED = [
    (Autoencoder, {"code": 0}, "task.code must be a whole number of at least 1, got 0"),
    (Autoencoder, {"noise": -0.1}, "task.noise must be at least 0, got -0.1"),
    (Clustering, {"clusters": 1}, "task.clusters must be a whole number of at least 2, or null, got 1"),
    (Clustering, {"attraction": -1}, "task.attraction must be at least 0, got -1"),
    (Clustering, {"neighbours": 0}, "task.neighbours must be a whole number of at least 1, got 0"),
    (Contrastive, {"code": 0}, "task.code must be a whole number of at least 1, got 0"),
    (Contrastive, {"width": True}, "task.width must be a whole number of at least 1, got true"),
    (Contrastive, {"temperature": 0}, "task.temperature must be above 0, got 0"),
    (Contrastive, {"corruption": 1}, "task.corruption must be in [0, 1), or auto, got 1"),
    (Contrastive, {"noise": "some"}, "task.noise must be at least 0, got some"),
]


@pytest.mark.parametrize(("task", "settings", "sentence"), REFUSED)
def test_a_setting_that_is_refused(task: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of(task, **settings, **({"decoder": Linear} if issubclass(task, Autoencoder) else {}))
    assert str(caught.value) == sentence


def test_a_look_that_cannot_be_is_one_sentence() -> None:
    for shape, look, sentence in (
        ((1, 8, 8), {"crop": 0}, "crop must be above 0 and at most 1, got 0"),
        ((2, 8), {"rotation": 5}, "rotation must be 0 for signals (it turns images), got 5"),
    ):
        with pytest.raises(ConfigError) as error:
            of(Contrastive, shape, look=look)
        assert str(error.value) == f"task.look.{sentence}"

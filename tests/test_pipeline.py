"""Steps of the pipeline against scikit-learn, and what is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn import datasets, decomposition, preprocessing
from sklearn.utils.discovery import all_estimators

from dltrain.data import pipeline
from dltrain.data.bundled import Bundled
from dltrain.data.pca import PCA
from dltrain.data.quantile import QuantileTransformer
from dltrain.data.scaler import StandardScaler
from dltrain.errors import ConfigError, DataError

X = datasets.load_wine().data.astype(np.float64)
Y = datasets.load_wine().target.astype(np.float64)
TRAIN, NEW = X[::2], X[1::2]


def steps(**parts: Callable[..., Any]) -> dict[str, Any]:
    return pipeline.build(parts, None, seed=3)


@pytest.mark.parametrize("n_components", ["all", 5, 5.0, 0.9])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_scikit_learns(n_components: str | float, whiten: bool) -> None:
    ours = PCA(n_components=n_components, whiten=whiten).fit(TRAIN)
    wanted = None if n_components == "all" else n_components if n_components == 0.9 else 5
    reference = decomposition.PCA(wanted, whiten=whiten, svd_solver="full").fit(TRAIN)
    for rows in (TRAIN, NEW):
        np.testing.assert_allclose(ours.transform(rows), reference.transform(rows), rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.explained_variance_ratio_, reference.explained_variance_ratio_, atol=1e-12)
    np.testing.assert_array_equal(PCA(n_components, whiten).fit_transform(TRAIN), ours.transform(TRAIN))


def test_pca_signs_are_fixed() -> None:
    components = PCA().fit(TRAIN).components_
    assert np.all(components[np.arange(len(components)), np.abs(components).argmax(axis=1)] > 0)
    mirrored = PCA().fit(-TRAIN).components_  # the same axes, whichever way the data points
    np.testing.assert_allclose(mirrored, components, atol=1e-9)


def test_pca_far_from_zero_keeps_its_eigenvalues() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 3)) * [3.0, 2.0, 1.0]
    near, far = PCA().fit(rows), PCA().fit(rows + 3000.0)
    np.testing.assert_allclose(far.explained_variance_, near.explained_variance_, rtol=1e-9)


def test_scaler_of_a_table_is_scikit_learns() -> None:
    for shape in (None, [13], [1, 5, 5]):  # the last is the shape of other columns
        ours, reference = StandardScaler(shape=shape).fit(TRAIN), preprocessing.StandardScaler().fit(TRAIN)
        for rows in (TRAIN, NEW):
            np.testing.assert_allclose(ours.transform(rows), reference.transform(rows), rtol=0, atol=1e-12)


def test_scaler_of_images_goes_by_channel() -> None:
    images = np.random.default_rng(1).normal(size=(20, 3, 4, 5)) * np.array([1.0, 5.0, 9.0])[:, None, None] + 7
    flat = images.reshape(20, -1)
    scaled = StandardScaler(shape=[3, 4, 5]).fit(flat).transform(flat).reshape(images.shape)
    mean, std = images.mean(axis=(0, 2, 3), keepdims=True), images.std(axis=(0, 2, 3), keepdims=True)
    np.testing.assert_allclose(scaled, (images - mean) / std, atol=1e-12)


def test_a_rare_pixel_stays_small() -> None:
    digits = Bundled("digits", shape=[1, 8, 8], pipeline={"standard": StandardScaler}).load()
    table = Bundled("digits", pipeline={"standard": StandardScaler}).load()
    assert digits.train["features"].abs().max() < 3 < 20 < table.train["features"].abs().max()


def test_quantiles_of_few_rows() -> None:
    ours = QuantileTransformer(output_distribution="normal").fit(TRAIN)
    reference = preprocessing.QuantileTransformer(n_quantiles=len(TRAIN), output_distribution="normal").fit(TRAIN)
    np.testing.assert_allclose(ours.transform(NEW), reference.transform(NEW), atol=1e-12)
    assert ours.n_quantiles == 1000


def test_steps_follow_one_another_in_order() -> None:
    chain = steps(standard=StandardScaler, pca=partial(PCA, n_components=4))
    features, said = pipeline.fit(chain, TRAIN, Y[::2])
    scaler = preprocessing.StandardScaler().fit(TRAIN)
    reference = decomposition.PCA(4, svd_solver="full").fit(scaler.transform(TRAIN))
    np.testing.assert_allclose(features, reference.transform(scaler.transform(TRAIN)), atol=1e-9)
    assert said == []


def test_a_step_that_draws_gets_the_seed() -> None:
    chain = steps(one=decomposition.FastICA, other=partial(decomposition.FastICA, random_state=8))
    assert [step.random_state for step in chain.values()] == [3, 8]


def test_sparse_and_wide_steps() -> None:
    chain = steps(bins=preprocessing.KBinsDiscretizer)
    chain["bins"].set_params(n_bins=3, quantile_method="averaged_inverted_cdf")
    features, _ = pipeline.fit(chain, TRAIN, Y[::2])
    assert isinstance(features, np.ndarray)
    assert features.shape == (len(TRAIN), 39)


def test_complaints_are_said_once() -> None:
    chain = steps(ica=partial(decomposition.FastICA, max_iter=1))
    _, said = pipeline.fit(chain, TRAIN, Y[::2])
    assert len(said) == 1
    assert said[0].startswith("pipeline.ica: FastICA did not converge")


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            partial(decomposition.TruncatedSVD, n_components=99),
            "pipeline.it: n_components(99) must be <= n_features(13)",
        ),
        (
            partial(preprocessing.Normalizer, norm="l9"),
            "pipeline.it: The 'norm' parameter of Normalizer must be a str among",
        ),
        (partial(preprocessing.StandardScaler, mean=1), "pipeline.it: "),
        (
            partial(preprocessing.FunctionTransformer, func=lambda rows: rows),
            "pipeline.it must be a transformer that can be saved without pickle, got FunctionTransformer",
        ),
        (
            partial(preprocessing.FunctionTransformer, func=np.log),
            "pipeline.it must give finite numbers, got a missing or infinite one",
        ),
        (partial(preprocessing.FunctionTransformer, func=np.isnan, validate=False), None),
    ],
)
def test_refusals(part: Callable[..., Any], sentence: str | None) -> None:
    if sentence is None:
        pipeline.fit(steps(it=part), TRAIN, Y[::2])
        return
    with pytest.raises(ConfigError) as raised:
        pipeline.fit(steps(it=part), TRAIN - TRAIN.mean(axis=0), Y[::2])
    assert str(raised.value).startswith(sentence)


class Forgetful(preprocessing.StandardScaler):
    """Loses what it learnt when saved, as a transformer with its own __getstate__ may."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "mean_": np.zeros(13)}


def test_a_step_that_is_restored_as_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TRUSTED", [*pipeline.TRUSTED, f"{__name__}.Forgetful"])
    with pytest.raises(
        ConfigError, match=r"^pipeline.it must give the same numbers when restored, which Forgetful does not$"
    ):
        pipeline.fit(steps(it=Forgetful), TRAIN, Y[::2])


def test_shape_after_the_pipeline() -> None:
    image, plain = (1, 8, 8), (64,)
    keeps, mixes = {"a": StandardScaler()}, {"a": StandardScaler(), "b": PCA()}
    assert pipeline.folded(None, keeps, 64, 64) == plain
    assert pipeline.folded(image, keeps, 64, 64) == image
    assert pipeline.folded(image, {}, 64, 64) == image
    assert pipeline.folded(image, mixes, 64, 64) == plain  # components are no pixels
    assert pipeline.folded(image, mixes, 64, 41) == (41,)
    assert pipeline.folded(image, mixes, 100, 64) == image  # asked for
    with pytest.raises(ConfigError, match=r"^data.shape=\[1,8,8\] needs 64 columns, got 30$"):
        pipeline.folded(image, mixes, 30, 30)


def test_a_stranger_s_file_brings_nothing_to_life(tmp_path: Path) -> None:
    (tmp_path / "x.skops").write_bytes(skops.io.dumps({"blocks": {}, "steps": {"a": Forgetful().fit(TRAIN)}}))
    with pytest.raises(
        DataError, match=r"^x.skops: not restored, for it holds more than known transformers \(.*Forgetful"
    ):
        pipeline.load(tmp_path / "x.skops")
    (tmp_path / "x.skops").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match=r"^x.skops: damaged or missing"):
        pipeline.load(tmp_path / "x.skops")


def test_saved_bytes_depend_on_content_alone() -> None:
    one, other = StandardScaler().fit(TRAIN), StandardScaler().fit(TRAIN.copy())
    assert pipeline.dumps({"a": one}) == pipeline.dumps({"a": other})
    assert pipeline.dumps({"a": one}) != pipeline.dumps({"a": StandardScaler().fit(NEW)})
    restored = skops.io.loads(pipeline.dumps({"a": one}), trusted=pipeline.TRUSTED)["a"]
    np.testing.assert_array_equal(restored.transform(NEW), one.transform(NEW))


def test_every_transformer_restores_exactly_or_is_refused() -> None:
    """A walk over scikit-learn's own list: each that can be fitted with its defaults."""
    rows, target = np.abs(np.random.default_rng(0).normal(size=(60, 6))), np.arange(60) % 2.0
    restored, refusals = [], {}
    for name, kind in all_estimators(type_filter="transformer"):
        try:
            chain = pipeline.build({"it": kind}, None)
            features, _ = pipeline.fit(chain, rows, target)
        except ConfigError as error:
            refusals[name] = str(error)
            continue
        copy = skops.io.loads(pipeline.dumps(chain), trusted=pipeline.TRUSTED)["it"]
        np.testing.assert_array_equal(pipeline.transformed("it", copy, rows), features)
        restored.append(name)
    print(f"{len(restored)} transformers restore exactly, {len(refusals)} are refused: {', '.join(refusals)}")
    assert len(restored) >= 45
    assert {"PCA", "StandardScaler", "SplineTransformer", "SelectKBest", "PowerTransformer", "KMeans"} <= set(restored)
    assert all(text.startswith("pipeline.it") and "\n" not in text for text in refusals.values())
    assert "RandomTreesEmbedding" in refusals

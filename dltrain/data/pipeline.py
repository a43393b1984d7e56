"""Steps between columns and network: scikit-learn transformers, fitted on training rows, saved without pickle."""

import inspect
import io
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from scipy import sparse
from sklearn.base import OneToOneFeatureMixin, clone
from skops.io.exceptions import UntrustedTypesFoundException

from dltrain.errors import ConfigError, DataError

# What a file of a run may bring to life beside scikit-learn's own estimators: plain objects and functions of numbers,
# nothing that runs code or reaches a file. Trees (sklearn.tree's, KDTree) stay out: they follow indices without
# looking. A file adds nothing to it.
TRUSTED = [
    "dltrain.data.encoding.Dates",
    "dltrain.data.pca.PCA",
    "dltrain.data.quantile.QuantileTransformer",
    "dltrain.data.scaler.StandardScaler",
    "numpy.dtype",
    "numpy.mean",
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
    "scipy.interpolate._bsplines.BSpline",
    "sklearn.feature_selection._mutual_info.mutual_info_classif",
    "sklearn.feature_selection._mutual_info.mutual_info_regression",
    "sklearn.feature_selection._univariate_selection.chi2",
    "sklearn.feature_selection._univariate_selection.f_classif",
    "sklearn.feature_selection._univariate_selection.f_regression",
    "sklearn.feature_selection._univariate_selection.r_regression",
]
PROOF_ROWS = 10
UNPACKED, PACKED = 2**26, 100  # bytes that any file may unpack to, and as many more for each of its own
EPOCH = (1980, 1, 1, 0, 0, 0)


def build(pipeline: Mapping[str, Any] | None, shape: tuple[int, ...] | None, seed: int = 0) -> dict[str, Any]:
    """Unfitted transformers by name: factories are called, with `shape` where asked for; what draws gets the seed.

    Raises ConfigError with the step's name for what its constructor refuses.
    """
    steps = {}
    for name, part in (pipeline or {}).items():
        try:
            step = clone(part) if hasattr(part, "fit") and not inspect.isclass(part) else part(**handed(part, shape))
        except (TypeError, ValueError) as error:
            raise refused(name, error) from error
        if not hasattr(step, "fit") or not hasattr(step, "transform"):
            raise ConfigError(
                f"pipeline.{name} must have fit and transform, to be fitted once and meet new rows,"
                f" got {type(step).__name__}"
            )
        parameters = step.get_params(deep=False) if hasattr(step, "get_params") else {}
        if "shape" in parameters and parameters["shape"] is None and shape is not None:
            step.set_params(shape=list(shape))
        if "random_state" in parameters and parameters["random_state"] is None:
            step.set_params(random_state=seed % 2**32)
        steps[name] = step
    return steps


def handed(factory: Callable[..., Any], shape: tuple[int, ...] | None) -> dict[str, Any]:
    """The arguments a factory asks for by name."""
    return {"shape": None if shape is None else list(shape)} if "shape" in inspect.signature(factory).parameters else {}


def fit(steps: dict[str, Any], features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Fit each step on what those before it give and prove that it can be restored.

    features float64 (rows, n); target as numbers. Gives the features after the steps and what was warned of.
    Raises ConfigError with the step's name.
    """
    said: list[str] = []
    for name, step in steps.items():
        prove(name, step, features, target)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitted(name, step, features, target)
        said += dict.fromkeys(f"pipeline.{name}: {first_sentence(one.message)}" for one in caught)
        restorable(name, step, features[:PROOF_ROWS])  # again: with more rows some keep their neighbours in a tree
        features = apply(name, step, features)
    return features, said


def fitted(name: str, step: Any, features: np.ndarray, target: np.ndarray) -> None:
    """Fit one step; its own complaints become a sentence."""
    try:
        step.fit(features, target)
    except Exception as error:
        raise refused(name, error) from error


def apply(name: str, step: Any, features: np.ndarray) -> np.ndarray:
    """One fitted step on (rows, n); dense, float64 and finite. Raises ConfigError."""
    try:
        result = np.asarray(transformed(name, step, features), np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"pipeline.{name} must give numbers, which {type(step).__name__} does not") from error
    if result.ndim != 2 or len(result) != len(features) or not result.shape[1]:
        raise ConfigError(
            f"pipeline.{name} must give one row of columns for each row, got an array of shape {result.shape}"
        )
    if not np.isfinite(result).all():
        raise ConfigError(f"pipeline.{name} must give finite numbers, got a missing or infinite one")
    return result


def inverse(name: str, step: Any, features: np.ndarray) -> np.ndarray:
    """What a fitted step was given, from what it gives: (rows, n); ConfigError for a step that cannot tell."""
    if not hasattr(step, "inverse_transform"):
        raise ConfigError(f"run must have a pipeline that can be undone, got {name} ({type(step).__name__})")
    return np.asarray(step.inverse_transform(features), np.float64)


def prove(name: str, step: Any, features: np.ndarray, target: np.ndarray) -> None:
    """Fit a copy on ten rows and restore it, before hours go into fitting the whole; ten rows may not do for it."""
    sample = clone(step)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sample.fit(features[:PROOF_ROWS], target[:PROOF_ROWS])
            sample.transform(features[:PROOF_ROWS])
    except Exception:
        return
    restorable(name, sample, features[:PROOF_ROWS])


def restorable(name: str, step: Any, features: np.ndarray) -> None:
    """Save and load a fitted step and compare what it gives, to the bit; raises ConfigError."""
    kind = type(step).__name__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy = skops.io.loads(dumps({name: step}), trusted=TRUSTED)[name]
    except Exception as error:
        raise ConfigError(
            f"pipeline.{name} must be a transformer that can be saved without pickle,"
            f" got {kind} ({first_sentence(error)})"
        ) from error
    before, after = (np.asarray(transformed(name, one, features)) for one in (step, copy))
    if not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
        raise ConfigError(f"pipeline.{name} must give the same numbers when restored, which {kind} does not")


def transformed(name: str, step: Any, features: np.ndarray) -> Any:
    """What a fitted step gives, dense; raises ConfigError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when it was fitted
            result = step.transform(features)
    except Exception as error:
        raise refused(name, error) from error
    return result.toarray() if sparse.issparse(result) else result


def refused(name: str, error: Exception) -> ConfigError:
    """A step's own complaint, under the setting's name."""
    return ConfigError(f"pipeline.{name}: {first_sentence(error)}")


def first_sentence(error: object) -> str:
    """A complaint on one line."""
    line = " ".join(str(error).split())
    return line.split(". ")[0].rstrip(".") or type(error).__name__


def folded(shape: tuple[int, ...] | None, steps: dict[str, Any], n_in: int, n_out: int) -> tuple[int, ...]:
    """The shape of a row's features after the pipeline; raises ConfigError if `data.shape` has another size.

    A step that mixes columns (PCA) makes an image a plain table row, (n,).
    """
    if shape is None:
        return (n_out,)
    keeps = all(isinstance(step, OneToOneFeatureMixin) for step in steps.values())
    size = math.prod(shape)
    if size == n_out and (keeps or n_in != size):
        return shape
    if size == n_in:
        return (n_out,)
    told = "[" + ",".join(map(str, shape)) + "]"
    raise ConfigError(f"data.shape={told} needs {size} columns, got {n_out}")


def dumps(parts: dict[str, Any]) -> bytes:
    """skops' file of named objects, with the same bytes for the same content: no clock, and no address of memory."""
    source = zipfile.ZipFile(io.BytesIO(skops.io.dumps(parts)))
    schema = json.loads(source.read("schema.json"))
    names: dict[str, str] = {}
    schema = stable(schema, {}, names)
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as archive:
        for old, new in names.items():
            archive.writestr(zipfile.ZipInfo(new, EPOCH), source.read(old))
        archive.writestr(zipfile.ZipInfo("schema.json", EPOCH), json.dumps(schema, indent=1))
    return result.getvalue()


def stable(node: Any, ids: dict[int, int], names: dict[str, str]) -> Any:
    """A node of skops' schema with objects and files numbered in the order of appearance."""
    if isinstance(node, list):
        return [stable(item, ids, names) for item in node]
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if key == "__id__" and isinstance(value, int):
            value = ids.setdefault(value, len(ids))
        elif key == "file" and isinstance(value, str):
            value = names.setdefault(value, f"{len(names)}{Path(value).suffix}")
        else:
            value = stable(value, ids, names)
        found[key] = value
    return found


def load(path: Path) -> dict[str, Any]:
    """The named objects of a file `dumps` wrote; only what is trusted comes to life. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > UNPACKED + PACKED * path.stat().st_size:
            raise ValueError(f"{size:,} bytes when unpacked")
        parts: dict[str, Any] = skops.io.load(path, trusted=TRUSTED)
    except UntrustedTypesFoundException as error:
        raise DataError(f"{path.name}: not restored, for it holds more than known transformers ({error})") from error
    except Exception as error:  # what a stranger's file makes skops stumble over is of any kind
        raise DataError(f"{path.name}: damaged or missing ({first_sentence(error)})") from error
    return parts

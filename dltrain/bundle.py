"""The bundle of a finished run: a trained network with everything that predict needs, in one folder without pickle."""

import functools
import inspect
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dltrain.build import Builder, Factory, locate
from dltrain.checkpoint import Damaged, save_tensors, sync, verify, write_manifest
from dltrain.errors import ConfigError, DataError, UserError
from dltrain.evaluate import chunk_size
from dltrain.settings import own_settings
from dltrain.tasks.ensemble import Ensemble
from dltrain.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
PARTS = ("task", "model", "activation", "loss")
SMALL = 2**20  # numbers that any network may have


class Model:
    """A trained network: `predict(frame)` gives one row of the frame a row, `evaluate(frame)` its metrics.

    `parts` is what it is built of, None of an ensemble of several.
    """

    def __init__(self, task: Task, preparation: Any, parts: Mapping[str, Any] | None) -> None:
        self.task, self.preparation, self.parts = task.eval(), preparation, parts

    @classmethod
    def load(cls, folder: Path, trust: tuple[str, ...] = ()) -> "Model":
        """Read a bundle after verifying every file's hash; nothing in it is executed.

        Raises ConfigError if the bundle is damaged or was written by a newer dltrain.
        """
        try:
            return cls.read(folder, trust)
        except Damaged as error:
            raise ConfigError(f"run must have an undamaged model, got {folder.parent.name}: {error}") from error

    @classmethod
    def read(cls, folder: Path, trust: tuple[str, ...] = ()) -> "Model":
        """As `load`; raises Damaged if the bundle is damaged."""
        described = _described(folder)
        with _undamaged("model.json"):
            members = described.get("members") or [{"parts": described["parts"], "view": 0}]
            prepared = _prepared(folder, described["preparation"], trust)
            views, of = getattr(prepared, "views", [prepared]), [member["view"] for member in members]
            builders = [Builder({part: member["parts"][part] for part in PARTS}, trust) for member in members]
        # what a module of the user's own raises keeps its traceback
        with _no_larger(folder / "model.safetensors") if not trust else nullcontext():
            tasks = [make_task(builder, views[view]) for builder, view in zip(builders, of, strict=True)]
            task = Ensemble(tasks, [view.shape_in for view in views], of) if "members" in described else tasks[0]
        with _undamaged("model.safetensors"):
            task.load_state_dict(load_file(folder / "model.safetensors"))
        model = cls(task, prepared, described.get("parts"))
        if not trust:
            with _undamaged("model.json"):
                model._prove()
        return model

    def _prove(self) -> None:
        """Predict a row of missing cells: whether what the files say fits together shows here, not in the middle."""
        with warnings.catch_warnings(), suppress(UserError):  # such cells may be refused, in words
            warnings.simplefilter("ignore")
            frame = self.preparation.blank()
            self.predict(frame)
            self.preparation.targets(frame, "model.json")

    @torch.no_grad()
    def outputs(self, features: Tensor, target: Tensor | None = None) -> Tensor:
        """What the task predicts for prepared features (rows, *shape_in), or of them where the target is known."""
        size = chunk_size(features, self.task.widens)
        rows = {"features": features} | ({} if target is None else {"target": target})
        found = []
        with torch.random.fork_rng(devices=[]):
            for start in range(0, max(1, len(features)), size):
                torch.manual_seed(start)  # what is drawn is the same every time
                found.append(self.task.predictions({key: v[start : start + size] for key, v in rows.items()}))
        return torch.cat(found)

    def predict(self, frame: "pd.DataFrame", source: str = "frame", first_row: int = 0) -> "pd.DataFrame":
        """Predictions in the order of the rows: `row`, id columns, then what `dltrain predict` writes."""
        import pandas as pd

        predictions = self.outputs(self.preparation.features(frame, source, first_row))
        columns: dict[str, Any] = {"row": range(first_row, first_row + len(frame))}
        found = self.task.columns(predictions)
        named = {f"prediction_{name}" if name == "row" else name: values for name, values in found.items()}
        for name in self.preparation.id_columns:
            if name in frame:
                taken = name == "row" or name in named
                columns[f"id_{name}" if taken else name] = frame[name].to_numpy()
        return pd.DataFrame(columns | named)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, **told: Any) -> "pd.DataFrame":
        """New rows as a file would have them, or a column `text`; `told` are further arguments of the task's `sample`.

        Raises ConfigError for a task that makes none, or that cannot be told so.
        """
        import pandas as pd

        for word in told.keys() - inspect.signature(self.task.sample).parameters:
            raise ConfigError(f"{word} must be left out with task={type(self.task).__name__.lower()}")
        with torch.random.fork_rng(devices=[]), next(self.task.parameters()).device:
            torch.manual_seed(seed)
            made = self.task.sample(n, **told)
        return pd.DataFrame({"text": made}) if isinstance(made, list) else self.preparation.restored(made.cpu())

    def evaluate(self, frame: "pd.DataFrame", source: str = "frame") -> dict[str, float]:
        """Metrics of rows that have the target column; raises DataError if they do not."""
        truth = self.preparation.targets(frame, source)
        features = self.preparation.features(frame, source)
        return self.score(features, {"features": features, "target": truth})

    def score(self, features: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of prepared rows."""
        return self.task.metrics(self.outputs(features, rows["target"]), rows)

    def evaluate_file(self, source: str, rows: int = 65536) -> tuple[dict[str, float], int]:
        """Metrics of a file with the target, and of how many rows; rows whose target is missing are left out."""
        predictions, pieces = [], []
        for piece in self.preparation.labelled(source, rows):
            predictions.append(self.outputs(piece["features"], piece["target"]))
            pieces.append({key: piece[key] for key in {"target", *self.task.measured_on}})
        whole = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        if not len(whole["target"]):
            name = "standard input" if source == "-" else Path(source).name
            raise DataError(f"{name}: has no row with a target")
        return self.task.metrics(torch.cat(predictions), whole), len(whole["target"])

    def predict_file(self, source: str, rows: int = 65536) -> "Iterator[pd.DataFrame]":
        """Predictions for a file (or `-`, standard input), a chunk at a time in the order of its rows."""
        name = "standard input" if source == "-" else Path(source).name
        for frame, first in self.frames(source, rows):
            yield self.predict(frame, name, first)

    def frames(self, source: str, rows: int = 65536) -> "Iterator[tuple[pd.DataFrame, int]]":
        """A file's rows, a chunk at a time, each with the number of its first row."""
        first = 0
        for frame in self.preparation.read(source, rows):
            yield frame, first
            first += len(frame)


def _prepared(folder: Path, state: Mapping[str, Any], trust: tuple[str, ...]) -> Any:
    """What a bundle keeps of how rows are prepared; raises Damaged for a folder that is not as it was written."""
    kind = locate(state["_target_"], "preparation", "data", trust)
    if "views" not in state:
        return kind.load(folder, state)
    views = []
    for number, view in enumerate(state["views"]):
        _verify(folder / str(number))
        views.append(_prepared(folder / str(number), view, trust))
    return kind(views)


def _verify(folder: Path, *needed: str) -> None:
    """Raise Damaged unless all files of a folder, and those it needs, are as its manifest says."""
    listed = {*verify(folder), "manifest.json"}
    there = {path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".skops")}
    if others := sorted(({*needed} | there) - listed):
        raise Damaged(f"{others[0]} is not in its manifest")


def _described(folder: Path) -> dict[str, Any]:
    """What model.json says, every file having been verified; raises Damaged, and ConfigError for a newer format."""
    _verify(folder, "model.json", "model.safetensors")
    with _undamaged("model.json"):
        described: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        json.dumps(described, ensure_ascii=False).encode()  # half a character can be read and never written
        newer = described["format"] > FORMAT
    if newer:
        raise ConfigError(f"model.json must be of format {FORMAT} or older, got {described['format']}; update dltrain")
    return described


@contextmanager
def _undamaged(name: str) -> Iterator[None]:
    """Turn whatever a file's content makes fail into Damaged: a stranger's file may say anything, hashes and all."""
    try:
        yield
    except (UserError, Damaged):
        raise
    except Exception as error:
        first = " ".join(str(error).split()) or "no reason given"
        raise Damaged(f"{name} does not hold what it must ({type(error).__name__}: {first[:200]})") from error


@contextmanager
def _no_larger(weights: Path) -> Iterator[None]:
    """As `_undamaged`, and refuse a large network of more numbers than its weights' file has bytes: it fills memory."""
    left = max(weights.stat().st_size, SMALL)

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= parameter.numel() if parameter is not None else 0
        if left < 0:
            raise Damaged(f"{weights.name} is too small for the network of model.json")

    hook = register_module_parameter_registration_hook(count)
    try:
        with _undamaged("model.json"):
            yield
    finally:
        hook.remove()


def make_task(builder: Builder, preparation: Any) -> Task:
    """Build the task and its networks for prepared data; raises ConfigError for parts that do not fit."""
    _check_reads(builder, preparation.gives)
    builder.handed["target"] = preparation.target
    builder.handed["shape_in"] = preparation.shape_in
    builder.handed["vocabulary"] = getattr(preparation, "vocabulary", None)  # of tokens: how many there are
    for group in ("activation", "loss"):
        builder.handed[group] = builder.part(group)
    made: list[nn.Module] = []
    own = builder.factory(own_settings(builder.config["model"]), "model", "model")
    builder.handed["model"] = _noted(own, made)
    try:
        task: Task = builder.part("task")(data=preparation)
        places = [name for name, module in task.named_modules() if any(module is network for network in made)]
        task.place = places[0] if len(places) == 1 else None
        return task
    except ConfigError as error:
        if not str(error).startswith("model="):
            raise
        raise ConfigError(f"{_named(builder, 'task')}: {error}") from error  # networks know no tasks


def _noted(factory: Factory, made: list[nn.Module]) -> Factory:
    """A factory that notes what it makes."""

    def make(*args: Any, **handed: Any) -> nn.Module:
        made.append(factory(*args, **handed))
        return made[-1]

    return functools.update_wrapper(make, factory, (), ())


def _check_reads(builder: Builder, gives: str) -> None:
    """Raise ConfigError unless data, task and model are all of features, or all of tokens, or of pairs of them."""
    model, task = (_named(builder, group) for group in ("model", "task"))
    reads, wanted = (getattr(builder.kind(group), "reads", "features") for group in ("model", "task"))
    if reads != wanted:
        raise ConfigError(f"{task} must go with a model of {wanted}, got {model}, which reads {reads}")
    if gives != wanted:
        data = _named(builder, "data")
        raise ConfigError(f"{task} and {model} must go with data of {wanted}, got {data}, which gives {gives}")


def _named(builder: Builder, group: str) -> str:
    """A group and what was chosen of it, as one types it."""
    choice = builder.config.get("choices", {}).get(group)
    return f"{group}={choice or builder.kind(group).__name__.lower()}"


def save(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], preparation: Any) -> str:
    """Write the bundle so that it is there whole or not at all; returns the SHA-256 of its weights."""
    parts = {key: config[key] for key in PARTS} | {"model": own_settings(config["model"])}
    return _write(folder, {"parts": parts}, config["choices"], weights, preparation)


def save_ensemble(
    folder: Path, choices: Mapping[str, Any], task: Ensemble, models: Sequence[Model], preparation: Any
) -> str:
    """As `save`, of the trained networks that a task is made of; it needs their own bundles no more."""
    members = [{"parts": model.parts, "view": view} for model, view in zip(models, task.of, strict=True)]
    return _write(folder, {"members": members}, choices, task.state_dict(), preparation)


def _write(
    folder: Path, built: Mapping[str, Any], choices: Mapping[str, Any], weights: Mapping[str, Tensor], preparation: Any
) -> str:
    part = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    prepared = preparation.save(part)
    for view in [path for path in part.iterdir() if path.is_dir()]:
        write_manifest(view)
    save_tensors({key: value.cpu().contiguous() for key, value in weights.items()}, part / "model.safetensors")
    described = {"format": FORMAT, **built, "preparation": prepared, "choices": choices}
    (part / "model.json").write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
    files = write_manifest(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    sync(folder.parent)
    return str(files["model.safetensors"]["sha256"])

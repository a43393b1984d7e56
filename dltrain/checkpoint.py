"""Save and restore a run's state so that a kill at any instant loses nothing that was published.

A checkpoint is written to `.tmp-...`, every file and the folder are synced, the manifest (bytes and SHA-256 of each
file) last, then it is renamed. Tensors are whole, under plain names, whatever the trainer, so any trainer continues it.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dltrain.distributed import Single
from dltrain.errors import ConfigError, DiskError, whole
from dltrain.faults import point
from dltrain.player import Player

FORMAT = 1
Tensors = dict[str, dict[str, Tensor]]
State = dict[str, Any]


def pack(task: nn.Module, players: Mapping[str, Player], trainer: Single) -> tuple[Tensors, State]:
    """Copies of all tensors by file, and the rest as JSON: weights, buffers, optimizers, schedulers, averages.

    Tensors are whole, so every rank must call; those but rank 0 are left with empty hands.
    """
    spread: dict[str, dict[str, tuple[Tensor, Tensor]]] = {
        "model": {},
        "optim": {},
        "ema": {},
    }  # a part, and spread how
    spread["model"] = {key: (trainer.local(value), value) for key, value in task.state_dict().items()}
    state: State = {"players": {}}
    for name, player in players.items():
        packed = player.optimizer.state_dict()
        names, like = _numbered(packed), dict(player.network.named_parameters())
        plain: dict[str, dict[str, Any]] = {}
        for index, values in packed["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    spread["optim"][f"{name}|{names[index]}|{key}"] = value, like[names[index]]
                else:
                    plain.setdefault(names[index], {})[key] = value
        schedule = {key: value for key, value in player.scheduler.state_dict().items() if not callable(value)}
        state["players"][name] = {"groups": packed["param_groups"], "plain": plain, "scheduler": schedule}
        weights = player.network.state_dict()
        spread["ema"] |= {f"{name}.{key}": (value, weights[key]) for key, value in player.average.items()}
    tensors: Tensors = {file: {} for file, group in spread.items() if group}
    for file in tensors:
        for key, (part, like_whom) in spread[file].items():
            whole = trainer.whole(part, like_whom)
            if trainer.rank == 0:
                tensors[file][key] = whole.detach().to("cpu", copy=True).contiguous()
    return tensors, state


def unpack(task: nn.Module, players: Mapping[str, Player], trainer: Single, tensors: Tensors, state: State) -> None:
    """Put a packed state back; raises ConfigError if it is not of these networks and optimizers, hashes and all."""
    with of_this_run():
        for name, player in players.items():
            _unpack(name, player, trainer, tensors, state["players"][name])
        load(task, trainer, tensors["model"])  # last: `_kept` moves weights


@contextmanager
def of_this_run() -> Iterator[None]:
    """Turn what the content of another run's checkpoint makes fail into a ConfigError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"checkpoint must be of this run's networks and optimizers, got another ({type(error).__name__}: {first})"
        ) from error


def load(task: nn.Module, trainer: Single, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a task, spread as its own are."""
    own = task.state_dict()
    task.load_state_dict({key: trainer.spread(t, own[key]) if key in own else t for key, t in tensors.items()})


def _unpack(name: str, player: Player, trainer: Single, tensors: Tensors, saved: State) -> None:
    kept = _kept(player.optimizer)
    index = {key: number for number, key in _numbered(kept).items()}
    values: dict[int, dict[str, Any]] = {index[key]: dict(plain) for key, plain in saved["plain"].items()}
    like = dict(player.network.named_parameters())
    for key, value in tensors.get("optim", {}).items():
        owner, parameter, entry = key.split("|")
        if owner == name:
            part = trainer.local(trainer.spread(value, like[parameter]))
            values.setdefault(index[parameter], {})[entry] = part
    for number, entries in values.items():
        if entries.keys() != kept["state"][number].keys():
            raise ValueError(f"an optimizer that keeps {', '.join(entries)}")
    state = {number: _like(kept["state"][number], entries) for number, entries in values.items()}
    groups = [
        {**group, "params": own["params"]} for group, own in zip(saved["groups"], kept["param_groups"], strict=True)
    ]
    player.optimizer.load_state_dict({"state": state, "param_groups": _like(kept["param_groups"], groups)})
    own = player.scheduler.state_dict()  # JSON makes text of the numbers that MultiStepLR's milestones are kept under
    schedule = {key: value for key, value in saved["scheduler"].items() if not isinstance(own.get(key), dict)}
    player.scheduler.load_state_dict(schedule)
    weights = player.network.state_dict()
    for key, average in player.average.items():
        average.copy_(_like(average, trainer.local(trainer.spread(tensors["ema"][f"{name}.{key}"], weights[key]))))


def _kept(optimizer: Optimizer) -> dict[str, Any]:
    """The state that an optimizer keeps of its parameters, made by a step along gradients of zero."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer.state_dict()


def _like(own: Any, saved: Any) -> Any:
    """A saved value where this run has one of its own: numbers and tensors of one shape may differ, nothing else.

    What only one of two mappings has is as this run has it. A fused kernel looks at no shape: it reads what lies
    behind a tensor that is too small. Raises ValueError for what cannot stand there.
    """
    if isinstance(own, dict) and isinstance(saved, dict):
        return {key: _like(value, saved[key]) if key in saved else value for key, value in own.items()}
    if isinstance(own, list | tuple) and isinstance(saved, list) and len(own) == len(saved):
        return type(own)(map(_like, own, saved))
    if isinstance(own, Tensor) and isinstance(saved, Tensor) and own.shape == saved.shape:
        return saved.to(own.dtype)
    if type(own) in (int, float) and type(saved) in (int, float) and abs(saved) <= sys.float_info.max:
        return saved
    if type(own) is type(saved) and not isinstance(own, Tensor) and own == saved:
        return saved
    shape = f"a tensor {list(saved.shape)}" if isinstance(saved, Tensor) else str(saved)[:50]
    raise ValueError(f"{shape} where {list(own.shape) if isinstance(own, Tensor) else own} is")


def _numbered(packed: Mapping[str, Any]) -> dict[int, str]:
    """The names of an optimizer's parameters by their numbers in its state."""
    return {
        i: name
        for group in packed["param_groups"]
        for i, name in zip(group["params"], group["param_names"], strict=True)
    }


class Checkpoints:
    """The checkpoints of a run: written by one thread in the background, read newest first."""

    def __init__(self, folder: Path, warn: Callable[[str], None], keep: int = 3, writes: bool = True) -> None:
        self.folder, self.warn, self.keep, self.writes = folder, warn, keep, writes
        self.before_save: Callable[[], None] = lambda: None  # what must be on disk before a checkpoint is published
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future | None = None
        self.saved: int | None = None
        self.patient = False  # whether the best state so far waits in memory until a checkpoint is due
        self.held: tuple[int, Tensors, State] | None = None

    def save(self, step: int, tensors: Tensors, state: State, best: int | None, due: bool = True) -> None:
        """Write a checkpoint in the background, after the best if that waits; errors of those before surface here."""
        self.wait()
        if step == self.saved or not self.writes:
            return
        state = {"format": FORMAT, "best": best, **state}
        if self.patient and best == step:
            self.held = step, tensors, state
        if self.patient and not due:
            return
        best_first = [self.held] if self.held is not None and (self.saved or 0) < self.held[0] < step else []
        written = [*best_first, (step, tensors, state)]
        self.saved = step
        self.before_save()
        self.pending = self.writer.submit(self._write_all, written, best)

    def _write_all(self, written: list[tuple[int, Tensors, State]], best: int | None) -> None:
        for step, tensors, state in written:
            self._write(step, tensors, state, best)

    def wait(self) -> None:
        """Wait until everything is on disk; raises OSError if the disk is full or read-only."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, step: int, tensors: Tensors, state: State, best: int | None) -> None:
        point("save")
        final = self.folder / f"step-{step:08d}"
        if not final.exists():
            self.folder.mkdir(exist_ok=True)
            for stale in [*self.folder.glob(".tmp-*"), *self.folder.glob(".trash-*")]:
                _remove(stale)
            part = self.folder / f".tmp-{final.name}"
            part.mkdir()
            for file, group in tensors.items():
                point(f"save-{file}")
                save_tensors(group, part / f"{file}.safetensors")
            point("save-state")
            (part / "state.json").write_text(json.dumps(state, allow_nan=True))
            point("save-manifest")
            write_manifest(part, step=step)
            point("rename")
            part.rename(final)
            sync(self.folder)
            point("renamed")
        if best is not None:
            write_text(self.folder / "best", f"step-{best:08d}\n")
        self._prune()
        point("saved")

    def _prune(self) -> None:
        """Keep the newest few, and the best that each of them names."""
        steps = self.steps()
        kept = set(steps[-self.keep :])
        for step in list(kept):
            best = self._best_of(step)
            kept |= {best} if best is not None else set()
        for step in steps:
            if step not in kept:
                trash = self._discard(step)
                point("prune")
                _remove(trash)

    def _discard(self, step: int) -> Path:
        """Take a checkpoint away at once; gives where it lies until it is removed."""
        trash = self.folder / f".trash-step-{step:08d}"
        _remove(trash)
        return (self.folder / f"step-{step:08d}").rename(trash)

    def _best_of(self, step: int) -> int | None:
        try:
            best = json.loads(_text(self.folder / f"step-{step:08d}" / "state.json"))["best"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return best if whole(best) else None

    def steps(self) -> list[int]:
        """Steps of all published checkpoints, oldest first."""
        names = [path.name for path in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-([0-9]{8}|[1-9][0-9]{8,})", name))

    def newest(self) -> tuple[Tensors, State] | None:
        """The newest checkpoint that verifies; says why one was rejected and falls back."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.read(step)
            except Damaged as error:
                self.warn(f"checkpoint step-{step:08d} was rejected: {error}")
                self._discard(step)
        if steps:
            self.warn("no checkpoint can be read; training starts over")
        return None

    def read(self, step: int) -> tuple[Tensors, State]:
        """Verify and read one checkpoint; raises Damaged with the reason."""
        folder = self.folder / f"step-{step:08d}"
        files = verify(folder, step)
        for name in ("model.safetensors", "state.json"):
            if name not in files:
                raise Damaged(f"manifest.json does not list {name}")
        try:
            state = json.loads((folder / "state.json").read_text())
            tensors = {name[: -len(".safetensors")]: load_file(folder / name) for name in files if name != "state.json"}
        except Exception as error:
            raise Damaged(f"{type(error).__name__}: {error}") from None
        position = state.get("position") if isinstance(state, dict) else None
        if not isinstance(position, dict) or not whole(position.get("step")) or position["step"] != step:
            raise Damaged(f"state.json is not of step {step}")
        return tensors, state

    def load_weights(self, step: int, task: nn.Module, trainer: Single) -> bool:
        """Load a checkpoint's weights, averaged ones where they are kept; False, with a warning, if it is damaged."""
        try:
            tensors = self.held[1] if self.held is not None and self.held[0] == step else self.read(step)[0]
        except Damaged as error:
            self.warn(
                f"the best checkpoint, step-{step:08d}, was rejected ({error}); the last weights are used instead"
            )
            return False
        with of_this_run():
            load(task, trainer, tensors["model"] | tensors.get("ema", {}))
        return True


class Damaged(Exception):
    """A checkpoint that is not what its manifest says."""


def verify(folder: Path, step: int | None = None) -> list[str]:
    """The files of a manifest, each of which was found with its size and hash; raises Damaged with the reason."""
    try:
        manifest = json.loads(_text(folder / "manifest.json"))
        version = manifest["format"]
        other = step is not None and manifest["step"] != step
        promised = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"manifest.json cannot be read ({type(error).__name__})") from None
    if not whole(version, 1):
        raise Damaged("manifest.json has no format")
    if version > FORMAT:
        raise ConfigError(f"{folder.name} must be of format {FORMAT} or older, got {version}; update dltrain")
    if other:
        raise Damaged(f"manifest.json is of step {manifest['step']}")
    for name, (size, digest) in promised.items():
        path = folder / name
        try:
            found = _size(path) if path.name == name else None
        except (OSError, ValueError):  # ValueError: it cannot be the name of a file
            found = None
        if found is None:
            raise Damaged(f"{name[:100]} is missing")
        if found != size:
            raise Damaged(f"{name} has {found} bytes, its manifest says {size}")
        if sha256(path) != digest:
            raise Damaged(f"{name} does not have the content its manifest says")
    return list(promised)


def _size(path: Path) -> int:
    """The bytes of a file; raises OSError for what is none of its own, such as a link, or a pipe, which has no end."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is not a file")
    return found.st_size


def _text(path: Path) -> str:
    """The text of a file; raises OSError for what is none."""
    _size(path)
    return path.read_text()


def _remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_manifest(folder: Path, **more: Any) -> dict[str, Any]:
    """Force all files of a folder to disk, and their manifest last; returns their sizes and hashes.

    Folders in it have manifests of their own.
    """
    there = [path for path in sorted(folder.iterdir()) if path.is_file()]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in there}
    for path in there:
        sync(path)
    path = folder / "manifest.json"
    path.write_text(json.dumps({"format": FORMAT, **more, "files": files}, indent=2))
    sync(path)
    sync(folder)
    return files


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises DiskError where the disk does not take it."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # it wraps what the system said
        raise DiskError(f"cannot write {path}: {error}") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")  # not `.tmp-`: those are folders
    part.write_text(text, encoding="utf-8")
    sync(part)
    point(f"write-{path.name}")
    part.replace(path)
    sync(path.parent)

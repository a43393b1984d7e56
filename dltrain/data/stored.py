"""Prepared rows in a folder, for other processes of the same machine to map into their memory."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dltrain.data.rows import Data, Rows

SPLITS = ("train", "valid", "test")


def store(data: Data, folder: Path) -> Data:
    """Write what `mapped` reads; gives the same data, its rows mapped instead of held.

    A .npy file begins its numbers at a multiple of 64 bytes, as torch's own memory does: products round differently
    where they do not.
    """
    for split in SPLITS:
        for field, values in getattr(data, split).items():
            np.save(folder / f"{split}-{field}.npy", values.numpy(), allow_pickle=False)
    text = json.dumps({"preparation": data.preparation.share(folder), "description": data.description})
    (folder / "data.json").write_text(text, encoding="utf-8")
    return replace(data, train=_rows(folder, "train"), valid=_rows(folder, "valid"), test=_rows(folder, "test"))


def mapped(folder: Path) -> Data:
    """Rows, and of their preparation what it shares."""
    state = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    module, _, name = state["preparation"]["_target_"].rpartition(".")
    preparation = getattr(importlib.import_module(module), name).shared(folder, state["preparation"])
    train, valid, test = (_rows(folder, split) for split in SPLITS)
    return Data(train, valid, test, preparation, state["description"])


def _rows(folder: Path, split: str) -> Rows:
    """The fields of a split in pages that all processes share until one writes."""
    files = sorted(folder.glob(f"{split}-*.npy"))
    return {file.stem.removeprefix(f"{split}-"): torch.from_numpy(np.load(file, mmap_mode="c")) for file in files}

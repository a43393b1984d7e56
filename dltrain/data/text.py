"""A text, cut into windows of tokens of which each token is to be told from those before it."""

import sys
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dltrain.data import split as splits
from dltrain.data.content import file, file_sha256
from dltrain.data.files import bom_aware, known_encoding
from dltrain.data.rows import Data, Rows
from dltrain.data.target import Target
from dltrain.data.tokens import PADDING, TokenPreparation, kind_of, padded
from dltrain.errors import DataError, must, whole

COLUMN = "text"  # of the frame that a new file becomes, a row a line


class Text:
    """A text file: its first part is for training, the next for validation, the last for the test.

    A row is a window of `length` tokens and its target the same window one token further. Windows of the training part
    begin every `stride` tokens, those of the other parts follow each other, and none crosses from part to part; the
    last is padded. Raises ConfigError for a setting, DataError for the file.
    """

    def __init__(
        self,
        path: str,
        tokens: str = "characters",
        vocabulary: int = 1000,
        length: int = 128,
        stride: int | None = None,
        split: Mapping[str, Any] | None = None,
        encoding: str = "utf-8",
    ) -> None:
        must(whole(vocabulary, 1), "data.vocabulary", "a whole number of at least 1", vocabulary)
        must(whole(length, 1), "data.length", "a whole number of at least 1", length)
        fits = stride is None or (whole(stride, 1) and stride <= length)
        must(fits, "data.stride", f"a whole number from 1 to data.length={length}, or null", stride)
        self.path, self.tokenizer, self.vocabulary = path, kind_of(tokens), vocabulary
        self.length, self.stride = length, stride or length
        self.split = splits.from_config({"kind": "time", "valid": 0.1, "test": 0.1} | dict(split or {}))
        self.encoding = known_encoding(encoding)

    def load(self) -> Data:
        """Read, split by position, learn the tokens, and give three splits."""
        path = file("data.path", self.path)
        text = decoded(path.read_bytes(), path.name, self.encoding)
        if not text.strip():
            raise DataError(f"{path.name}: the text is empty")
        if len(text) <= self.length:
            raise DataError(f"{path.name}: a text of {len(text)} characters is too short for a window of {self.length}")
        n_valid, n_test = self._sizes(len(text), path.name)
        bounds = [0, len(text) - n_valid - n_test, len(text) - n_test, len(text)]
        parts = [text[start:end] for start, end in pairwise(bounds)]
        tokenizer = self.tokenizer.fit(parts[:1], self.vocabulary)
        encoded = [tokenizer.encode(part) for part in parts]
        if len(encoded[0]) <= self.length:
            raise DataError(
                f"{path.name}: its training part of {len(encoded[0])} tokens is too short for a window of"
                f" {self.length} and the token after it; set data.length"
            )
        reading = {"encoding": self.encoding}
        preparation = TextPreparation(tokenizer, (self.length,), Target("tokens", (COLUMN,)), reading)
        rows = {
            name: windows(part, self.length, self.stride if name == "train" else self.length)
            for name, part in zip(("train", "valid", "test"), encoded, strict=True)
        }
        description = {
            "format": 1,
            "source": path.name,
            "content_hash": file_sha256(path),
            "rows": sum(len(split["row"]) for split in rows.values()),
            "splits": {name: len(split["row"]) for name, split in rows.items()},
            "characters": dict(zip(rows, map(len, parts), strict=True)),
            "tokens": dict(zip(rows, map(len, encoded), strict=True)),
            "vocabulary": tokenizer.size,
            "shape_in": [self.length],
        }
        return Data(**rows, preparation=preparation, description=description, warnings=strange(tokenizer, parts))

    def _sizes(self, n: int, source: str) -> tuple[int, int]:
        """Characters for validation and for the test; a part is empty or has a token to tell and one before it."""
        n_valid, n_test = self.split.sizes(n, source, True, True)
        return max(2, n_valid), max(2, n_test) if n_test else 0


class TextPreparation(TokenPreparation):
    """From text to windows. The rows of a frame are lines (column `text`), each told from what stands before it in it.

    A line stands between two line breaks, the second of which is to be told as well. A line longer than a window is
    told window by window.
    """

    def features(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """int64 (rows, windows * length): the tokens of the lines, padded."""
        if COLUMN not in frame.columns:
            raise DataError(f"{source}: there is no column {COLUMN}")
        edge = "" if self.tokenizer.unknown("\n") else "\n"
        lines = [self.tokenizer.encode(f"{edge}{line}{edge}") for line in frame[COLUMN]]
        length = self.shape_in[0]
        width = length * max([1, *(-(-len(line) // length) for line in lines)])
        return torch.tensor([padded(line, width) for line in lines], dtype=torch.long).view(-1, width)

    def targets(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """int64 as the features: at each place the token that comes next, padding behind the last."""
        features = self.features(frame, source, first_row)
        return torch.cat([features[:, 1:], torch.full_like(features[:, :1], PADDING)], 1)

    def blank(self) -> pd.DataFrame:
        """One empty line."""
        return pd.DataFrame({COLUMN: [""]})

    def read(self, path: str, rows: int = 65_536) -> Iterator[pd.DataFrame]:
        """The lines of a new file (`-` is standard input), so many at a time."""
        text, _ = self._text(path)
        lines, first = iter(text.splitlines()), 0
        while taken := list(islice(lines, rows)):
            yield pd.DataFrame({COLUMN: taken}, index=range(first, first + len(taken)))
            first += len(taken)

    def labelled(self, path: str, rows: int = 65_536) -> Iterator[Rows]:
        """The text of a new file in windows, as the test part is."""
        text, name = self._text(path)
        tokens = self.tokenizer.encode(text)
        if len(tokens) < 2:
            raise DataError(f"{name}: a text of {len(tokens)} token has none to tell from those before it")
        yield windows(tokens, self.shape_in[0], self.shape_in[0])

    def _text(self, path: str) -> tuple[str, str]:
        """The text of a file and what it is called."""
        encoding = known_encoding(self.reading.get("encoding", "utf-8"))
        if path != "-":
            source = file("input", path)
            return decoded(source.read_bytes(), source.name, encoding), source.name
        name = "standard input"
        text = decoded(sys.stdin.buffer.read() if sys.stdin else b"", name, encoding)
        if not text:
            raise DataError(f"{name}: the file is empty")
        return text, name


def decoded(content: bytes, name: str, encoding: str) -> str:
    """Bytes as text with line breaks as \\n; raises DataError where they are no text of the encoding."""
    try:
        text = content.decode(bom_aware(encoding))
    except UnicodeError as error:
        raise DataError(f"{name}: the file is not {encoding} (data.encoding)") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def windows(tokens: list[int], length: int, stride: int) -> Rows:
    """Windows that begin every `stride` tokens until all are told; the last is padded."""
    last = len(tokens) - 1  # tokens that have one before them
    starts = range(0, max(0, last - length) + stride if last > 0 else 0, stride)
    both = [padded(tokens[start : start + length + 1], length + 1) for start in starts]
    cut = torch.tensor(both, dtype=torch.long).view(-1, length + 1)
    features, target = cut[:, :-1].clone(), cut[:, 1:].clone()
    features[target == PADDING] = PADDING
    return {"features": features, "target": target, "row": torch.arange(len(cut))}


def strange(tokenizer: Any, parts: list[str]) -> list[str]:
    """A sentence about characters of the later parts that training does not meet."""
    found = tokenizer.unknown("".join(parts[1:]))
    if not found:
        return []
    shown = " ".join(repr(letter) for letter in found[:10]) + (" ..." if len(found) > 10 else "")
    return [f"{len(found)} characters of the validation and test parts are not in the training part: {shown}"]

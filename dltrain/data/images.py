"""Images: a folder of them for each class, or a file of their paths and targets."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dltrain.data import pipeline as steps_of
from dltrain.data import preparation as preparation_of
from dltrain.data import split as splits
from dltrain.data import target as goals
from dltrain.data.columns import Place, absent, filled, text
from dltrain.data.content import file_sha256, find, folder_sha256
from dltrain.data.files import File, nearest_column
from dltrain.data.rows import Data, Rows
from dltrain.data.scaler import StandardScaler
from dltrain.data.table import names
from dltrain.data.target import Target
from dltrain.errors import ConfigError, DataError, must, whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE, LABEL = "image", "label"  # columns of the table that a folder is
WHERE = "(file)"  # column of where an image is, or of its pixels
AT_ONCE = 2**26  # numbers of a chunk of a new file


class Images:
    """Images of one size, or resized to `size` (height, width): features (rows, channels, height, width).

    path: a folder of a folder for each class, or a file with a column of paths (from its own folder) and a target.
    Raises ConfigError for a setting, DataError for a file.
    """

    def __init__(
        self,
        path: str,
        image: str | None = None,
        target: str | Sequence[str] | None = None,
        size: Sequence[int] | None = None,
        channels: int = 3,
        workers: int = 8,
        split: Mapping[str, Any] | splits.Split | None = None,
        encoding: str = "utf-8",
        target_transform: str = "standard",
        pipeline: Mapping[str, Any] | None = None,
    ) -> None:
        must(whole(channels) and channels in (1, 3), "data.channels", "1 (grey) or 3 (red, green, blue)", channels)
        must(whole(workers, 1), "data.workers", "a whole number of at least 1", workers)
        sizes = size is None or (isinstance(size, list | tuple) and len(size) == 2 and all(whole(n, 1) for n in size))
        must(sizes, "data.size", "[height, width], or null", size)
        goals.check_transform(target_transform)
        self.path, self.transform, self.split = path, target_transform, splits.from_config(split)
        self.image, self.targets = image, names("data.target", target)
        self.reader = Reader(None if size is None else (size[0], size[1]), channels, workers)
        self.encoding, self.scaler = encoding, scaler(pipeline)

    def load(self) -> Data:
        """Find, read, split, fit, and give three splits."""
        path = find("data.path", self.path)
        if path.is_dir():
            must(self.image is None and not self.targets, "data.path", "a file with data.image or data.target", path)
            found, self.targets, kinds = in_classes(path), [LABEL], {LABEL: "category"}
        else:
            found, kinds = self._listed(path), {}
        image = self.image or IMAGE
        frame, dropped = labelled(found, self.targets, path.name)
        place = Place(path.name, frame.index.to_numpy())
        pixels = self.reader.read(frame[WHERE], frame[image])
        kinds |= told(frame, self.targets, place, kinds)
        positions = self._split(frame, place, kinds)
        first = positions["train"]
        train = frame.iloc[first]
        goal = goals.fit(train, tuple(self.targets), Place(path.name, train.index.to_numpy()), self.transform, kinds)
        mean, scale = moments(pixels[first], self.scaler)
        shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        reading = {"encoding": self.encoding, "workers": self.reader.workers}
        preparation = ImagePreparation(image, shape, mean, scale, goal, reading)
        train_rows, valid, test = (
            preparation.rows(pixels[taken], frame.iloc[taken], path.name) for taken in positions.values()
        )
        content = {
            "source": path.name,
            "content_hash": folder_sha256(path) if path.is_dir() else file_sha256(path),
            "rows": len(found),
            "dropped_rows": dropped,
            "splits": {name: len(taken) for name, taken in positions.items()},
        }
        return Data(train_rows, valid, test, preparation, content | preparation.described())

    def _listed(self, path: Path) -> pd.DataFrame:
        """The rows of a file of paths."""
        if self.image is None:
            raise ConfigError("data.image must be the column of the paths where data.path is a file, got null")
        file = File(str(path), None, self.encoding)
        by = [self.split.by] if self.split.by else []
        for role, found in {"image": [self.image], "target": self.targets, "split.by": by}.items():
            for name in found:
                if name not in file.columns:
                    hint = nearest_column(name, file.columns)
                    raise ConfigError(f"data.{role} must be a column of {path.name}, got {name}{hint}")
        must(self.image not in self.targets, "data.target", "another column than data.image", self.image)
        frame = file.read(text={self.image, *self.targets, *by})
        return placed(frame, self.image, path.name, path.parent)

    def _split(self, frame: pd.DataFrame, place: Place, kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Positions of the rows of three splits: of classes stratified, else as `data.split.kind` says."""
        by = classes = None
        if self.split.by is not None:
            if self.split.by not in frame.columns:
                raise ConfigError(f"data.split.by must be a column of {place.source}, got {self.split.by}")
            by = filled(frame[self.split.by]).astype(str)
        words: tuple[str, ...] = ()
        if self.split.kind in ("auto", "stratified") and len(self.targets) == 1:
            series = frame[self.targets[0]]
            if goals.kind_of(series, place, kinds[self.targets[0]]) != "number":
                levels, classes = np.unique(goals.labels(series, place).astype(str), return_inverse=True)
                words = tuple(levels.tolist())
        if self.split.kind == "stratified" and classes is None:
            got = ", ".join(self.targets) or "none"
            raise ConfigError(f"data.split.kind=stratified must go with a target of classes, got {got}")
        found = splits.assign(self.split, len(frame), place.source, by, classes, valid=True, test=True)
        if classes is not None:
            splits.check(found, classes, words, source=place.source, column=self.targets[0])
        return found


class Reader:
    """Reads images in threads: uint8 (rows, channels, height, width)."""

    def __init__(self, size: tuple[int, int] | None, channels: int, workers: int = 8) -> None:
        self.size, self.channels, self.workers = size, channels, workers

    def read(self, where: Sequence[Any] | pd.Series, shown: Sequence[Any] | pd.Series) -> np.ndarray:
        """The pixels of files (or arrays of pixels); raises DataError at one of another size than the first."""
        pairs = list(zip(where, shown, strict=True))
        if not pairs:
            return np.zeros((0, self.channels, *(self.size or (0, 0))), np.uint8)
        with ThreadPoolExecutor(min(self.workers, len(pairs))) as pool:
            first = self.one(*pairs[0])
            pixels = np.empty((len(pairs), *first.shape), np.uint8)
            for row, found in enumerate(pool.map(lambda pair: self.one(*pair), pairs)):
                if found.shape != first.shape:
                    sizes = [f"{one.shape[1]} x {one.shape[2]}" for one in (found, first)]
                    raise DataError(
                        f"{pairs[row][1]}: an image of {sizes[0]} pixels (height x width), and {pairs[0][1]} has"
                        f" {sizes[1]}; set data.size=[{first.shape[1]},{first.shape[2]}] to resize all"
                    )
                pixels[row] = found
        return pixels

    def one(self, where: Any, shown: Any) -> np.ndarray:
        """uint8 (channels, height, width) of a file; raises DataError where it is no image that can be read."""
        if isinstance(where, np.ndarray):
            return where
        try:
            with Image.open(where) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I;16"):
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                if "transparency" in image.info:
                    image = image.convert("RGBA")
                image = image.convert("L" if self.channels == 1 else "RGB")
                if self.size is not None and image.size != self.size[::-1]:
                    image = image.resize(self.size[::-1], Image.Resampling.BILINEAR, reducing_gap=None)
                pixels = np.asarray(image, np.uint8)
        except FileNotFoundError:
            raise DataError(f"{shown}: no such image ({where})") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{shown}: not an image that can be read ({steps_of.first_sentence(error)})") from error
        return pixels[None] if self.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class ImagePreparation:
    """From files of images to features float32 (rows, channels, height, width), of mean 0 and deviation 1 a channel.

    `features` takes a table with a column of paths, such as `read` makes of a folder or a file of paths.
    """

    gives = "features"  # what networks and tasks must read
    apart = True  # `read` gives images as they are: others may prepare the same ones

    def __init__(
        self,
        image: str,
        shape_in: tuple[int, int, int],
        mean: Sequence[float],
        scale: Sequence[float],
        target: Target,
        reading: dict[str, Any] | None = None,
    ) -> None:
        self.image, self.shape_in, self.target, self.reading = image, shape_in, target, reading or {}
        self.mean, self.scale = list(mean), list(scale)
        self.id_columns = [image]
        self.reader = Reader(shape_in[1:], shape_in[0], int(self.reading.get("workers", 8)))

    def rows(self, pixels: np.ndarray, frame: pd.DataFrame, source: str) -> Rows:
        """The fields of a split from its pixels, and its rows with their numbers as the index."""
        numbers = frame.index.to_numpy(np.int64)
        target = self.targets(frame, source, numbers)
        return {"features": self.scaled(pixels), "target": target, "row": torch.from_numpy(numbers.copy())}

    def scaled(self, pixels: np.ndarray) -> Tensor:
        """float32 of uint8 (rows, channels, height, width)."""
        # all that a pixel can become: 256 numbers a channel, computed in float64
        levels = (np.arange(256) / 255 - np.array(self.mean)[:, None]) / np.array(self.scale)[:, None]
        table, found = levels.astype(np.float32), np.empty(pixels.shape, np.float32)
        for channel, values in enumerate(table):
            found[:, channel] = values[pixels[:, channel]]
        return torch.from_numpy(found)

    def features(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """float32 (rows, channels, height, width); images of another size are resized. Raises DataError."""
        if self.image not in frame.columns:
            raise DataError(f"{source}: there is no column {self.image}{nearest_column(self.image, frame.columns)}")
        where = frame[WHERE] if WHERE in frame.columns else frame[self.image]
        pixels = self.reader.read(where, frame[self.image])
        return self.scaled(pixels.reshape(len(frame), *self.shape_in))

    def targets(self, frame: pd.DataFrame, source: str, first_row: int | np.ndarray = 0) -> Tensor:
        """As `Target.encode`; raises DataError if a column or a cell is missing."""
        return self.target.encode(frame, source, first_row)

    def blank(self) -> pd.DataFrame:
        """A black image, of a target that training could have met."""
        return pd.DataFrame(self.target.example() | {self.image: "", WHERE: [np.zeros(self.shape_in, np.uint8)]})

    def restored(self, features: Tensor) -> pd.DataFrame:
        """Pixels from 0 to 255, a column each, channel by channel and line by line."""
        shape = (1, -1, 1, 1)
        values = features.double().numpy() * np.reshape(self.scale, shape) + np.reshape(self.mean, shape)
        pixels = (values * 255).round().clip(0, 255).astype(np.uint8).reshape(len(features), -1)
        return pd.DataFrame(pixels, columns=[f"pixel_{number}" for number in range(pixels.shape[1])])

    def read(self, path: str, rows: int = 65_536, others: Sequence[Any] = ()) -> Iterator[pd.DataFrame]:
        """The images of a folder, or of a file of paths (`-` is standard input), so many at a time."""
        rows = max(1, min(rows, AT_ONCE // math.prod(self.shape_in)))
        if path != "-" and (folder := find("input", path)).is_dir():
            frame = in_folder(folder, self.image)
        else:
            with closing(File(path, None, self.reading.get("encoding", "utf-8"), setting="input")) as file:
                if self.image not in file.columns:
                    hint = nearest_column(self.image, file.columns)
                    raise DataError(f"{file.name}: there is no column {self.image}{hint}")
                frame = file.read(text={self.image, *self.target.names})
                frame = placed(frame, self.image, file.name, Path() if path == "-" else file.path.parent)
        for start in range(0, len(frame), rows):
            yield frame.iloc[start : start + rows]

    def labelled(self, path: str, rows: int = 65_536) -> Iterator[Rows]:
        """The images of a new folder or file that have a target; raises DataError if it has no such column."""
        return preparation_of.labelled(self, path, rows)

    def described(self) -> dict[str, Any]:
        """What data.json says of it."""
        state = {"shape_in": list(self.shape_in), "mean": self.mean, "scale": self.scale}
        return {"format": 1, **state, "target": self.target.to_json()}

    def save(self, folder: Path) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        own = {"_target_": "dltrain.data.images.ImagePreparation", "image": self.image, "reading": self.reading}
        return own | self.described()

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any]) -> "ImagePreparation":
        """What `save` gave."""
        channels, height, width = state["shape_in"]
        if not isinstance(state["image"], str):
            raise ValueError("a column must be named by text")
        target, reading = Target.from_json(state["target"]), dict(state["reading"])
        return cls(state["image"], (channels, height, width), state["mean"], state["scale"], target, reading)

    share, shared = save, load  # other processes of this machine are told all of it


def in_folder(folder: Path, image: str = IMAGE) -> pd.DataFrame:
    """The images of a folder and those below it, sorted; `label` is the folder in it where all lie in one."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    files = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise DataError(f"{folder}: there is no image in the folder ({', '.join(SUFFIXES)})")
    frame = pd.DataFrame({image: [path.as_posix() for path in files], WHERE: [folder / path for path in files]})
    if all(len(path.parts) > 1 for path in files):
        frame[LABEL] = [path.parts[0] for path in files]
    return frame


def in_classes(folder: Path) -> pd.DataFrame:
    """The images of a folder of a folder for each class; raises DataError where one lies in none."""
    frame = in_folder(folder)
    if LABEL not in frame.columns:
        loose = next(name for name in frame[IMAGE] if "/" not in name)
        raise DataError(f"{loose}: an image in no folder of a class (data.path={folder} must hold a folder for each)")
    return frame


def placed(frame: pd.DataFrame, image: str, source: str, folder: Path) -> pd.DataFrame:
    """Rows with where their images are; raises DataError at a missing path."""
    words = text(frame[image])
    if absent(words).any():
        raise Place(source).error(int(np.argmax(absent(words))), image, "the path of an image", "")
    found = frame.copy()
    found[WHERE] = pd.Series([folder / Path(word).expanduser() for word in words], found.index, dtype=object)
    return found


def labelled(frame: pd.DataFrame, targets: Sequence[str], source: str) -> tuple[pd.DataFrame, int]:
    """The rows that have a target, and how many have none; raises DataError where those are more than half."""
    gaps = goals.missing(frame, tuple(targets))
    count = int(gaps.sum())
    if 2 * count > len(gaps):
        raise DataError(f"{source}, column {', '.join(targets)}: the target is missing in {count} of {len(gaps)} rows")
    return frame[~gaps], count


def told(frame: pd.DataFrame, targets: Sequence[str], place: Place, kinds: Mapping[str, str]) -> dict[str, str]:
    """The kind of a single target, by all rows: on fewer it may look like another."""
    if len(targets) != 1 or targets[0] in kinds:
        return {}
    kind = goals.kind_of(frame[targets[0]], place)
    return {targets[0]: "number" if kind == "number" else "category"}


def scaler(pipeline: Mapping[str, Any] | None) -> StandardScaler | None:
    """The one step that images may have; raises ConfigError for another."""
    steps = steps_of.build(pipeline, None)
    if not steps:
        return None
    only = next(iter(steps.values()))
    if len(steps) > 1 or not isinstance(only, StandardScaler):
        raise ConfigError(f"pipeline must be standard or none with data=images, got {', '.join(steps)}")
    return only


def moments(pixels: np.ndarray, scaler: StandardScaler | None) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, in float64, of uint8 pixels as fractions of 255; 0 and 1 without a scaler."""
    mean, scale = [], []
    levels = np.arange(256) / 255
    for channel in range(pixels.shape[1]):
        shares = sum(np.bincount(one[channel].ravel(), minlength=256) for one in pixels) / pixels[:, channel].size
        center = float(shares @ levels)
        spread = math.sqrt(float(shares @ (levels - center) ** 2))
        mean.append(center if scaler and scaler.with_mean else 0.0)
        scale.append(spread if scaler and scaler.with_std and spread > 1e-9 else 1.0)
    return mean, scale

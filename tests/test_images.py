"""Images: pixels as they were written, statistics of training rows alone, folders and files of paths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from runs import command, launch, predict, working

from dltrain.data import stored
from dltrain.data.images import ImagePreparation, Images
from dltrain.data.pca import PCA
from dltrain.data.scaler import StandardScaler
from dltrain.errors import ConfigError, DataError

STANDARD = {"standard": StandardScaler}


def pictures(folder: Path, each: int = 10, size: tuple[int, int] = (6, 8)) -> Path:
    """A folder of bright images and one of dark ones, (height, width) pixels of three colours."""
    draw = np.random.default_rng(0)
    for name, low in (("bright", 120), ("dark", 0)):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(each):
            pixels = draw.integers(low, low + 100, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / name / f"{number:02d}.png")
    return folder / "pets"


def listed(folder: Path, each: int = 10) -> Path:
    """A file of paths, classes and mean brightness beside the folder."""
    rows = []
    for path in sorted(pictures(folder, each).rglob("*.png")):
        mean = np.asarray(Image.open(path)).mean().item()
        rows.append({"file": path.relative_to(folder).as_posix(), "kind": path.parent.name, "mean": mean})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


# Pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_the_pixels_standardised_by_training_rows(channels: int, tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    data = Images(str(folder), channels=channels, pipeline=STANDARD).load()
    paths = sorted(folder.rglob("*.png"))
    opened = [Image.open(path).convert("L" if channels == 1 else "RGB") for path in paths]
    pixels = np.stack([np.asarray(image, np.float64).reshape(6, 8, channels) for image in opened]).transpose(0, 3, 1, 2)
    train = pixels[data.train["row"].numpy()]
    mean, scale = (getattr(train, name)(axis=(0, 2, 3), keepdims=True) for name in ("mean", "std"))
    for rows in (data.train, data.valid, data.test):
        expected = (pixels[rows["row"].numpy()] - mean) / scale
        torch.testing.assert_close(rows["features"], torch.tensor(expected).float())
        assert rows["target"][:, 0].tolist() == [float(k >= 10) for k in rows["row"].tolist()]
    assert sorted(torch.cat([r["row"] for r in (data.train, data.valid, data.test)]).tolist()) == list(range(20))
    assert data.preparation.target.classes == ("bright", "dark")
    assert data.preparation.shape_in == (channels, 6, 8)


def test_nothing_is_learnt_from_test_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    before = Images(str(folder), pipeline=STANDARD).load()
    paths = sorted(folder.rglob("*.png"))
    for row in before.test["row"].tolist():
        Image.new("RGB", (8, 6), (255, 0, 255)).save(paths[row])
    after = Images(str(folder), pipeline=STANDARD).load()
    assert before.preparation.save(tmp_path) == after.preparation.save(tmp_path)
    assert torch.equal(before.train["features"], after.train["features"])
    assert not torch.equal(before.test["features"], after.test["features"])


def test_images_are_resized_and_without_a_pipeline_fractions(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    odd = Image.new("L", (40, 20), 51)
    odd.save(folder / "dark" / "99.png")
    Image.fromarray(np.full((20, 40), 51 << 8, np.uint16)).save(folder / "dark" / "99-deep.png")
    data = Images(str(folder), size=[4, 5]).load()
    assert data.preparation.shape_in == (3, 4, 5)
    table = next(data.preparation.read(str(folder)))
    deep = table["image"].str.startswith("dark/99").to_numpy()
    features = data.preparation.features(table, "pets")
    assert features[np.flatnonzero(deep)].unique().tolist() == pytest.approx([0.2])
    assert features.min() >= 0
    assert features.max() <= 1


def test_files_of_paths_have_targets_of_every_kind(tmp_path: Path) -> None:
    path = str(listed(tmp_path))
    classes = Images(path, image="file", target="kind", pipeline=STANDARD).load()
    assert classes.preparation.target.kind == "binary"
    number = Images(path, image="file", target="mean", pipeline=STANDARD).load()
    means = pd.read_csv(path)["mean"].to_numpy()
    own = number.preparation.target.decode(number.train["target"])[:, 0]
    assert own.tolist() == pytest.approx(means[number.train["row"].numpy()].tolist(), rel=1e-5)
    none = Images(path, image="file").load()
    assert none.train["target"].shape == (14, 0)
    again = none.preparation.restored(none.train["features"])
    first = np.asarray(Image.open(tmp_path / pd.read_csv(path)["file"][int(none.train["row"][0])]))
    assert again.iloc[0].to_numpy().reshape(3, 6, 8).tolist() == first.transpose(2, 0, 1).tolist()


def test_groups_stay_together(tmp_path: Path) -> None:
    path = listed(tmp_path)
    frame = pd.read_csv(path).assign(pet=[k // 2 for k in range(20)])
    frame.to_csv(path, index=False)
    data = Images(str(path), image="file", target="mean", split={"kind": "group", "by": "pet"}).load()
    sides = [set((rows["row"] // 2).tolist()) for rows in (data.train, data.valid, data.test)]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 10


def test_a_preparation_is_restored_and_shared(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    data = Images(str(folder), pipeline=STANDARD).load()
    state = json.loads(json.dumps(data.preparation.save(tmp_path)))
    (tmp_path / "rows").mkdir()
    stored.store(data, tmp_path / "rows")
    mapped = stored.mapped(tmp_path / "rows")
    assert torch.equal(mapped.train["features"], data.train["features"])
    table = next(data.preparation.read(str(folder)))
    for again in (ImagePreparation.load(tmp_path, state), mapped.preparation):
        assert torch.equal(again.features(table, ""), data.preparation.features(table, ""))


# Runs


def test_a_run_on_a_folder_predicts_folders_and_files(tmp_path: Path) -> None:
    with working(tmp_path):
        pictures(tmp_path)
        run = launch("data=images", "data.path=pets", "model=linear", "epochs=20", "optimizer.lr=0.01")
        made = predict(run, "pets")
        assert list(made) == ["row", "image", "prediction", "p_bright", "p_dark"]
        assert (made["prediction"] == made["image"].str.split("/").str[0]).all()
        pd.testing.assert_frame_equal(predict(run, "pets", "rows=3"), made)
        made[["image"]].iloc[::-1].assign(image=lambda frame: "pets/" + frame["image"]).to_csv("new.csv", index=False)
        assert predict(run, "new.csv")["p_dark"].tolist() == pytest.approx(made["p_dark"].tolist()[::-1])
        command("evaluate", f"run={run.name}", "input=pets", "out=scores.json")
        assert json.loads(Path("scores.json").read_text())["accuracy"] == 1
        command("evaluate", f"run={run.name}")


def test_a_run_on_a_file_of_paths(tmp_path: Path) -> None:
    with working(tmp_path):
        listed(tmp_path)
        words = ("data=images", "data.path=labels.csv", "data.image=file", "data.target=mean", "model=cnn", "epochs=1")
        run = launch(*words)
        assert list(predict(run, "labels.csv")) == ["row", "file", "prediction"]


# Bad input


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    whole = (folder / "dark" / "05.png").read_bytes()
    for content in (b"no image at all", whole[: len(whole) // 2], b""):
        (folder / "dark" / "05.png").write_bytes(content)
        with pytest.raises(DataError, match=r"^dark/05.png: not an image that can be read"):
            Images(str(folder)).load()


def test_images_of_mixed_size_are_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    Image.new("RGB", (3, 2)).save(folder / "dark" / "05.png")
    with pytest.raises(DataError) as error:
        Images(str(folder)).load()
    assert str(error.value) == (
        "dark/05.png: an image of 2 x 3 pixels (height x width), and bright/00.png has 6 x 8;"
        " set data.size=[6,8] to resize all"
    )


def test_folders_without_images_or_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="there is no image in the folder"):
        Images(str(tmp_path / "none")).load()
    folder = pictures(tmp_path)
    Image.new("RGB", (8, 6)).save(folder / "loose.png")
    with pytest.raises(DataError, match=r"loose.png: an image in no folder of a class"):
        Images(str(folder)).load()
    (tmp_path / "one").mkdir()
    (folder / "dark").rename(tmp_path / "one" / "dark")
    with pytest.raises(DataError, match="the target is dark in all 6 training rows; there is nothing to learn"):
        Images(str(tmp_path / "one")).load()


def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    path = listed(tmp_path)
    frame = pd.read_csv(path)
    frame.assign(file=["gone.png", *frame["file"][1:]]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"gone.png: no such image"):
        Images(str(path), image="file", target="kind").load()
    frame.assign(file=[None, *frame["file"][1:]]).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"labels.csv row 1, column file: expected the path of an image"):
        Images(str(path), image="file", target="kind").load()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image": None}, "data.image must be the column of the paths where data.path is a file, got null"),
        ({"image": "files"}, "data.image must be a column of labels.csv, got files; did you mean file?"),
        ({"target": "kin"}, "data.target must be a column of labels.csv, got kin; did you mean kind?"),
        ({"target": "file"}, "data.target must be another column than data.image, got file"),
        ({"size": [4]}, "data.size must be [height, width], or null, got [4]"),
        ({"channels": 2}, "data.channels must be 1 (grey) or 3 (red, green, blue), got 2"),
        ({"workers": 0}, "data.workers must be a whole number of at least 1, got 0"),
        ({"pipeline": {"pca": PCA}}, "pipeline must be standard or none with data=images, got pca"),
        ({"target": "mean", "split": {"kind": "stratified"}}, "must go with a target of classes, got mean"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = listed(tmp_path)
    with pytest.raises(ConfigError) as error:
        Images(str(path), **({"image": "file", "target": "kind"} | settings)).load()
    assert sentence in str(error.value)

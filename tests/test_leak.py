"""Nothing is learnt from validation and test rows: scrambling them changes nothing fitted, and not the first step."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from runs import launch, working


def table(rows: int, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame({"area": draw.normal(100, 30, rows), "city": draw.choice(["Berlin", "Köln", "Rome"], rows)})
    frame.loc[draw.choice(rows, rows // 10, replace=False), "area"] = np.nan
    frame["price"] = frame["area"].fillna(90) * 3 + (frame["city"] == "Rome") * 50 + draw.normal(0, 5, rows)
    return frame


def scrambled(frame: pd.DataFrame) -> pd.DataFrame:
    draw = np.random.default_rng(9)
    other = pd.DataFrame({name: draw.permutation(frame[name].to_numpy()) for name in frame})
    return other.assign(area=other["area"] * 1000 + 7, price=-50 * other["price"], city="nowhere")


def fitted(folder: Path, train: pd.DataFrame, valid: pd.DataFrame, test: pd.DataFrame) -> tuple[bytes, bytes, str]:
    """The fitted transformers, the weights after the first step, and the target's statistics."""
    folder.mkdir()
    with working(folder):
        for name, frame in (("train", train), ("valid", valid), ("test", test)):
            frame.to_csv(f"{name}.csv", index=False)
        run = launch(
            *("data=csv", "data.path=train.csv", "data.valid_path=valid.csv", "data.test_path=test.csv"),
            *("data.target=price", "pipeline=pca", "epochs=1", "batch_size=all", "evaluate_every=1steps"),
        )
        state = json.loads((run.folder / "model" / "model.json").read_text())["preparation"]
        weights = (run.folder / "checkpoints" / "step-00000001" / "model.safetensors").read_bytes()
        return (run.folder / "model" / "preparation.skops").read_bytes(), weights, json.dumps(state)


def test_scrambled_validation_and_test_rows_change_nothing_that_is_learnt(tmp_path: Path) -> None:
    train, valid, test = table(120, 0), table(40, 1), table(40, 2)
    plain = fitted(tmp_path / "plain", train, valid, test)
    assert fitted(tmp_path / "scrambled", train, scrambled(valid), scrambled(test)) == plain
    changed = fitted(tmp_path / "changed", scrambled(train), valid, test)
    assert all(before != after for before, after in zip(plain, changed, strict=True))  # so that this test can fail

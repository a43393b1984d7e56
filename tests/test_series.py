"""Series: windows against a hand-written loop, nothing learnt from later rows, forecasts lined up with their dates."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from runs import command, launch, predict, working

from dltrain.data import stored
from dltrain.data.clock import Clock
from dltrain.data.columns import Place
from dltrain.data.scaler import StandardScaler
from dltrain.data.series import Series, SeriesPreparation
from dltrain.errors import ConfigError, DataError


def prices(rows: int = 100, start: str = "2024-01-01", freq: str = "D", seed: int = 0) -> pd.DataFrame:
    """A sine and its volume, a row a step."""
    draw = np.random.default_rng(seed)
    dates = pd.date_range(start, periods=rows, freq=freq).strftime("%Y-%m-%d")
    close = 10 + 3 * np.sin(np.arange(rows) / 4) + 0.05 * draw.normal(size=rows)
    return pd.DataFrame({"date": dates, "close": close, "volume": draw.normal(size=rows), "note": "bought and sold"})


def series(folder: Path, frame: pd.DataFrame, **settings: Any) -> Series:
    frame.to_csv(folder / "prices.csv", index=False)
    told = {"time": "date", "target": "close", "length": 6, "pipeline": {"standard": StandardScaler}} | settings
    return Series(str(folder / "prices.csv"), **told)


def both(rows: int = 60) -> pd.DataFrame:
    """Two entities, their rows shuffled."""
    frame = pd.concat([prices(rows, seed=1).assign(shop="a"), prices(rows, seed=2).assign(shop="b")])
    return frame.sample(frac=1, random_state=0).reset_index(drop=True)


# Windows


@pytest.mark.parametrize(("horizon", "stride", "targets"), [(1, 1, ["close"]), (3, 2, ["close", "volume"])])
def test_windows_are_those_of_a_loop(horizon: int, stride: int, targets: list[str], tmp_path: Path) -> None:
    frame = both()
    data = series(tmp_path, frame, horizon=horizon, stride=stride, target=targets, entity="shop").load()
    dates = sorted(set(frame["date"]))
    parts = {"train": dates[:42], "valid": dates[42:51], "test": dates[51:]}
    first = frame[frame["date"].isin(parts["train"])]
    for name, days in parts.items():
        features, target, row = [], [], []
        for shop in ("a", "b"):
            own = frame[(frame["shop"] == shop) & frame["date"].isin(days)].sort_values("date")
            for start in range(0, len(own) - 6 - horizon + 1, stride):
                window, ahead = own.iloc[start : start + 6], own.iloc[start + 6 : start + 6 + horizon]
                scaled = [(window[c] - first[c].mean()) / first[c].std(ddof=0) for c in ("close", "volume")]
                features.append(np.stack(scaled))
                steps = [((ahead[c] - first[c].mean()) / first[c].std(ddof=0)).to_numpy() for c in targets]
                target.append(np.stack(steps, axis=1).ravel())
                row.append(window.index[-1])
        found = getattr(data, name)
        torch.testing.assert_close(found["features"], torch.tensor(np.stack(features)).float())
        torch.testing.assert_close(found["target"], torch.tensor(np.stack(target)).float())
        assert found["row"].tolist() == row
    assert data.preparation.shape_in == (2, 6)
    assert data.preparation.target.names == tuple(f"{c}_+{k}" for k in range(1, horizon + 1) for c in targets)


def test_nothing_is_learnt_from_later_rows(tmp_path: Path) -> None:
    found, states = [], []
    for tail in (1.0, 1e6):
        frame = prices()
        frame.loc[85:, ["close", "volume"]] *= tail
        data = series(tmp_path, frame).load()
        states.append(
            json.dumps(data.preparation.save(tmp_path)).encode() + (tmp_path / "preparation.skops").read_bytes()
        )
        found.append(data)
    assert states[0] == states[1]
    for split in ("train", "valid"):
        for field, values in getattr(found[0], split).items():
            assert torch.equal(values, getattr(found[1], split)[field]), (split, field)
    assert not torch.equal(found[0].test["features"], found[1].test["features"])


def test_the_columns_and_their_order_may_be_told(tmp_path: Path) -> None:
    frame = prices().assign(n=range(100), date=range(0, 200, 2))
    assert series(tmp_path, frame).load().preparation.columns == ["close", "volume"]
    data = series(tmp_path, frame, columns=["n", "volume"], target=None).load()
    assert data.preparation.columns == ["n", "volume"]
    assert data.train["target"].shape == (70 - 6 + 1, 0)
    features = data.train["features"][:3]
    again = data.preparation.restored(features)
    assert again["n"].tolist() == pytest.approx([k + step for k in range(3) for step in range(6)], abs=1e-4)


def test_a_preparation_is_restored_and_shared(tmp_path: Path) -> None:
    data = series(tmp_path, both(), entity="shop", horizon=2).load()
    state = json.loads(json.dumps(data.preparation.save(tmp_path)))
    (tmp_path / "rows").mkdir()
    stored.store(data, tmp_path / "rows")
    mapped = stored.mapped(tmp_path / "rows")
    assert torch.equal(mapped.train["features"], data.train["features"])
    expected = data.preparation.windows(both())
    for again in (SeriesPreparation.load(tmp_path, state), mapped.preparation):
        table = again.windows(both())
        assert torch.equal(again.features(table, ""), data.preparation.features(expected, ""))
        assert table["date_+2"].tolist() == expected["date_+2"].tolist()


def test_entities_without_a_training_window_are_told(tmp_path: Path) -> None:
    frame = both()
    assert series(tmp_path, frame, entity="shop").load().warnings == []
    data = series(tmp_path, frame[(frame["shop"] == "a") | (frame["date"] > "2024-02-08")], entity="shop").load()
    assert data.warnings == ["1 of 2 entities (shop) have no training window of 7 rows: b"]
    assert len(data.test["row"]) == 2 * (9 - 6)


# Time


@pytest.mark.parametrize("freq", ["D", "W-MON", "MS", "ME", "QE", "B", "YS", "3D"])
def test_regular_stamps_have_no_gap_and_go_on(freq: str, tmp_path: Path) -> None:
    frame = prices(80, freq=freq)
    data = series(tmp_path, frame.iloc[:60]).load()
    table = data.preparation.windows(frame.iloc[:70])
    assert table["date_+1"].tolist() == frame["date"].iloc[6:71].tolist()


def test_times_of_day_go_on(tmp_path: Path) -> None:
    dates = pd.date_range("2024-03-01 22:00", periods=101, freq="10min").strftime("%Y-%m-%d %H:%M:%S")
    data = series(tmp_path, prices().assign(date=dates[:100]), horizon=2).load()
    table = data.preparation.windows(prices().assign(date=dates[:100]))
    assert table["date"].iloc[-1] == dates[99]
    assert table["date_+1"].iloc[-1] == dates[100]


def test_compact_dates_are_dates() -> None:
    words = pd.Series(["20240131", "20240201"], name="date")
    clock = Clock.of(words, Place("x"))
    assert np.diff(clock.read(words, Place("x"))).tolist() == [1]


def test_trading_days_need_gaps_allowed(tmp_path: Path) -> None:
    frame = prices(100, freq="B").drop(index=[20]).reset_index(drop=True)
    with pytest.raises(DataError, match=r"prices.csv row 21, column date: expected 2024-01-29 after 2024-01-26, got"):
        series(tmp_path, frame).load()
    data = series(tmp_path, frame, gaps="allow", horizon=2).load()
    table = data.preparation.windows(frame)
    assert len(table) == 99 - 6 + 1
    friday = table[table["date"] == "2024-05-17"]
    assert friday[["date_+1", "date_+2"]].to_numpy().tolist() == [["2024-05-20", "2024-05-21"]]


# Forecasts


@pytest.fixture(scope="module")
def sine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with working(tmp_path_factory.mktemp("sine")) as folder:
        frame = pd.concat([prices(300, seed=1).assign(shop="a"), prices(300, seed=2).assign(shop="b")])
        frame.to_csv("prices.csv", index=False)
        words = ("data=series", "data.path=prices.csv", "data.time=date", "data.target=close", "data.entity=shop")
        sizes = ("data.length=8", "data.horizon=3", "model=linear", "epochs=60", "optimizer.lr=0.01", "loss=mse")
        yield folder, frame, launch(*words, *sizes)


def test_a_linear_forecast_is_that_of_least_squares(sine: Any) -> None:
    _, _, run = sine
    data = run.data
    train, test = (
        torch.nn.functional.pad(rows["features"].flatten(1), (0, 1), value=1) for rows in (data.train, data.test)
    )
    best = test @ torch.linalg.lstsq(train, data.train["target"]).solution
    scale = data.preparation.target.scale[0]
    least = scale * math.sqrt((best - data.test["target"]).square().mean())
    last = scale * math.sqrt((data.test["features"][:, 0, -1:] - data.test["target"]).square().mean())
    assert run.result["test"]["rmse"] < 1.1 * least
    assert run.result["test"]["rmse"] < 0.2 * last


def test_predictions_are_lined_up_with_their_dates(sine: Any) -> None:
    folder, frame, run = sine
    made = predict(run, folder / "prices.csv")
    assert list(made) == [
        "row",
        "shop",
        "date",
        *(f"date_+{k}" for k in (1, 2, 3)),
        *(f"close_+{k}" for k in (1, 2, 3)),
    ]
    assert len(made) == 2 * (300 - 8 + 1)
    for shop, own in made.groupby("shop"):
        truth = frame[frame["shop"] == shop].set_index("date")["close"]
        assert own["date"].iloc[-1] == truth.index[-1]
        assert own["date_+3"].iloc[-1] == str(pd.Timestamp(truth.index[-1]) + pd.Timedelta(days=3))[:10]
        for k in (1, 2, 3):
            known = own[own[f"date_+{k}"].isin(truth.index)]
            error = known[f"close_+{k}"].to_numpy() - truth[known[f"date_+{k}"]].to_numpy()
            assert np.sqrt(np.mean(error**2)) < 0.2


def test_predictions_do_not_depend_on_chunks_or_on_the_order_of_rows(sine: Any) -> None:
    folder, frame, run = sine
    whole = predict(run, folder / "prices.csv")
    frame.drop(columns="volume").assign(volume=frame["volume"]).sample(frac=1, random_state=1).to_csv(
        folder / "new.csv"
    )
    pd.testing.assert_frame_equal(predict(run, folder / "new.csv", "rows=100"), whole)


def test_a_file_is_evaluated(sine: Any) -> None:
    folder, frame, run = sine
    later = sorted(set(frame["date"]))[-45:]
    frame[frame["date"].isin(later)].to_csv(folder / "later.csv", index=False)
    command("evaluate", f"run={run.name}", f"input={folder / 'later.csv'}", f"out={folder / 'scores.json'}")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["rows"] == 2 * (45 - 8 - 3 + 1)
    assert scores["rmse"] == pytest.approx(run.result["test"]["rmse"], rel=1e-5)
    command("evaluate", f"run={run.name}")


def test_a_network_of_series_learns_windows(tmp_path: Path) -> None:
    with working(tmp_path):
        prices(120).to_csv("prices.csv", index=False)
        words = ("data=series", "data.path=prices.csv", "data.time=date", "data.target=close", "data.length=8")
        run = launch(*words, "model=gru", "epochs=2")
        assert list(predict(run, "prices.csv")) == ["row", "date", "date_+1", "prediction"]


# Bad input


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        ({}, {"length": 90}, "the training part of 70 time stamps is too short for a window of 90 and 1 ahead"),
        ({}, {"length": 20}, "the validation part of 15 time stamps is too short for a window of 20 and 1 ahead"),
        ({"date": (99, "2024-04-20")}, {}, "row 100, column date: expected 2024-04-09 after 2024-04-08, got"),
        ({"date": (40, "2024-02-09")}, {}, "another time stamp than row 40 has, got '2024-02-09'"),
        ({"date": (40, "soon")}, {}, "row 41, column date: expected a date like 2024-12-31, got 'soon'"),
        ({"date": (40, None)}, {}, "row 41, column date: expected a time stamp, got ''"),
        ({"close": (99, None)}, {}, "row 100, column close: expected a number, got ''"),
        ({"volume": (3, None)}, {}, "row 4, column volume: expected a number, got ''"),
        ({"volume": (3, "n/a?")}, {}, "row 4, column volume: expected a number, got 'n/a?'"),
        ({"note": (3, None)}, {"entity": "note"}, "row 4, column note: expected an entity, got ''"),
        ({}, {"target": "note"}, "column note"),
    ],
)
def test_bad_rows_are_named(change: Any, settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    frame = prices()
    for name, (row, value) in change.items():
        frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
    with pytest.raises(DataError) as error:
        series(tmp_path, frame, **settings).load()
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"time": "day"}, "data.time must be a column of prices.csv, got day"),
        ({"target": "clos"}, "data.target must be a column of prices.csv, got clos; did you mean close?"),
        ({"entity": "date"}, "data.entity must be another column than data.time, got date"),
        ({"columns": ["date"]}, "data.columns must be other columns than data.time and data.entity, got date"),
        ({"length": 0}, "data.length must be a whole number of at least 1, got 0"),
        ({"horizon": 1.5}, "data.horizon must be a whole number of at least 1, got 1.5"),
        ({"stride": True}, "data.stride must be a whole number of at least 1, got true"),
        ({"gaps": "fill"}, "data.gaps must be refuse or allow, got fill"),
        ({"split": {"kind": "random"}}, "data.split.kind must be time with data=series, got random"),
        ({"target_transform": "sqrt"}, "data.target_transform must be one of standard, log, none, got sqrt"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        series(tmp_path, prices(), **settings).load()
    assert sentence in str(error.value)


def test_a_new_file_too_short_for_a_window_is_named(tmp_path: Path) -> None:
    preparation = series(tmp_path, both(), entity="shop").load().preparation
    frame = both()
    few = frame[(frame["shop"] == "a") | (frame["date"] < "2024-01-04")]
    with pytest.raises(DataError, match=r"new.csv, shop b: 3 rows are too few for a window of 6"):
        preparation.windows(few, "new.csv")
    assert len(preparation.windows(few, "new.csv", known=True)) == 60 - 6
    with pytest.raises(DataError, match=r"new.csv: there is no column volume"):
        preparation.windows(few.drop(columns="volume"), "new.csv")
    with pytest.raises(DataError, match="expected a table of windows"):
        preparation.features(few, "new.csv")

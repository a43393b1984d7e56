"""Augmentation: each option against what others compute, and a row's changes wherever the row stands."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.forks import Server
from PIL import Image
from runs import Trained, launch, working
from scipy.ndimage import map_coordinates, rotate
from scipy.stats import kstest, norm
from sklearn.metrics import log_loss
from torch import Tensor

from dltrain.augmentation import Augmentation, scrambled, uniform
from dltrain.errors import ConfigError
from dltrain.order import row_seeds
from dltrain.regularizers import Augment
from dltrain.train import Training

ALL = {"crop": 0.5, "rotation": 40, "flip": True, "flip_vertical": True, "brightness": 0.5, "contrast": 0.5}
ALL |= {"saturation": 0.5, "scale": 0.2, "cutout": 0.4}
OFF = {"shift": 0.0}


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("augmentation")) as folder:
        yield folder


def changed(x: Tensor, seed: int = 0, epoch: int = 0, **settings: float) -> Tensor:
    return Augmentation(tuple(x.shape[1:]), **OFF | settings)(x, row_seeds(torch.arange(len(x)), seed, epoch))


def pictures(rows: int, *shape: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))


# Draws.


def splitmix(state: int) -> int:
    """Steele, Lea and Flood's finaliser with Python's own whole numbers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_the_scrambler_is_splitmix64() -> None:
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]  # of seed 1234567
    states = [1234567 + k * 0x9E3779B97F4A7C15 for k in range(1, 5)]
    assert [splitmix(state % 2**64) for state in states] == known
    wrapped = torch.tensor([(state + 2**63) % 2**64 - 2**63 for state in states])
    assert [number % 2**64 for number in scrambled(wrapped).tolist()] == known


def test_draws_are_uniform_and_independent_over_rows_columns_epochs_and_seeds() -> None:
    rows = torch.arange(4000)
    draws = uniform(row_seeds(rows, 0, 0), 14)
    assert draws.shape == (4000, 14)
    assert min(kstest(column, "uniform").pvalue for column in draws.T.numpy()) > 1e-4
    others = [uniform(row_seeds(rows, *where), 14) for where in ((0, 1), (1, 0), (2**63 - 1, 10**6))]
    table = np.concatenate([draws.numpy(), draws.roll(1, 0).numpy(), *(other.numpy() for other in others)], 1)
    found = np.corrcoef(table.T) - np.eye(table.shape[1])
    assert np.abs(found).max() < 5 / np.sqrt(len(rows))
    assert draws.min() > 0
    assert draws.max() < 1


@pytest.mark.parametrize("shape", [(3, 9, 12), (2, 20)])
def test_a_row_is_changed_alike_alone_and_among_others(shape: tuple[int, ...]) -> None:
    x, seeds = pictures(37, *shape), row_seeds(torch.arange(37), 3, 2)
    signal = {name: value for name, value in ALL.items() if not name.startswith(("flip", "rot", "sat"))}
    part = Augmentation(shape, **(ALL if len(shape) == 3 else signal))
    whole = part(x, seeds)
    for cut in (1, 5, 16):
        pieces = [part(a, b) for a, b in zip(x.split(cut), seeds.split(cut), strict=True)]
        assert torch.equal(torch.cat(pieces), whole)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part(x[order], seeds[order]), whole[order])
    assert not torch.equal(part(x, row_seeds(torch.arange(37), 3, 3)), whole)
    assert torch.equal(x, pictures(37, *shape))


# Windows: maps whose values are places say from where each was taken.


def places(rows: int, height: int, width: int) -> Tensor:
    """(rows, 4, height, width): columns and rows counted from the middle, ones, and noise."""
    across = torch.arange(width).expand(height, width) - (width - 1) / 2
    down = torch.arange(height)[:, None].expand(height, width) - (height - 1) / 2
    maps = torch.stack([across, down, torch.ones(height, width)]).expand(rows, 3, height, width)
    return torch.cat([maps, pictures(rows, 1, height, width)], 1)


@pytest.mark.parametrize("settings", [{"crop": 0.4}, {"rotation": 30}, {"crop": 0.5, "rotation": 180}])
def test_a_window_is_a_turned_and_enlarged_part_of_the_row(settings: dict[str, float]) -> None:
    x = places(300, 13, 18)
    found = changed(x, **settings)
    parts, turns, middles = [], [], []
    for before, after in zip(x.double().numpy(), found.double().numpy(), strict=True):
        inside = after[2] > 1 - 1e-5  # nothing of what lies outside
        assert inside.sum() > 20
        here = np.stack([*before[:2, inside], np.ones(inside.sum())], 1)
        fit = np.linalg.lstsq(here, after[:2, inside].T, rcond=None)[0]
        assert np.abs(here @ fit - after[:2, inside].T).max() < 1e-4  # affine,
        (a, b), (c, d), middle = fit
        assert (a, b) == pytest.approx((d, -c), abs=1e-5)  # and as long and as much turned in both directions
        parts.append(np.hypot(a, b))
        turns.append(np.degrees(np.arctan2(b, a)))
        middles.append(middle)
        full = np.stack([*before[:2].reshape(2, -1), np.ones(13 * 18)], 1) @ fit
        source = [full[:, 1] + 6, full[:, 0] + 8.5]
        expected = map_coordinates(before[3], source, order=1, mode="grid-constant").reshape(13, 18)
        np.testing.assert_allclose(after[3], expected, atol=1e-4)
    crop, rotation = settings.get("crop", 1.0), settings.get("rotation", 0.0)
    spread(parts, crop, 1.0)
    spread(turns, -rotation, rotation)
    for number, side in enumerate((18, 13)):  # the window lies in the row, anywhere
        room = (1 - np.array(parts)) * (side - 1) / 2
        far = np.array(middles)[:, number]
        assert (np.abs(far) <= room + 1e-4).all()
        if crop < 1:
            assert kstest(far / room, "uniform", (-1, 2)).pvalue > 1e-4


def spread(values: list[float], low: float, high: float) -> None:
    """They are spread evenly from low to high."""
    if low == high:
        assert values == pytest.approx([low] * len(values), abs=1e-4)
    else:
        assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-4


def test_a_signal_s_window_is_a_stretch_of_it() -> None:
    ramp = torch.arange(30.0).expand(200, 1, 30)
    x = torch.cat([ramp, pictures(200, 1, 30)], 1)
    found = changed(x, crop=0.3)
    steps = found[:, 0].diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-4, rtol=0)
    spread(steps[:, 0].tolist(), 0.3, 1.0)
    for before, after in zip(x.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(after[1], np.interp(after[0], before[0], before[1]), atol=1e-4)


def test_a_window_alone_brings_nothing_in_from_outside() -> None:
    torch.testing.assert_close(changed(torch.ones(100, 1, 9, 9), crop=0.2), torch.ones(100, 1, 9, 9))
    assert (changed(torch.ones(100, 1, 9, 9), rotation=45)[:, 0, 0, 0] < 0.9).any()


# Mirrors, colours, covers.


@pytest.mark.parametrize(("name", "dim"), [("flip", 3), ("flip_vertical", 2)])
def test_half_of_the_images_are_mirrored(name: str, dim: int) -> None:
    x = pictures(400, 2, 4, 6)
    found = changed(x, **{name: True})
    mirrored = (found == x.flip(dim)).flatten(1).all(1)
    assert (mirrored ^ (found == x).flatten(1).all(1)).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def lines(x: Tensor, found: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Slope and height of the straight line that each row's values have become."""
    fits = [np.polyfit(a, b, 1) for a, b in zip(x.flatten(1).numpy(), found.flatten(1).numpy(), strict=True)]
    for (slope, height), a, b in zip(fits, x.flatten(1), found.flatten(1), strict=True):
        np.testing.assert_allclose(slope * a + height, b, atol=1e-4)
    return tuple(np.array(fits).T)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7), (2, 30)])
def test_brightness_contrast_and_scale_are_straight_lines(shape: tuple[int, ...]) -> None:
    x = pictures(500, *shape) + 2
    slope, height = lines(x, changed(x, brightness=0.8))
    np.testing.assert_allclose(slope, 1, atol=1e-4)
    spread(height.tolist(), -0.8, 0.8)
    slope, height = lines(x, changed(x, contrast=0.6))
    spread(slope.tolist(), 0.4, 1.6)
    np.testing.assert_allclose(height, (1 - slope) * x.flatten(1).mean(1).numpy(), atol=1e-4)  # the mean stays
    slope, height = lines(x, changed(x, scale=0.3))
    assert kstest(slope, norm(1, 0.3).cdf).pvalue > 1e-4
    np.testing.assert_allclose(height, 0, atol=1e-4)


def test_saturation_moves_colours_from_and_to_their_mean() -> None:
    x = pictures(300, 3, 5, 7)
    found = changed(x, saturation=1.0)
    torch.testing.assert_close(found.mean(1), x.mean(1), atol=1e-5, rtol=0)
    colour = x - x.mean(1, keepdim=True)
    factor = ((found - x.mean(1, keepdim=True)) * colour).flatten(1).sum(1) / colour.square().flatten(1).sum(1)
    torch.testing.assert_close(found - x.mean(1, keepdim=True), factor.view(-1, 1, 1, 1) * colour, atol=1e-4, rtol=0)
    spread(factor.tolist(), 0.0, 2.0)


@pytest.mark.parametrize(("shape", "side"), [((2, 6, 9), 3), ((1, 9), 4), ((3, 8, 8), 4)])
def test_cutout_covers_a_square_whose_middle_is_anywhere(shape: tuple[int, ...], side: int) -> None:
    x = torch.ones(1500, *shape)
    found = changed(x, cutout=side / min(shape[1:]))
    seen = set()
    for row in found.numpy():
        assert (row == row[0]).all()  # all channels
        holes = np.argwhere(row[0] == 0)
        first, last = holes.min(0), holes.max(0)
        assert len(holes) == np.prod(last - first + 1)  # a block,
        for low, high, size in zip(first, last, shape[1:], strict=True):  # whole but for what lies outside
            assert high - low + 1 == side or (low == 0) ^ (high == size - 1)
        seen.add((*first.tolist(), *last.tolist()))
    assert len(seen) == np.prod(shape[1:])


def test_nothing_is_done_unless_asked() -> None:
    x = pictures(20, 3, 6, 6)
    assert torch.equal(changed(x), x)
    assert not torch.equal(changed(x, shift=0.2), x)


SPEAKS: list[tuple[Callable[[], object], str]] = [
    (lambda: Augment((1, 8, 8), shift=-0.1), "shift must be in [0, 1), got -0.1"),
    (lambda: Augment((1, 8, 8), crop=0), "crop must be above 0 and at most 1, got 0"),
    (lambda: Augment((1, 8, 8), crop=1.5), "crop must be above 0 and at most 1, got 1.5"),
    (lambda: Augment((1, 8, 8), rotation=200), "rotation must be in [0, 180] degrees, got 200"),
    (lambda: Augment((1, 8), rotation=20), "rotation must be 0 for signals (it turns images), got 20"),
    (lambda: Augment((1, 8, 8), flip=1), "flip must be true or false, got 1"),
    (
        lambda: Augment((1, 8), flip_vertical=True),
        "flip_vertical must be false for signals (it mirrors images), got true",
    ),
    (lambda: Augment((1, 8, 8), brightness=-1), "brightness must be a number of at least 0, got -1"),
    (lambda: Augment((1, 8, 8), contrast=2), "contrast must be in [0, 1], got 2"),
    (lambda: Augment((3, 8, 8), saturation=None), "saturation must be in [0, 1], got null"),
    (
        lambda: Augment((1, 8, 8), saturation=0.5),
        "saturation must be 0 unless images have three channels (it mixes colours), got 0.5",
    ),
    (lambda: Augment((1, 8, 8), scale="big"), "scale must be a number of at least 0, got big"),
    (lambda: Augment((1, 8, 8), cutout=1), "cutout must be in [0, 1), got 1"),
]


@pytest.mark.parametrize(("make", "sentence"), SPEAKS)
def test_a_setting_that_cannot_be_is_one_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == f"regularizer.augment.{sentence}"


# Whole runs.

WORDS = ("data=digits", "data.rows=300", "model.hidden=[32]", "batch_size=32", "optimizer.lr=0.003")
CHANGES = [f"regularizer.augment.{name}={value}".lower() for name, value in ALL.items() if name != "saturation"]


def seen(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Tensor]:
    """Everything that augmentation gave in a run, an epoch of 210 rows at a time."""
    pieces: list[Tensor] = []
    own = Augment.rows

    def watch(self: Augment, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        given = own(self, batch)
        pieces.append(given["features"])
        return given

    with monkeypatch.context() as patch:
        patch.setattr(Augment, "rows", watch)
        launch(*WORDS, "regularizer=augment", *CHANGES, "epochs=2", *words)
    return list(torch.cat(pieces).split(210))


def test_shards_and_batches_change_no_row_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = seen(monkeypatch, "exact=true", "shards=1")
    assert len(first) == len(second) == 210
    for words in (["exact=true", "shards=2"], ["exact=true", "shards=4"], ["batch_size=17"]):
        others = seen(monkeypatch, *words)
        assert torch.equal(others[0], first)
        assert torch.equal(others[1], second)
    assert not torch.equal(seen(monkeypatch, "seed=1")[0], first)


def test_a_run_that_was_stopped_sees_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*WORDS, "regularizer=augment", *CHANGES, "epochs=3", "trainer.save_every=1steps")
    whole = launch(*words)
    after = Training.after_step

    def stop(self: Training, ended: bool) -> None:
        after(self, ended)
        if self.position.step == 10:  # in the middle of the second epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            launch(*words, name="stopped")
    again = launch(*words, name="stopped")
    assert "continuing at epoch 1, step 10" in again.printed
    assert again.result["weights_sha256"] == whole.result["weights_sha256"]


def turned(x: Tensor) -> Tensor:
    return torch.from_numpy(rotate(x.numpy(), 25, (2, 3), reshape=False, order=1, mode="grid-constant"))


def enlarged(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x[:, :, 1:-1, 1:-1], size=x.shape[2:], mode="bilinear")


def faded(x: Tensor) -> Tensor:
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + 0.15 * (x - middle)


def covered(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 2:6, 2:6] = 0
    return x


FITTED = (*WORDS, "data.rows=600", "epochs=40", "evaluate_every=40")


@pytest.fixture(scope="module")
def plain() -> Trained:
    return launch(*FITTED)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (["crop=0.6"], enlarged),
        (["rotation=40"], turned),
        (["flip=true"], lambda x: x.flip(3)),
        (["flip_vertical=true"], lambda x: x.flip(2)),
        (["brightness=2"], lambda x: x + 1.5),
        (["contrast=1"], faded),
        (["cutout=0.5"], covered),
    ],
)
def test_a_network_bears_what_it_was_trained_with(
    settings: list[str], change: Callable[[Tensor], Tensor], plain: Trained
) -> None:
    def loss(run: Trained) -> float:
        rows = run.data.valid
        return float(log_loss(rows["target"], run.model.outputs(change(rows["features"])).numpy(), labels=range(10)))

    words = ["regularizer.augment.shift=0", *(f"regularizer.augment.{setting}" for setting in settings)]
    assert loss(launch(*FITTED, "regularizer=augment", *words)) < 0.8 * loss(plain)


def test_images_in_a_folder_are_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Path("colours", name).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(draw.integers(0, 200, (8, 10, 1)) / 255 * np.array(colour), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"colours/{name}/{number}.png")
    words = ("data=images", "data.path=colours", "model.hidden=[16]", "optimizer.lr=0.01", "batch_size=16", "epochs=9")
    words = (*words, "regularizer=augment", "regularizer.augment.flip=true", "regularizer.augment.crop=0.7")
    given: list[Tensor] = []
    own = Augment.rows

    def watch(self: Augment, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        changed = own(self, batch)
        given.append(changed["features"])
        assert changed["features"].shape == (len(batch["target"]), 3, 8, 10)
        return changed

    monkeypatch.setattr(Augment, "rows", watch)
    run = launch(*words, "regularizer.augment.saturation=1", "regularizer.augment.cutout=0.3")
    assert run.result["test"]["accuracy"] == 1
    rows = torch.cat(given)
    assert len(rows) == 9 * 56
    known = {row.numpy().tobytes() for row in run.data.train["features"]}
    assert not known & {row.numpy().tobytes() for row in rows}


def test_rows_without_space_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"regularizer=augment must go with rows of shape .* got \(4,\)"):
        launch("data=iris", "regularizer=augment")


@pytest.mark.parametrize(("trainer", "ranks"), [("ddp", 2), ("fsdp", 2)])
def test_every_trainer_comes_to_the_same_bits(trainer: str, ranks: int, server: Server, tmp_path: Path) -> None:
    words = [*WORDS, "model=cnn", "model.channels=[8]", "regularizer=augment", *CHANGES, "epochs=1"]
    words = [word for word in words if not word.startswith("model.hidden")]
    found = {}
    for where, processes in (("single", 1), (trainer, ranks)):
        more = ["exact=true", "shards=2", f"trainer={where}", "name=run", f"output_root={tmp_path / where}"]
        code, said = server.run([*words, *more], tmp_path, ranks=processes, seconds=300)
        assert code == 0, said
        result = json.loads((tmp_path / where / "run" / "result.json").read_text())
        found[where] = result["weights_sha256"], result["valid"], result["test"]
    assert found["single"] == found[trainer]

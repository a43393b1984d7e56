"""Schedulers: the formula at every step, and a state saved in the middle."""

import inspect
import json
from itertools import pairwise
from math import cos, pi
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from dltrain.build import locate
from dltrain.errors import ConfigError
from dltrain.schedulers import OneCycle, WarmupCosine

FOLDER = Path(__file__).parent.parent / "configs" / "scheduler"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
STEPS, LR = 40, 0.3


def optimizer():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    return torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": LR / 10}], lr=LR, momentum=0.9)


def make(name, over, steps=STEPS, **changes):
    """A shipped scheduler with what the worker hands over by name."""
    node = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    kind = locate(node.pop("_target_"), "scheduler", "scheduler")
    handed = {"total_steps": steps, "T_max": steps, "mode": "min"}
    asked = {key: value for key, value in handed.items() if key in inspect.signature(kind).parameters}
    assert not asked.keys() & node.keys(), "the worker hands this over; the YAML must not say it"
    return kind(over, **asked, **(node | changes))


def advance(scheduler, metric=1.0):
    scheduler.optimizer.step()
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(metric)
    else:
        scheduler.step()


def curve(scheduler, steps=STEPS):
    """The lr used in each step, of each parameter group."""
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in scheduler.optimizer.param_groups])
        advance(scheduler)
    return seen


def warmup_cosine(t, warmup=4):
    return (t + 1) / (warmup + 1) if t < warmup else (1 + cos(pi * (t - warmup) / (STEPS - warmup))) / 2


def onecycle(t):
    """Cosine from 1/25 to 1 until step 0.3 * STEPS - 1, then down to 1/25/10000 at the last step."""
    top, end = 0.3 * STEPS - 1, STEPS - 1
    if t <= top:
        return 1 / 25 + (1 - 1 / 25) * (1 - cos(pi * t / top)) / 2
    low = 1 / 25 / 1e4
    return low + (1 - low) * (1 + cos(pi * (t - top) / (end - top))) / 2


FORMULAS = {
    "constant": lambda t: 1.0,
    "step": lambda t: 0.1 ** (t // 20),
    "cosine": lambda t: (1 + cos(pi * t / STEPS)) / 2,
    "warmup_cosine": warmup_cosine,
    "onecycle": onecycle,
    "plateau": lambda t: (
        0.5 ** max(0, (t - 1) // 6)
    ),  # the metric never moves: halved after 5 bad evaluations and one more
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_lr_follows_its_formula_at_every_step(name):
    for t, lrs in enumerate(curve(make(name, optimizer()))):
        assert lrs == pytest.approx([FORMULAS[name](t) * LR, FORMULAS[name](t) * LR / 10], rel=1e-9, abs=1e-15), t


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("middle", [0, 1, 5, 17])
def test_a_state_saved_in_the_middle_continues_exactly(name, middle):
    whole = curve(make(name, optimizer()))
    first = make(name, optimizer())
    curve(first, middle)
    state = json.loads(json.dumps(first.state_dict()))
    over = optimizer()
    second = make(name, over)
    over.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(state)
    over.step()
    assert curve(second, STEPS - middle) == whole[middle:]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_a_run_of_few_steps_never_leaves_the_range(name, steps):
    scheduler = make(name, optimizer(), steps)
    lrs = [*curve(scheduler, steps), scheduler.get_last_lr()]  # it moves once more after the last step
    assert all(0 <= lr <= LR * (1 + 1e-12) for lr, _ in lrs)


def test_warmup_cosine_rises_to_the_lr_and_falls_to_its_floor():
    scheduler = WarmupCosine(optimizer(), 100, warmup=0.25, floor=0.1)
    lrs = [lr for lr, _ in curve(scheduler, 101)]
    assert max(lrs) == lrs[25] == LR
    assert all(a < b for a, b in pairwise(lrs[:26]))
    assert all(a > b for a, b in pairwise(lrs[25:]))
    assert lrs[100] == pytest.approx(0.1 * LR)
    assert curve(WarmupCosine(optimizer(), 10, warmup=0.0), 1)[0][0] == LR


@pytest.mark.parametrize("settings", [{}, {"peak": 5.0}, {"anneal_strategy": "linear", "pct_start": 0.5}])
def test_onecycle_is_torchs_with_its_peak_at_the_lr(settings):
    torchs = {key: value for key, value in settings.items() if key != "peak"}
    peaks = [LR * settings.get("peak", 1.0), LR / 10 * settings.get("peak", 1.0)]
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer(), peaks, STEPS, cycle_momentum=False, **torchs)
    assert curve(OneCycle(optimizer(), STEPS, **settings)) == curve(theirs)


def test_onecycle_whose_rise_is_one_step_only_falls():
    lrs = [lr for lr, _ in curve(OneCycle(optimizer(), 10, pct_start=0.1), 10)]
    assert all(a > b for a, b in pairwise([LR, *lrs]))


def test_onecycle_moves_momentum_only_if_asked():
    still, moved = OneCycle(optimizer(), STEPS), OneCycle(optimizer(), STEPS, cycle_momentum=True)
    curve(still, 8)
    curve(moved, 8)
    assert still.optimizer.param_groups[0]["momentum"] == 0.9
    assert 0.85 <= moved.optimizer.param_groups[0]["momentum"] < 0.9


def test_plateau_reads_the_monitored_value():
    scheduler = make("plateau", optimizer(), patience=1)
    for metric, expected in ((3.0, 1), (2.0, 1), (2.5, 1), (2.5, 0.5), (1.0, 0.5)):
        advance(scheduler, metric)
        assert scheduler.optimizer.param_groups[0]["lr"] == LR * expected


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: WarmupCosine(optimizer(), 10, warmup=1.0), "scheduler.warmup must be in [0, 1), got 1.0"),
        (lambda: WarmupCosine(optimizer(), 10, floor=-1), "scheduler.floor must be in [0, 1), got -1"),
        (lambda: OneCycle(optimizer(), 10, pct_start=2), "scheduler.pct_start must be in [0, 1), got 2"),
        (lambda: OneCycle(optimizer(), 10, peak=0.0), "scheduler.peak must be above 0, got 0.0"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(make, sentence):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == sentence

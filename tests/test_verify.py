"""`dltrain verify`: what it compares, what it promises, what it refuses, and that it leaves nothing behind."""

import hashlib
import math
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import launch, working
from torch import Tensor

from dltrain import cli, faults
from dltrain.commands import verify
from dltrain.commands.verify import difference
from dltrain.errors import ConfigError
from dltrain.launch import processes

TRAINERS = '''
"""A trainer that computes something else than it should."""

import os

from dltrain.distributed import Single


class Crooked(Single):
    def __init__(self, by: float = 0.0, noise: float = 0.0, exact: bool = False, **settings: object) -> None:
        super().__init__(exact=exact, **settings)
        self.by, self.noise = by, noise

    def close(self, parameters) -> None:
        super().close(parameters)
        if self.by == -1:
            raise RuntimeError("out of order")
        parameters[0].grad.view(-1)[0] += self.by + self.noise * (1 + os.urandom(1)[0])
'''
YAML = """# a single process that adds something to a sum
_target_: crooked.Crooked
by: 0.0
noise: 0.0
save_every: 30s
threads: null
"""
SMALL = ["data=xor", "data.rows=400", "model.hidden=[8]", "batch_size=32", "optimizer=sgd", "optimizer.lr=0.1"]
SMALL += ["epochs=3", "trainer.threads=1"]
CROOKED = ["verify", *SMALL, "trust=[crooked]", "trainer=single,crooked", "world=1", "steps=6"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, and one for temporary files, of which none may be left in the end."""
    (tmp_path / "work" / "configs" / "trainer").mkdir(parents=True)
    (tmp_path / "work" / "crooked.py").write_text(TRAINERS)
    (tmp_path / "work" / "configs" / "trainer" / "crooked.yaml").write_text(YAML)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.syspath_prepend(tmp_path / "work")
    with working(tmp_path / "work"):
        yield tmp_path / "work"
    assert list((tmp_path / "tmp").glob("dltrain*")) == []  # torch may leave a folder of its own


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a hash of what is in it."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(printed: str) -> dict[tuple[str, str], str]:
    """The lines of the table by trainer and processes."""
    lines = [line.split(maxsplit=2) for line in printed.splitlines()]
    return {(line[0], line[1]): line[2] for line in lines if len(line) == 3 and line[1].isdigit()}


def only_where_it_shows(config: dict) -> int:
    """The processes of a config; one process of a trainer of several is refused, which saves time."""
    n = processes(config)
    if n == 1 and "devices" in config["trainer"]:
        raise ConfigError("one process says little")
    return n


def test_the_trainers_give_the_same_bits(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "processes", only_where_it_shows)
    assert cli.run(["verify", *SMALL, "exact=true", "world=1,2", "steps=5"]) == 0
    printed, errors = capfd.readouterr()
    found = rows(printed)
    assert found.keys() == {("single", "1"), ("ddp", "2"), ("fsdp", "2")}
    assert [line.split()[0] for line in found.values()] == ["5", "5", "5"]
    numbers = (2 * 8 + 8) + (8 + 1) + 1  # of the hidden layer, the head, and the threshold between two classes
    assert f" 0 of {numbers} " in found["ddp", "2"]
    assert f" 0 of {numbers} " in found["fsdp", "2"]
    assert printed.splitlines()[-1] == "verified: the same bits everywhere"
    assert errors == ""
    assert len(printed.splitlines()) == 6, printed  # a head, a table, a verdict: ranks do not speak
    assert not (here / "outputs").exists()


def test_a_rank_that_is_killed(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "processes", only_where_it_shows)
    monkeypatch.setenv("DLTRAIN_FAULT", "batch@1:kill:3")  # of what is started: it was read here already
    assert cli.run(["verify", *SMALL, "exact=true", "world=1,2", "trainer=single,ddp", "steps=5"]) == 1
    printed = capfd.readouterr().out
    assert rows(printed)["single", "1"].startswith("5 ")
    assert rows(printed)["ddp", "2"].startswith("failed: rank 1 of 2 was killed by SIGKILL")
    assert printed.splitlines()[-1] == "not verified: ddp on 2 processes failed"


@pytest.mark.parametrize(
    ("words", "code", "verdict"),
    [
        (["exact=true"], 0, "verified: the same bits everywhere"),
        (["exact=true", "trainer.by=1e-4"], 1, "not verified: crooked on 1 process is not the same"),
        (["trainer.by=1e-4"], 0, "verified: the same bits every time; elsewhere "),
        (["trainer.by=1"], 1, "not verified: crooked on 1 process is not within 1e-05"),
        (["trainer.noise=1e-5"], 1, "not verified: crooked on 1 process does not repeat itself"),
        (["trainer.by=-1"], 1, "not verified: crooked on 1 process failed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_verdicts(words: list[str], code: int, verdict: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*CROOKED, *words]) == code
    printed, errors = capfd.readouterr()
    assert printed.splitlines()[-1].startswith(verdict), printed
    assert ("out of order" in rows(printed)["crooked", "1"]) == ("trainer.by=-1" in words)
    assert ("RuntimeError: out of order" in errors) == ("trainer.by=-1" in words)  # with where it happened
    if words == ["trainer.by=1e-4"]:
        assert 0 < float(verdict_of(printed).split()[7]) < 1e-5


def verdict_of(printed: str) -> str:
    return printed.splitlines()[-1]


def test_one_place_alone_is_compared_with_itself(capfd: pytest.CaptureFixture[str]) -> None:
    alone = [word.replace("single,", "") for word in CROOKED]
    assert cli.run([*alone, "exact=true"]) == 0
    assert rows(capfd.readouterr().out)["crooked", "1"].split()[-1] == "same"
    assert cli.run([*alone, "exact=true", "trainer.noise=1e-3"]) == 1
    assert "does not repeat itself" in capfd.readouterr().out


def test_a_run_with_its_settings_and_others(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text("a,b,y\n" + "".join(f"{k},{k * k % 7},{k % 2}\n" for k in range(200)))
    data = ["data=csv", f"data.path={Path('rows.csv')}", "data.target=y", *SMALL[2:], "shards=4", "exact=true"]
    launch(*data, name="mine")
    before = content(here / "outputs")
    Path("elsewhere").mkdir()
    mine = ["verify", f"run={here / 'outputs' / 'mine'}", "trainer=single", "steps=3"]
    with working(Path("elsewhere")):  # its paths hold from anywhere
        assert cli.run(mine) == 0
    printed = capfd.readouterr().out
    assert "data=csv model=mlp: 3 steps, shards=4 exact=true" in printed
    assert rows(printed)["single", "1"].split()[0] == "3"
    assert cli.run([*mine, "exact=false", "shards=2", "optimizer=adam", "optimizer.lr=0.02"]) == 0
    assert "data=csv model=mlp: 3 steps, shards=2 exact=false" in capfd.readouterr().out
    assert content(here / "outputs") == before
    assert not Path("elsewhere/outputs").exists()


def test_a_strangers_run_is_not_trusted(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launch(*SMALL, "trainer=crooked", "trust=[crooked]", name="strange")
    assert cli.run(["verify", "run=strange", "trainer=crooked", "world=1"]) == 2
    assert "trust must name the modules whose code run strange uses, as in trust=[crooked]" in capfd.readouterr().err
    assert cli.run(["verify", "run=strange", "trainer=crooked", "world=1", "trust=[crooked]"]) == 0


def test_early_end_of_training_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*CROOKED, "steps=1000", "epochs=2"]) == 0
    steps = 2 * math.ceil(280 / 32)
    assert {line.split()[0] for line in rows(capfd.readouterr().out).values()} == {str(steps)}


def test_a_signal_leaves_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(faults, "FAULT", "batch:term:5")
    monkeypatch.setattr(faults, "passed", Counter())
    before = signal.getsignal(signal.SIGTERM)
    assert cli.run(["verify", *SMALL, "trainer=single", "steps=50", "epochs=1000"]) == 75
    assert capfd.readouterr().err == "dltrain: stopped before all was compared; nothing of it is kept\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("world=2 trainer=single", "world must be 1 with trainer=single, got 2"),
        ("world=2 trainer=ddp,single", "world must be 1 with trainer=single, got 2"),
        ("world=3 exact=true", "exact=true must have a power of two of processes, got 3; 2 or 4 would do"),
        ("world=3 shards=4", "shards must be a multiple of the 3 processes, got 4 (shards=3 or 6 would do)"),
        ("world=4 batch_size=2", "batch_size must be at least the 4 shards, one row each, got 2"),
        ("shards=64 batch_size=2", "batch_size must be at least the 64 shards, one row each, got 2"),
        ("world=0", "world must be numbers of processes, as in world=1,2, got [0]"),
        ("world=two", "world must be a whole number, got two"),
        ("steps=0", "steps must be a whole number of at least 1, got 0"),
        ("trainer=dpp", "trainer=dpp: no such trainer; did you mean ddp? (crooked, ddp, fsdp, single)"),
        ("trainer.devices=2", "trainer.devices=2 must be written as world=2"),
        ("trainer=single trainer.backend=gloo", "trainer.backend: no such setting of trainer=single"),
        ("run=last", "run=last must have a run in outputs, got none"),
        ("digits", "digits must be written as key=value"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: str, sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    trust = ["trust=[crooked]"] if "crooked" in words else []
    assert cli.run(["verify", *words.split(), *trust]) == 2
    printed, errors = capfd.readouterr()
    assert printed == ""
    assert errors.startswith(f"dltrain: {sentence}")
    assert len(errors.splitlines()) == 1


def test_default_lists_leave_out_what_does_not_fit() -> None:
    def places(*words: str) -> list[tuple[str, int]]:
        options, overrides = verify.parse_known(list(words), verify.Options)
        return [(row.trainer, row.world) for row in verify._plan(options, overrides)]

    several = [(trainer, world) for trainer in ("ddp", "fsdp") for world in (1, 2, 4)]
    assert places() == [("single", 1), *several]
    assert places("shards=2") == [("single", 1), *((trainer, world) for trainer, world in several if world < 4)]
    assert places("batch_size=3") == places("shards=2")
    assert places("world=2") == [("ddp", 2), ("fsdp", 2)]
    assert places("trainer=ddp", "trainer.backend=gloo") == several[:3]
    assert places("trainer.backend=gloo") == places()  # single has no such setting
    assert places("world=2,3", "trainer=ddp") == [("ddp", 2), ("ddp", 3)]  # 6 shards


def test_data_that_is_not_there_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify", "data=csv", "data.path=none.csv", "data.target=y"]) == 65
    assert capfd.readouterr().err.count("none.csv: no such file") == 1


def test_difference_counts_bits_and_measures_norms() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20, 30)).astype(np.float32)
    b = a.copy()
    b[3, 4:9] += np.float32(1e-3)
    b[0, 0] = a[0, 0]
    expected = np.linalg.norm(a.astype(float) - b) / max(np.linalg.norm(a.astype(float)), np.linalg.norm(b))
    mine: dict[str, Tensor] = {"w": torch.from_numpy(a), "n": torch.tensor(7), "zero": torch.tensor([0.0, 0.0])}
    other = {"w": torch.from_numpy(b), "n": torch.tensor(7), "zero": torch.tensor([0.0, 0.0])}
    assert difference(mine, mine) == (0, 0.0)
    differ, by = difference(mine, other)
    assert differ == 5
    assert by == pytest.approx(expected, rel=1e-6)
    assert difference(mine, {**mine, "n": torch.tensor(8)})[0] == 1
    assert difference(mine, {**mine, "zero": torch.tensor([0.0, -0.0])})[0] == 1  # as bits are
    assert difference(mine, {**mine, "w": mine["w"][:5]}) == (603, math.inf)
    assert difference(mine, {"w": mine["w"]}) == (603, math.inf)

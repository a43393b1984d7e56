"""The fingerprint of a run: what is in it, against references; where two of them part; and that nothing disturbs it."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.forks import WORDS, Server
from runs import command, launch, working

from dltrain import cli, course
from dltrain.compose import compose
from dltrain.fingerprint.taken import parted, row_checksums, sum_of
from dltrain.optimizers import Muon
from dltrain.player import Player
from dltrain.step import Step
from dltrain.together.train import train_together

# as documented in dltrain/fingerprint/file.py: who reads it has numpy alone
FIELDS = ["step u4", "move u1", "player u1", "together u2", "rows u4", "weights u4", "settings u4"]
FIELDS += ["lr f4", "loss f4", "gradient u4"]
MOVE = np.dtype([(name, f"<{kind}") for name, kind in map(str.split, FIELDS)])
SMALL = ["data=iris", "model.hidden=[8]", "batch_size=8", "epochs=11", "trainer.threads=1"]  # 14 steps an epoch
AT = 137


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("fingerprint")) as folder:
        launch(*SMALL, name="plain")
        yield folder


def moves(folder: Path | str) -> np.ndarray:
    content = (Path(folder) / "fingerprint").read_bytes()
    assert content[:32] == b"dltrain fingerprint format 1\n".ljust(32, b"\0")
    return np.frombuffer(content[32:], MOVE)


def diff(*words: str) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.run(["diff", *words])
    return code, said.getvalue()


# What is in it


def test_every_step_is_there_with_the_loss_that_was_recorded() -> None:
    found = moves("outputs/plain")
    assert found["step"].tolist() == list(range(154))
    records = [json.loads(line) for line in Path("outputs/plain/metrics.jsonl").read_text().splitlines()]
    sizes = [8] * 13 + [2]
    for number, record in enumerate(records):
        losses = found["loss"][14 * number : 14 * (number + 1)]
        assert np.average(losses.astype(float), weights=sizes) == pytest.approx(record["train/loss"], rel=1e-6)
    assert found["weights"].nonzero()[0].tolist() == [0, 64, 128]
    assert len(set(found["rows"])) == len(set(found["gradient"])) == 154


def test_the_learning_rate_is_the_schedulers() -> None:
    run = launch(*SMALL, "scheduler=onecycle", "optimizer.lr=0.01", "scheduler.peak=3", "epochs=3")
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, total_steps=42)  # peak=3 times lr
    expected = []
    for _ in range(42):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = moves(run.folder)
    assert found["lr"].tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(found["settings"])) == 42


def test_a_sum_of_bits_is_numpys_and_knows_every_bit() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(7, 3), torch.randn(300, 200), torch.randn(5).bfloat16(), torch.randn(3).double()]
    tensors.append(torch.randn(6, 4).t())
    total = 0
    for tensor in tensors:
        kind = torch.int16 if tensor.element_size() == 2 else torch.int32
        bits = tensor.contiguous().view(-1).view(kind).numpy()
        total += sum(map(int, bits))
    assert int(sum_of(*parted(tensors))) % 2**32 == total % 2**32
    before = int(sum_of(*parted(tensors)))
    tensors[1][299, 199] = torch.nextafter(tensors[1][299, 199], torch.tensor(9.0))
    assert int(sum_of(*parted(tensors))) == before + 1


def test_rows_know_their_order_and_batches_nothing_of_each_other() -> None:
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    sizes = [64] * 15 + [40]
    found = row_checksums(rows, sizes, 0)
    assert found.min() >= 0
    assert found.max() < 2**32
    assert len(set(found.tolist())) == 16
    assert row_checksums(rows[320:], sizes[5:], 320).equal(found[5:])  # continued in the middle of an epoch
    swapped = rows.clone()
    swapped[[70, 71]] = rows[[71, 70]]
    assert (row_checksums(swapped, sizes, 0) != found).nonzero().flatten().tolist() == [1]


def test_each_player_and_move_has_a_line() -> None:
    run = launch("data=iris", "model.hidden=[8]", "batch_size=53", "epochs=2", "task=gan", "sample_every=null")
    found = moves(run.folder)
    assert found["step"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found["move"].tolist() == [0, 1] * 4
    assert sorted(found["player"][:2].tolist()) == [0, 1]
    assert len(set(found["gradient"])) == 8


# Wherever it is taken, and whatever interrupts it: the kills are in test_checkpoint and tests/faults


@pytest.mark.parametrize("place", ["ddp", "fsdp"])
def test_other_trainers_give_the_same_bytes(place: str, server: Server, tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith("model.norm")]
    for trainer, ranks in (("single", 1), (place, 2)):
        code, said = server.run([*words, f"trainer={trainer}", f"output_root={trainer}"], tmp_path, ranks=ranks)
        assert code == 0, said
    one, two = moves(tmp_path / "single" / "run"), moves(tmp_path / place / "run")
    assert len(one) > 30
    assert one.tobytes() == two.tobytes()


def test_a_longer_run_goes_on_with_its_fingerprint() -> None:
    launch(*SMALL, name="short")
    command("resume", "run=short", "epochs=13")
    [longer] = [path for path in Path("outputs").glob("iris-mlp-*") if "short" not in path.name]
    assert moves(longer)[:154].tobytes() == moves("outputs/short").tobytes()
    assert len(moves(longer)) == 182
    shutil.rmtree(longer)


# Where two runs part

Plant = Callable[[pytest.MonkeyPatch], None]


def at_step(monkeypatch: pytest.MonkeyPatch, do: Callable[[Player], None], at: int = AT) -> None:
    """Do something before a step."""
    call = Step.__call__

    def planted(self: Step, batch: dict, n_rows: int, step: int) -> None:
        if step == at:
            do(self.players["network"])
        call(self, batch, n_rows, step)

    monkeypatch.setattr(Step, "__call__", planted)


def learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, lambda player: player.optimizer.param_groups[0].update(lr=0.0011))


def weight_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, lambda player: player.optimizer.param_groups[0].update(weight_decay=0.5))


def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, lambda player: player.parameters[0].data.view(-1)[:3].add_(1e-3))


def initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, lambda player: player.parameters[0].data.view(-1)[:1].mul_(1 + 1e-6), 0)


def known_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, lambda player: player.parameters[0].data.view(-1)[:1].mul_(1 + 1e-6), 128)


def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    order = course.epoch_order

    def planted(n_rows: int, seed: int, epoch: int) -> torch.Tensor:
        found = order(n_rows, seed, epoch)
        if epoch == AT // 14:
            first = (AT % 14) * 8
            found[[first, first + 8]] = found[[first + 8, first]]  # of this batch and the next
        return found

    monkeypatch.setattr(course, "epoch_order", planted)


def gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    step, taken = Player.step, iter(range(10**6))

    def planted(self: Player, *given: object) -> None:
        if next(taken) == AT:  # the last bit of one number
            grad = self.parameters[0].grad
            assert grad is not None
            grad[0, 0] = torch.nextafter(grad[0, 0], torch.tensor(9.0))
        step(self, *given)

    monkeypatch.setattr(Player, "step", planted)


PLANTED = {
    learning_rate: (AT, "hyperparameter, learning rate 0.001, 0.0011"),
    weight_decay: (AT, "hyperparameter, other than the learning rate"),
    rows: (AT, "rows"),
    gradient: (AT, "gradient"),
    weights: (AT, "loss "),
    initial_weights: (0, "initial weights"),
    known_weights: (128, "weights"),
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found_at_its_step(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    run = launch(*SMALL, name=f"planted-{plant.__name__}")
    code, said = diff("plain", run.name)
    assert code == 1
    step, what = PLANTED[plant]
    [line] = [line for line in said.splitlines() if line.startswith("first different step: ")]
    assert line.startswith(f"first different step: {step}: {what}")
    if plant is weights:
        assert "something else than gradients has changed the weights since step 128" in line
    assert "what differs" not in said  # no setting does


def test_muons_settings_are_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SMALL, "model.hidden=[8,8]", "optimizer=muon", "epochs=2"]
    launch(*words, name="muon")
    step, taken = Muon.step_hidden, iter(range(10**6))

    def planted(self: Muon, group: dict) -> None:
        step(self, group | {"lr": 0.1} if next(taken) == 5 else group)

    monkeypatch.setattr(Muon, "step_hidden", planted)
    launch(*words, name="muon-planted")
    assert "first different step: 6: loss" in diff("muon", "muon-planted")[1]


# What is said


def test_equal_runs_are_said_to_be() -> None:
    launch(*SMALL, name="twin")
    assert diff("plain", "twin") == (0, "equal to the bit: 154 steps, the weights and the scores\n")
    assert diff("a=outputs/plain", "b=twin")[0] == 0
    assert diff("plain", "plain")[0] == 0


def test_what_differs_is_said_first() -> None:
    words = [word for word in SMALL if not word.startswith("model")]
    launch(*words, "optimizer.lr=0.002", "model=linear", "seed=1", name="other")
    code, said = diff("plain", "other")
    assert code == 1
    table = said.partition("first different")[0]
    assert [line.split() for line in table.splitlines()] == [
        ["what", "differs", "plain", "other"],
        ["model", "mlp", "linear"],
        ["optimizer.lr", "0.001", "0.002"],
        ["seed", "0", "1"],
    ]


def test_nothing_but_rounding_is_equal_within() -> None:
    taken = Path("outputs/rounded")
    shutil.copytree("outputs/plain", taken)
    found = moves(taken).copy()
    found["loss"][20:] *= np.float32(1 + 3e-6)
    (taken / "fingerprint").write_bytes(b"dltrain fingerprint format 1\n".ljust(32, b"\0") + found.tobytes())
    code, said = diff("plain", "rounded")
    assert code == 1
    gaps = np.abs(found["loss"].astype(float) / moves("outputs/plain")["loss"] - 1)
    assert 2.9e-6 < gaps.max() < 3.2e-6
    assert said.splitlines()[0] == f"equal within {gaps.max():.2e}: the losses of 154 steps"
    assert said.splitlines()[1].startswith("first different step: 20: loss ")


def test_one_that_is_longer_or_begins_late() -> None:
    shutil.copytree("outputs/plain", "outputs/late")
    content = Path("outputs/plain/fingerprint").read_bytes()
    Path("outputs/late/fingerprint").write_bytes(content[:32] + content[32 * 51 : 32 * 101 + 7])
    code, said = diff("plain", "late")
    assert code == 1
    assert said.splitlines() == [
        "equal to the bit in 50 steps, different after them",
        "before step 50 nothing is recorded of one of them",
        "plain has 154 steps, late 100",
    ]


@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind", b"\xff" * 320])
def test_one_without_a_fingerprint(content: bytes | None, tmp_path: Path) -> None:
    old = shutil.copytree("outputs/plain", tmp_path / "old")
    if content is None:
        (old / "fingerprint").unlink()
    else:
        (old / "fingerprint").write_bytes(content)
    code, said = diff("plain", str(old))
    assert (code, said) == (0, "equal to the bit: the weights and the scores (of the steps nothing is recorded)\n")
    result = json.loads((old / "result.json").read_text())
    (old / "result.json").write_text(json.dumps(result | {"weights_sha256": "another"}))
    assert diff("plain", str(old)) == (1, "different\nat which step is not known: old has no fingerprint\n")


def test_what_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    new = shutil.copytree("outputs/plain", tmp_path / "new")
    content = (new / "fingerprint").read_bytes()
    (new / "fingerprint").write_bytes(b"dltrain fingerprint format 2\n".ljust(32, b"\0") + content[32:])
    for words, sentence in {
        ("plain",): "b must be given, as b=...",
        (): "a must be given, as a=...\nb must be given, as b=...",
        ("plain", "nothing"): "b must be a run in outputs, got nothing",
        ("plain", "twin", "other"): "other must be written as key=value",
        ("plain", str(new)): f"{new}/fingerprint must be of format 1 or older, got 2; update dltrain",
    }.items():
        assert cli.run(["diff", *words]) == 2
        said = capsys.readouterr().err.replace("dltrain: ", "")
        assert said.startswith(sentence)


def test_members_of_a_stack_have_fingerprints_of_their_own() -> None:
    words = [[*SMALL, "epochs=3", "scheduler=onecycle", f"optimizer.lr={lr}"] for lr in (0.001, 0.01, 0.02)]
    alone = [moves(launch(*each, name=f"alone{k}").folder) for k, each in enumerate(words)]
    named = [[*each, f"name=member{k}"] for k, each in enumerate(words)]
    configs = [compose(each) for each in named]
    assert train_together(configs, named, forced=True, quiet=True) == [0, 0, 0]
    for k, expected in enumerate(alone):
        found = moves(f"outputs/member{k}")
        assert found["together"].tolist() == [3] * 42
        for field in ("step", "move", "player", "rows", "settings", "lr"):
            assert (found[field] == expected[field]).all(), field
        assert found["weights"][0] == expected["weights"][0] != 0  # they begin with the same
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert len(set(found["gradient"])) == 42
        said = diff(f"alone{k}", f"member{k}")[1]
        assert said.startswith("equal within ") or said.startswith("equal to the bit")
        if said.startswith("equal within "):
            assert f"42 steps of member{k} were taken together with other runs" in said


def test_a_member_that_goes_on_alone_has_one_file() -> None:
    words = [[*SMALL, f"epochs={n}", "evaluate_every=3steps", f"name=left{n}"] for n in (3, 3)]
    words[1][-1] = "name=right"
    words[1] += ["regularizer=early_stopping", "regularizer.early_stopping.patience=1", "optimizer.lr=0.5"]
    codes = train_together([compose(each) for each in words], words, forced=True, quiet=True)
    assert codes == [0, 0]
    left, right = moves("outputs/left3"), moves("outputs/right")
    assert left["step"].tolist() == list(range(42))
    assert right["step"].tolist() == list(range(len(right)))
    assert len(right) < 42
    assert left["together"].tolist() == [2] * len(right) + [1] * (42 - len(right))
    assert moves(launch(*SMALL, "epochs=3", "evaluate_every=3steps").folder)["rows"].tolist() == left["rows"].tolist()

"""Runs that are trained side by side are what they are alone: tensors, records, files, and what goes on from there."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import Trained, working
from safetensors.torch import load_file
from torch import Tensor

from dltrain import assembly, bundle, worker
from dltrain.commands.train import train
from dltrain.compose import compose
from dltrain.together import lockstep
from dltrain.together.draws import Draws
from dltrain.together.groups import fits, groups
from dltrain.together.numbers import Disagree, Varied
from dltrain.together.train import train_together

WORDS = ("data=wine", "data.split.seed=0", "batch_size=16", "epochs=3", "model.hidden=[8]", "trainer.threads=1")
LRS = (("optimizer.lr=0.001", "seed=1"), ("optimizer.lr=0.01", "seed=2"), ("optimizer.lr=0.003", "seed=3"))
CLOCKS = {"time", "rows_per_second"}
Words = Sequence[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[None]:
    with working(tmp_path):
        yield


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in float64, where rounding does not hide a difference."""
    made, resident, assess = bundle.make_task, assembly._resident, worker.assess

    def wide(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: values.double() if values.is_floating_point() else values for key, values in rows.items()}

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(assembly, "_resident", lambda rows, trainer: wide(resident(rows, trainer)))
    monkeypatch.setattr(
        worker, "assess", lambda task, players, rows, trainer: assess(task, players, wide(rows), trainer)
    )
    for module in (bundle, lockstep):
        monkeypatch.setattr(module, "make_task", lambda *given: made(*given).double())


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many members each stack has had that trained."""
    found: list[int] = []
    stack = lockstep.Stack

    class Seen(stack):  # type: ignore[valid-type,misc]
        def __init__(self, template: Any, members: Any, trial: bool = False) -> None:
            super().__init__(template, members, trial)
            found.extend([] if trial else [self.n])

    monkeypatch.setattr(lockstep, "Stack", Seen)
    return found


def together(common: Words, each: Sequence[Words], root: str = "together", forced: bool = True) -> list[int]:
    words = [[*common, *own, "report=false", f"output_root={root}"] for own in each]
    with contextlib.redirect_stdout(io.StringIO()):
        return train_together([compose(list(typed)) for typed in words], words, forced=forced)


def alone(common: Words, each: Sequence[Words], root: str = "alone") -> list[Trained]:
    for own in each:
        words = [*common, *own, "report=false", f"output_root={root}"]
        with contextlib.redirect_stdout(io.StringIO()):
            train(compose(words), words, lambda name: None)
    return found(root)


def found(root: str) -> list[Trained]:
    """The runs of a folder, by name."""
    return [Trained(path) for path in sorted(Path(root).iterdir()) if (path / "config.yaml").exists()]


def tensors(run: Trained) -> dict[str, Tensor]:
    """All of the last checkpoint: weights, buffers, the optimizer's state, averages."""
    folder = run.folder / "checkpoints" / f"step-{run.steps[-1]:08d}"
    return {
        f"{file.stem}|{key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()
    }


def apart(first: Trained, second: Trained) -> float:
    """The largest relative norm of what a tensor of one run differs by."""
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    norms = [float((one[k].double() - other[k].double()).norm() / (one[k].double().norm() + 1e-30)) for k in one]
    return max(norms)


def records_differ(first: Trained, second: Trained) -> float:
    assert [line.keys() for line in first.records] == [line.keys() for line in second.records]
    pairs = zip(first.records, second.records, strict=True)
    return max(abs(one[key] - other[key]) for one, other in pairs for key in one.keys() - CLOCKS)


def same(
    common: Words, each: Sequence[Words], stacks: list[int], bound: float = 1e-9
) -> tuple[list[Trained], list[Trained]]:
    """Train side by side and alone; what came of it is the same."""
    assert together(common, each) == [0] * len(each)
    assert stacks[:1] == [len(each)]
    ones, others = found("together"), alone(common, each)
    assert [run.name for run in ones] == [run.name for run in others]
    for one, other in zip(ones, others, strict=True):
        assert apart(one, other) < bound
        assert records_differ(one, other) < bound * 100
        listed = [{str(path.relative_to(run.folder)) for path in run.folder.iterdir()} for run in (one, other)]
        assert listed[0] == listed[1]
        assert one.result.keys() == other.result.keys()
        for key in ("status", "best_epoch", "epochs", "steps", "stopped_early", "health", "monitor"):
            assert one.result[key] == other.result[key], key
        assert one.result["test"] == pytest.approx(other.result["test"], abs=1e-6)
        assert (one.folder / "model" / "model.json").read_text() == (other.folder / "model" / "model.json").read_text()
    return ones, others


OPTIMIZERS = {
    "adamw": (["optimizer.lr=0.01", "optimizer.betas=[0.8,0.99]"], ["optimizer.weight_decay=0.1", "seed=4"]),
    "adam": (["optimizer.weight_decay=0.01"], ["optimizer.weight_decay=0.1", "optimizer.eps=1e-6"]),
    "sgd": (["optimizer.momentum=0.5"], ["optimizer.lr=0.1"]),
    "nadam": (["optimizer.lr=0.01"], ["optimizer.lr=0.02", "seed=3"]),
    "radam": (["optimizer.lr=0.01"], ["optimizer.lr=0.02", "seed=3"]),
    "rmsprop": (["optimizer.alpha=0.9"], ["optimizer.lr=0.01"]),
    "adagrad": (["optimizer.lr=0.1"], ["optimizer.lr=0.2", "seed=3"]),
    "adadelta": (["optimizer.rho=0.8"], ["optimizer.lr=0.5"]),
    "adamax": (["optimizer.betas=[0.8,0.99]"], ["optimizer.lr=0.01"]),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer: str, double: None, stacks: list[int]) -> None:
    same((*WORDS, f"optimizer={optimizer}"), OPTIMIZERS[optimizer], stacks)


REGULARIZERS = {
    "l1": (["regularizer.l1.weight=0.01"], ["regularizer.l1.weight=0.001"]),
    "elastic_net": (["regularizer.elastic_net.weight=0.01"], ["regularizer.elastic_net.ratio=0.2"]),
    "max_norm": (["regularizer.max_norm.limit=0.3"], ["regularizer.max_norm.limit=0.5"]),
    "activity": (["regularizer.activity.l1=0.01"], ["regularizer.activity.l1=0.1"]),
    "mixup": (["seed=1"], ["seed=2", "regularizer.mixup.alpha=0.5"]),
    "label_smoothing": (["loss.label_smoothing=0.1"], ["loss.label_smoothing=0.3"]),
    "[noise,dropout,l2]": (["model.dropout=0.2", "seed=1"], ["regularizer.noise.std=0.5", "seed=2"]),
}


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_every_regularizer(regularizer: str, double: None, stacks: list[int]) -> None:
    same((*WORDS, f"regularizer={regularizer}", "model.hidden=[8,8]"), REGULARIZERS[regularizer], stacks)


NETWORKS = {
    "linear": ["model=linear"],
    "batch norm": ["model=mlp", "model.hidden=[8]", "model.norm=batch"],
    "resmlp": ["model=resmlp", "model.width=8", "model.depth=2", "model.dropout=0.1"],
    "cnn": ["model=cnn", "model.channels=[4,8]"],
    "residual": ["model=cnn", "model.channels=[4,4]", "model.residual=true", "model.norm=layer"],
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network(network: str, double: None, stacks: list[int]) -> None:
    """Adam divides rounding by rounding where a gradient is as good as zero, as behind a batch norm: sgd does not."""
    words = ("data=digits", "data.rows=200", "data.split.seed=0", "epochs=3", "optimizer=sgd", "trainer.threads=1")
    same((*words, *NETWORKS[network]), LRS, stacks)


@pytest.mark.parametrize("task", ["autoencoder", "vae", "diffusion", "contrastive", "clustering"])
def test_every_task_of_one_player(task: str, double: None, stacks: list[int]) -> None:
    same((*WORDS, f"task={task}"), LRS, stacks)


@pytest.mark.parametrize("data", ["diabetes", "breast_cancer"])
def test_other_targets_and_rows_of_their_own(data: str, double: None, stacks: list[int]) -> None:
    """Each seed has its own split: other rows to learn from, and another scale of the target."""
    same((f"data={data}", "data.rows=150", "epochs=3", "model.hidden=[8]", "trainer.threads=1"), LRS, stacks)


def test_clipping_averages_and_schedules(double: None, stacks: list[int]) -> None:
    words = ("clip_norm=0.5", "ema=0.9", "scheduler=cosine", "evaluate_every=5steps")
    ones, others = same((*WORDS, *words), LRS, stacks)
    assert any("ema" in key for key in tensors(ones[0]))
    assert apart(ones[0], others[1]) > 1e-3  # the comparison can fail


@pytest.mark.parametrize("network", [["model=mlp", "model.hidden=[8]"], *NETWORKS.values()], ids=" ".join)
def test_a_hundred_steps_in_float64(network: list[str], double: None, stacks: list[int]) -> None:
    words = ("data=wine", "data.split.seed=0", "batch_size=8", "epochs=7", "trainer.threads=1")
    ones, _ = same((*words, *network), LRS, stacks)
    assert ones[0].steps[-1] > 100


def test_a_hundred_steps_in_float32(stacks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    common = (*WORDS, "batch_size=8", "epochs=7", "model.hidden=[32,32]")
    together(common, LRS, "single")
    ones, others = found("single"), alone(common, LRS, "alone-single")
    for one, other in zip(ones, others, strict=True):
        assert one.steps[-1] > 100
        mine, its = tensors(one), tensors(other)
        norms = [
            float((mine[k] - its[k]).norm() / its[k].norm()) for k in mine if k.startswith("model") and its[k].ndim
        ]
        assert torch.tensor(norms).median() < 1e-6
        assert one.curve("train/loss") == pytest.approx(other.curve("train/loss"), abs=1e-4)
        assert one.curve("valid/loss") == pytest.approx(other.curve("valid/loss"), abs=1e-4)


def test_members_that_stop_early_leave(double: None, stacks: list[int]) -> None:
    each = [(*own, f"regularizer.early_stopping.patience={k + 1}") for k, own in enumerate(LRS)]
    words = (*WORDS, "regularizer=early_stopping", "epochs=12", "optimizer.weight_decay=0.5", "monitor=valid/accuracy")
    ones, _ = same(words, each, stacks)
    assert len({run.result["epochs"] for run in ones}) > 1
    assert stacks[:2] == [3, 2]


def test_a_member_whose_loss_is_not_finite_ends_as_it_does_alone(stacks: list[int]) -> None:
    common, each = (*WORDS, "optimizer=sgd"), (("optimizer.lr=1e30",), ("optimizer.lr=0.01",), ("optimizer.lr=0.02",))
    codes = together(common, each)
    assert codes == [76, 0, 0]
    with pytest.raises(Exception, match="became infinite or not a number") as alike:
        alone(common, each[:1])
    [failed] = [run for run in found("together") if run.result["status"] == "failed"]
    assert failed.result["reason"] == str(alike.value)
    assert stacks[:2] == [3, 2]


def test_a_finished_run_is_left_as_it_is_and_a_wrong_one_fails_alone() -> None:
    alone(WORDS, LRS[:1], "together")
    [before] = [run.read("result.json") for run in found("together")]
    codes = together((*WORDS, "monitor=valid/nothing"), LRS[:1]) + together(WORDS, LRS)
    assert codes == [2, 0, 0, 0]
    assert before in [run.result for run in found("together")]
    assert len(found("together")) == 3


SCRIPT = """
    import json, sys
    from dltrain.compose import compose
    from dltrain.together.train import train_together
    words = json.loads(sys.argv[1])
    sys.exit(max(train_together([compose(typed) for typed in words], words, forced=True)))
"""


def killed(words: Sequence[Words], fault: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps([list(typed) for typed in words])]
    env = {**os.environ, "DLTRAIN_FAULT": fault, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, check=False).returncode


@pytest.mark.parametrize(("fault", "code"), [("batch:kill:14", -signal.SIGKILL), ("batch:term:14", 75)])
def test_what_was_stopped_goes_on_alone_or_together(fault: str, code: int, stacks: list[int]) -> None:
    common = (*WORDS, "trainer.save_every=3steps")
    whole = alone(common, LRS, "whole")
    words = [[*common, *own, "output_root=stopped"] for own in LRS]
    assert killed(words, fault) == code
    assert all(run.steps[-1:] < whole[0].steps[-1:] for run in found("stopped"))
    assert code < 0 or all(run.steps for run in found("stopped"))
    alone(common, LRS[:1], "stopped")
    assert together(common, LRS, "stopped") == [0, 0, 0]
    assert stacks == [2] or code < 0  # a kill may catch one of two checkpoints on its way to the disk
    for one, other in zip(found("stopped"), whole, strict=True):
        assert apart(one, other) < 1e-4
        assert [line["step"] for line in one.records] == [line["step"] for line in other.records]
        assert records_differ(one, other) < 1e-4


def test_a_run_that_began_alone_goes_on_together(double: None, stacks: list[int]) -> None:
    whole = alone(WORDS, LRS, "whole")
    for own in LRS:
        words = [*WORDS, *own, "output_root=together"]
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(Exception, match="stopped"):
            stop_at(5, words)
    assert together(WORDS, LRS) == [0, 0, 0]
    assert stacks == [3]
    assert all(apart(one, other) < 1e-9 for one, other in zip(found("together"), whole, strict=True))


def stop_at(step: int, words: list[str]) -> None:
    """Train until a step, as a signal would stop it there."""
    from dltrain.train import Training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_until_due", lambda self: 1)
        patch.setattr(Training, "_agreed", lambda self, ended: (self.position.step == step, False))
        train(compose(words), words)


def test_fingerprints_are_of_the_same_rows_and_numbers(stacks: list[int]) -> None:
    from dltrain.fingerprint.file import read

    together(WORDS, LRS)
    for one, other in zip(found("together"), alone(WORDS, LRS), strict=True):
        mine, its = (read(run.folder) for run in (one, other))
        assert len(mine) == len(its) == one.result["steps"]
        for name in ("step", "move", "player", "rows", "settings", "lr"):
            assert (mine[name] == its[name]).all(), name
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)
        assert mine["weights"][0] == its["weights"][0]


def config(*words: str) -> dict[str, Any]:
    return compose([*WORDS, *words])


def test_who_goes_together() -> None:
    one = config()
    alike = ("optimizer.lr=0.1", "seed=3", "optimizer.weight_decay=0.2", "model.dropout=0.0", "optimizer.eps=1e-6")
    for word in alike:
        assert groups([one, config(word)]) == [[0, 1]], word
    others = (
        *("model.hidden=[9]", "batch_size=8", "epochs=4", "optimizer=sgd", "data=iris", "clip_norm=1", "ema=0.9"),
        *("model.dropout=0.1", "optimizer.weight_decay=0", "regularizer=l1", "pipeline=pca", "activation=tanh"),
        *("optimizer.amsgrad=true", "task=autoencoder", "data.split.valid=0.2", "loss.label_smoothing=0.1"),
    )
    for word in others:
        assert groups([one, config(word)]) == [[0], [1]], word
    assert groups([one, config("model.hidden=[9]"), config("seed=1"), config("model.hidden=[9]", "seed=1")]) == [
        [0, 2],
        [1, 3],
    ]


@pytest.mark.parametrize(
    "words",
    [
        *(["exact=true"], ["optimizer=muon"], ["optimizer=rprop"], ["task=gan"], ["shards=2"], ["trainer=ddp"]),
        *(["precision=bfloat16"], ["trainer.compile=true"], ["model.freeze=[body]"], ["model.layer_decay=0.8"]),
        ["model=tabm"],
    ],
    ids=" ".join,
)
def test_who_is_trained_alone(words: list[str]) -> None:
    typed = [*WORDS[:4], *words] if words[0].startswith("model=") else [*WORDS, *words]
    assert not fits(compose(typed))
    assert groups([compose([*typed, "seed=1"]), compose([*typed, "seed=2"])]) == [[0], [1]]


def test_warnings_of_all_are_said_once(capsys: pytest.CaptureFixture[str], stacks: list[int]) -> None:
    common = ("data=csv", "data.path=rows.csv", "data.target=y", "epochs=1", "model.hidden=[4]", "report=false")
    Path("rows.csv").write_text("a,same,y\n" + "".join(f"{k},{k % 2},{'ab'[k % 2]}\n" for k in range(40)))
    words = [[*common, f"seed={seed}", "data.split.seed=0"] for seed in range(2)]
    assert train_together([compose(own) for own in words], words, forced=True, quiet=True) == [0, 0]
    assert stacks == [2]
    told = " ".join(capsys.readouterr().out.split())
    names = [run.folder.name for run in found("outputs")]
    assert told.count("column same all but equals") == told.count("are copies of training rows") == 1
    assert sum(f"warning: {name}: column same" in told for name in names) == 1


@pytest.mark.parametrize(
    ("n", "words", "stack"),
    [
        (6, [], [6]),
        (5, [], []),  # too few
        (6, ["model.hidden=[256,256]"], []),  # a large network
        (6, ["model.hidden=[140]", "data=digits", "batch_size=512"], []),  # a large step of a small one
        (6, ["model.hidden=[140]", "data=digits"], [6]),
    ],
)
def test_what_is_stacked_is_decided_by_counts(n: int, words: list[str], stack: list[int], stacks: list[int]) -> None:
    seeds = [[f"seed={k}"] for k in range(n)]
    common = (*WORDS, "epochs=1", *words)
    assert together(common, seeds, forced=False) == [0] * n
    assert stacks == stack
    assert {run.result["together"] for run in found("together")} == {n if stack else 1}
    assert together(common, seeds, "forced") == [0] * n
    assert stacks == [*stack, n]


def test_what_torch_func_does_not_know_is_trained_one_by_one(
    stacks: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reads_numbers(self: Any, batch: Any) -> Any:
        assert float(batch["features"].sum()) == float(batch["features"].sum())
        yield "network", *self._loss(self._output(batch), batch)

    monkeypatch.setattr("dltrain.tasks.supervised.Supervised.losses", reads_numbers)
    words = [[*WORDS, *own, "output_root=together"] for own in LRS]
    assert train_together([compose(typed) for typed in words], words, forced=True) == [0, 0, 0]
    assert stacks == []
    assert [run.result["status"] for run in found("together")] == ["finished"] * 3
    told = " ".join(capsys.readouterr().out.split())
    assert "these 3 runs cannot be trained side by side: vmap: It looks like you're calling .item() on a Tensor" in told
    assert "they are trained one by one" in told


def test_numbers_of_each() -> None:
    number: Any = Varied.of([0.5, 2.0])
    assert (1 - number**2).each.tolist() == [0.75, -3.0]
    assert (number * 2 / number).each.tolist() == [2.0, 2.0]
    assert number != 0
    assert number > 0.1
    assert Varied.of([3.0, 3.0]) == 3.0
    assert float(number) != float(number)  # who takes it for one number has none
    with pytest.raises(Disagree):
        assert number > 1


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("classes", [3, 40])  # few and many
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_members_is_torchs(weighted: bool, soft: bool, classes: int, reduction: str) -> None:
    """Its values and its gradients, of each member with a share of smoothing of its own, or the same for all."""
    n, rows = 4, 7
    output, target = torch.randn(n, rows, classes, dtype=torch.float64), torch.randint(classes, (n, rows))
    target = torch.rand(n, rows, classes, dtype=torch.float64).softmax(2) if soft else target
    weight = torch.rand(classes, dtype=torch.float64) if weighted else None
    shares = [0.0, 0.1, 0.1, 0.4]
    for share, each in ((0.0, [0.0] * n), (0.2, [0.2] * n), (Varied.of(shares), shares)):
        draws = Draws([torch.Generator()] * n)

        def one(output: Tensor, target: Tensor, member: Tensor, share: float = share, draws: Draws = draws) -> Tensor:
            draws.members = member
            return F.cross_entropy(output, target, weight, reduction=reduction, label_smoothing=share)

        mine, alone = output.clone().requires_grad_(), output.clone().requires_grad_()
        with draws:
            found = torch.func.vmap(one)(mine, target, torch.arange(n))
        wanted = torch.stack(
            [
                F.cross_entropy(alone[k], target[k], weight, reduction=reduction, label_smoothing=each[k])
                for k in range(n)
            ]
        )
        (found.square().sum() + wanted.square().sum()).backward()
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.grad, alone.grad, rtol=1e-12, atol=1e-12)


def test_smoothing_of_each_is_never_left_out() -> None:
    """Torch takes a share that is not a number for none."""
    draws = Draws([torch.Generator()] * 2)
    output, target = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    share = Varied.of([0.1, 0.2])
    for given in ({"reduction": "mean"}, {"reduction": "sum", "ignore_index": 0}):
        with draws, pytest.raises(Disagree):
            torch.func.vmap(lambda x, y, given=given: F.cross_entropy(x, y, label_smoothing=share, **given))(
                output, target
            )

"""DDP and FSDP compute what a single device computes: real runs of one, two and four ranks, bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from faults.forks import Server
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from dltrain.bundle import Model

WORLDS = [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4)]
# 201 steps of 155 rows, with 17 or 18 rows in the last of each epoch's nine batches; see test_a_batch_with_fewer_rows
FULL = ["data=digits", "batch_size=155", "epochs=23", "clip_norm=0.5", "scheduler=cosine", "ema=0.98", "seed=7"]
SMALL = ["data=digits", "data.rows=300", "model.hidden=[16]", "epochs=2"]
TWO_PLAYERS = """
import torch
from torch import nn
from dltrain.tasks.task import Task


class Pair(Task):
    # a generator and a critic, each of which moves with the help of the other

    draws = True

    def __init__(self, data):
        super().__init__()
        n = data.shape_in[0]
        self.critic = nn.Sequential(nn.Linear(n, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n))

    def losses(self, batch):
        real = batch["features"]
        made = self.generator(torch.randn(len(real), 4)).detach()
        loss = nn.functional.softplus(-self.critic(real)) + nn.functional.softplus(self.critic(made))
        yield "critic", loss.sum(), len(real)
        made = self.generator(torch.randn(len(real), 4))
        yield "generator", nn.functional.softplus(-self.critic(made)).sum(), len(real)

    def predictions(self, batch):
        return self.critic(batch["features"])
"""


def trained(
    server: Server, folder: Path, words: list[str], trainer: str = "single", ranks: int = 1, **more: str
) -> Path:
    """The folder of a run that ended well."""
    folder.mkdir(exist_ok=True)
    root = folder / f"{trainer}{ranks}"
    code, said = server.run(
        [*words, f"trainer={trainer}", "name=run", f"output_root={root}"], folder, ranks=ranks, seconds=300, **more
    )
    assert code == 0, said
    return root / "run"


def result(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "rows_per_second")} for line in lines]


def bits(run: Path) -> tuple[Any, ...]:
    """What must be the same wherever a run was computed."""
    found = result(run)
    newest = max((run / "checkpoints").glob("step-*"))
    return found["weights_sha256"], found["valid"], found["test"], records(run), checkpoint(newest)


def checkpoint(folder: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint as bytes."""
    return {
        f"{path.name} {name}": (value.dtype, value.shape, value.numpy().tobytes())
        for path in folder.glob("*.safetensors")
        for name, value in load_file(path).items()
    }


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("linear regularizer=[l1,noise,mixup,max_norm]", marks=pytest.mark.slow),
        "mlp model.hidden=[48,33] model.dropout=0.2 regularizer=[l2,mixup,max_norm]",
        pytest.param(
            "resmlp model.width=32 model.depth=2 model.dropout=0.2 regularizer=[elastic_net,mixup,activity]",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "cnn model.channels=[8,9] model.dropout=0.3 regularizer=[l2,mixup,max_norm]", marks=pytest.mark.slow
        ),
    ],
    ids=lambda words: words.split()[0],
)
def test_exact_is_the_same_bits_on_every_trainer(model: str, server: Server, tmp_path: Path) -> None:
    words = [*FULL, *f"model={model}".split(), "exact=true", "shards=4", "trainer.save_every=50steps"]
    single = trained(server, tmp_path, words)
    assert result(single)["steps"] >= 200
    assert (records(single)[-1]["train/loss"]) < records(single)[0]["train/loss"]
    for trainer, ranks in WORLDS:
        run = trained(server, tmp_path, words, trainer, ranks)
        assert result(run)["processes"] == ranks
        assert bits(run) == bits(single), f"{trainer} x {ranks}"


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_without_exact_losses_agree_and_the_same_world_repeats_itself(
    trainer: str, server: Server, tmp_path: Path
) -> None:
    words = [*FULL, "model.hidden=[48,33]", "model.dropout=0.2", "regularizer=[l2,mixup]", "shards=4", "epochs=3"]
    single, spread = trained(server, tmp_path, words), trained(server, tmp_path, words, trainer, 2)
    again = trained(server, tmp_path / "again", words, trainer, 2)
    assert bits(spread) == bits(again)
    losses = [[record["train/loss"] for record in records(run)] for run in (single, spread)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert result(spread)["test"]["loss"] == pytest.approx(result(single)["test"]["loss"], rel=1e-5)


@pytest.mark.parametrize(("trainer", "ranks"), WORLDS)
def test_a_batch_with_fewer_rows_than_ranks(trainer: str, ranks: int, server: Server, tmp_path: Path) -> None:
    """The last batch of an epoch has one row: all ranks but one are without."""
    words = [*SMALL, "exact=true", "shards=4", "data.split.kind=random", "model.dropout=0.1", "clip_norm=1"]
    single = trained(server, tmp_path, [*words, "batch_size=19"])
    n_rows = json.loads((single / "data.json").read_text())["splits"]["train"]
    assert n_rows % 19 == 1, "what this test is about"
    assert bits(trained(server, tmp_path, [*words, "batch_size=19"], trainer, ranks)) == bits(single)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_world_of_one(trainer: str, server: Server, tmp_path: Path) -> None:
    words = [*SMALL, "exact=true", "shards=8", "model.dropout=0.1", "clip_norm=1"]
    assert bits(trained(server, tmp_path, [*words, "trainer.devices=1"], trainer)) == bits(
        trained(server, tmp_path, words)
    )


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "adadelta", "adamax", "nadam", "radam", "rmsprop", "rprop", "asgd"])
def test_every_elementwise_optimizer_moves_pieces_as_it_moves_the_whole(
    kind: str, server: Server, tmp_path: Path
) -> None:
    words = [*SMALL, f"optimizer={kind}", "exact=true", "shards=2", "clip_norm=1"]
    assert bits(trained(server, tmp_path, words, "fsdp", 2)) == bits(trained(server, tmp_path, words))


@pytest.mark.parametrize(("trainer", "ranks"), WORLDS)
def test_two_players_are_wrapped_one_by_one(trainer: str, ranks: int, server: Server, tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(TWO_PLAYERS)
    (tmp_path / "configs" / "task").mkdir(parents=True)
    (tmp_path / "configs" / "task" / "pair.yaml").write_text("_target_: pairs.Pair\n")
    words = ["data=iris", "task=pair", "trust=[pairs]", "epochs=4", "batch_size=25", "exact=true", "shards=4"]
    words += ["optimizer.lr=0.05", "clip_norm=1", "ema=0.9"]
    path = "import sys; sys.path.insert(0, '')"
    single = trained(server, tmp_path, words, patch=path)
    assert {"train/critic_loss", "train/generator_loss"} <= records(single)[-1].keys()
    assert bits(trained(server, tmp_path, words, trainer, ranks, patch=path)) == bits(single)


@pytest.mark.parametrize(
    "setting",
    ["precision=bfloat16", "trainer.activation_checkpointing=true", "optimizer=muon", "optimizer=adafactor"],
)
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_settings_mean_the_same_on_every_trainer(setting: str, trainer: str, server: Server, tmp_path: Path) -> None:
    words = [*SMALL, "model.hidden=[16,16]", "model.dropout=0.2", "exact=true", "shards=2", setting]
    if trainer == "fsdp" and setting.startswith("optimizer"):
        said = server.run([*words, "trainer=fsdp"], tmp_path, ranks=2)
        assert said[0] == 2
        assert said[1].count("looks at whole tensors; trainer=ddp keeps them whole") == 1, "rank 0 alone speaks"
        assert not list((tmp_path / "outputs").glob("*"))
        return
    single = trained(server, tmp_path, words)
    assert bits(trained(server, tmp_path, words, trainer, 2)) == bits(single)


COUNT_FORWARD = """
import atexit
from torch import nn
calls = []
forward = nn.Linear.forward
nn.Linear.forward = lambda self, x: calls.append(1) or forward(self, x)
from dltrain import train
course = train.Training.course
def counted(self):
    yield from course(self)
    print("forward passes", len(calls))
train.Training.course = counted
"""


def test_activation_checkpointing_computes_blocks_again(server: Server, tmp_path: Path) -> None:
    words = [*SMALL, "model.hidden=[16,16]"]
    counts = []
    for asked in ("false", "true"):
        typed = [*words, f"trainer.activation_checkpointing={asked}", f"name={asked}"]
        code, said = server.run(typed, tmp_path, patch=COUNT_FORWARD)
        assert code == 0, said
        counts.append(int(said.partition("forward passes ")[2].split()[0]))
    assert counts[1] > 1.4 * counts[0]


COUNT_LOADS = """
import os
from dltrain.data import bundled
load = bundled.Bundled.load
def counted(self):
    open(f"loads-{os.getpid()}", "w")
    return load(self)
bundled.Bundled.load = counted
"""


def test_rows_are_prepared_once_and_mapped_by_all(server: Server, tmp_path: Path) -> None:
    run = trained(server, tmp_path, SMALL, "ddp", 4, patch=COUNT_LOADS)
    assert len(list(tmp_path.glob("loads-*"))) == 1
    assert not list(run.glob(".rows*"))


def test_every_row_is_evaluated_once_and_in_order(server: Server, tmp_path: Path) -> None:
    """Metrics of a run on four ranks, in chunks of which none divides the rows, are those of its bundle here."""
    small = "from dltrain import evaluate; evaluate.CHUNK_ROWS = evaluate.CHUNK_NUMBERS = 1"  # chunks of 16 rows
    run = trained(server, tmp_path, [*SMALL, "data.split.test=0.31"], "fsdp", 4, patch=small)
    description = json.loads((run / "data.json").read_text())
    assert description["splits"]["test"] % 16
    assert (-(-description["splits"]["test"] // 16)) % 4, "some rank has a chunk less than another"
    assert evaluated(run) == pytest.approx({k: v for k, v in result(run)["test"].items() if k != "loss"}, rel=1e-6)


def evaluated(run: Path) -> dict[str, float]:
    """The metrics of a run's test rows, by its bundle, in this process."""
    import yaml

    from dltrain.build import Builder

    builder = Builder(yaml.safe_load((run / "config.yaml").read_text()))
    builder.handed["pipeline"] = builder.parts("pipeline")
    test = builder.part("data")().load().test
    return Model.load(run / "model").score(test["features"], test)


def test_predict_on_three_ranks_is_predict_on_one(server: Server, tmp_path: Path) -> None:
    trained(server, tmp_path, SMALL)
    digits = load_digits(as_frame=True).frame.drop(columns="target")
    digits.to_csv(tmp_path / "new.csv", index=False)
    words = ["predict", "run=single1/run", "input=new.csv", "rows=400"]
    for ranks in (1, 3):
        code, said = server.run([*words, f"out={ranks}.csv"], tmp_path, ranks=ranks)
        assert code == 0, said
        assert said.count("1,797 rows") == 1
    assert (tmp_path / "3.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()
    assert pd.read_csv(tmp_path / "3.csv")["row"].tolist() == list(range(len(digits)))


def test_what_one_rank_cannot_predict_is_said_once(server: Server, tmp_path: Path) -> None:
    trained(server, tmp_path, SMALL)
    digits = load_digits(as_frame=True).frame.drop(columns="target").astype(object)
    digits.iloc[700, 3] = "abc"  # in the second chunk, rank 1's
    digits.to_csv(tmp_path / "new.csv", index=False)
    words = ["predict", "run=single1/run", "input=new.csv", "rows=400", "out=p.csv"]
    one, two = (server.run(words, tmp_path, ranks=ranks) for ranks in (1, 2))
    assert one == two
    assert one[0] == 65
    assert not (tmp_path / "p.csv").exists()


def test_a_run_moves_between_trainers(server: Server, tmp_path: Path) -> None:
    """fsdp x 4, then single, then ddp x 2 each do a part of one run, which ends in the bits of one place."""
    words = [
        *FULL,
        "model.hidden=[48,33]",
        "model.dropout=0.2",
        "exact=true",
        "shards=4",
        "epochs=6",
        "regularizer=[l2]",
    ]
    words += ["trainer.save_every=5steps", "evaluate_every=4steps"]
    whole = trained(server, tmp_path, words)
    for trainer, ranks, fault in (("fsdp", 4, "batch:kill:22"), ("single", 1, "batch:kill:10"), ("ddp", 2, "")):
        typed = [*words, f"trainer={trainer}", "name=run", "output_root=moved"]
        code, said = server.run(typed, tmp_path, ranks=ranks, **({"FAULT": fault} if fault else {}))
        assert (code == 0) == (not fault), said
    assert bits(tmp_path / "moved" / "run") == bits(whole)
    assert "trainer: ddp" in (tmp_path / "moved" / "run" / "config.yaml").read_text()
    load_digits(as_frame=True).frame.drop(columns="target").to_csv(tmp_path / "new.csv", index=False)
    for root in ("moved", "single1"):
        code, said = server.run(["predict", f"run={root}/run", "input=new.csv", f"out={root}.csv"], tmp_path)
        assert code == 0, said
    assert (tmp_path / "moved.csv").read_bytes() == (tmp_path / "single1.csv").read_bytes()


def test_unused_parameters_are_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(
        "from dltrain.models.mlp import MLP\n"
        "from torch import nn\n"
        "class Lazy(MLP):\n"
        "    def __init__(self, shape_in, shape_out, hidden=(8,)):\n"
        "        super().__init__(shape_in, shape_out, hidden=hidden)\n"
        "        self.idle = nn.Linear(2, 2)\n"
    )
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "lazy.yaml").write_text("_target_: lazy.Lazy\nhidden: [8]\n")
    words = ["data=iris", "model=lazy", "trust=[lazy]", "epochs=2", "shards=2", "exact=true"]
    path = "import sys; sys.path.insert(0, '')"
    code, said = server.run([*words, "trainer=ddp"], tmp_path, ranks=2, patch=path)
    assert code == 2
    assert said.count("leaves some parameters unused, got ddp") == 1
    shutil.rmtree(tmp_path / "outputs")
    assert bits(trained(server, tmp_path, words, "fsdp", 2, patch=path)) == bits(
        trained(server, tmp_path, words, patch=path)
    )


def test_what_is_not_public_in_torch_is_there() -> None:
    """FSDP2 asks a custom reduce-scatter of this shape; DDP's buckets name their parameters."""
    from torch.distributed.fsdp import FSDPModule

    from dltrain.distributed.fsdp import TreeScatter

    private = pytest.importorskip("torch.distributed.fsdp._fully_shard._fsdp_api").ReduceScatter
    assert callable(FSDPModule.set_custom_reduce_scatter)
    assert private.__abstractmethods__ == {"allocate", "__call__"}
    assert all(callable(getattr(TreeScatter, name)) for name in private.__abstractmethods__)
    assert {"buffer", "parameters", "gradients"} <= set(dir(torch.distributed.GradBucket))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_on_all_gpus(trainer: str, server: Server, tmp_path: Path) -> None:
    words = [*FULL, "model=cnn", "exact=true", f"shards={max(2, torch.cuda.device_count())}"]
    single = trained(server, tmp_path, words)
    assert bits(trained(server, tmp_path, words, trainer, torch.cuda.device_count())) == bits(single)


def test_samples_are_the_same_wherever_a_run_trains(server: Server, tmp_path: Path) -> None:
    """A part of the network is asked for rows, which FSDP's pieces alone could not answer."""
    words = [*SMALL, "task=vae", "exact=true", "shards=2", "sample_every=1"]
    expected = trained(server, tmp_path, words)
    for trainer in ("ddp", "fsdp"):
        run = trained(server, tmp_path, words, trainer, 2)
        for name in ("epoch-00001.png", "epoch-00002.png"):
            assert (run / "samples" / name).read_bytes() == (expected / "samples" / name).read_bytes()


def test_rows_that_cannot_be_told_keep_no_rank_waiting(server: Server, tmp_path: Path) -> None:
    """Rank 0 alone finds out; FSDP's ranks bring the weights together at every epoch all the same."""
    step = ["pipeline=none", "+pipeline.poly._target_=sklearn.preprocessing.PolynomialFeatures"]
    words = ["data=iris", "model.hidden=[8]", "epochs=3", "task=vae", "sample_every=1", *step]
    run = trained(server, tmp_path, words, "fsdp", 2)
    assert result(run)["epochs"] == 3
    assert not (run / "samples").exists()

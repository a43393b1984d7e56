"""Every network with every learning problem that fits, on every trainer: two epochs, in the same bits."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.forks import Server
from safetensors.torch import load_file

from dltrain.build import Builder
from dltrain.choices import options

MODELS, TASKS = sorted(options("model")), sorted(options("task"))
DATA = {  # by what a task reads
    "features": ["data=digits", "data.rows=200", "batch_size=16"],
    "tokens": ["data=text", "data.path=text.txt", "data.length=8", "batch_size=32"],
    "pairs": ["data=pairs", "data.path=pairs.csv", "data.source=a", "data.target=b", "batch_size=16"],
}
TRAIN = [
    "epochs=2",
    "evaluate_every=4steps",
    "exact=true",
    "shards=2",
    "trainer.threads=1",
    "trainer.save_every=1epochs",
    "name=run",
    "report=false",
]
MAPS = {"decoder": {"diffusion", "vae"}, "unet": {"diffusion"}}  # networks of signals and images: what wants such
WHERE = [("single", 1), ("ddp", 2), ("fsdp", 2)]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_and_a_task(model: str, task: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    (tmp_path / "pairs.csv").write_text("a,b\n" + "".join(f"{k},{k + 1}\n" for k in range(100, 400)))
    wanted = reads("task", task)
    there = find_spec(getattr(kind("model", model), "needs", "dltrain"))  # the package of which it is made
    fits = reads("model", model) == wanted and task in MAPS.get(model, TASKS) and there
    found = {}
    for trainer, ranks in WHERE:
        words = [*DATA[wanted], *TRAIN, f"model={model}", f"task={task}", f"output_root={trainer}"]
        code, said = server.run([*words, f"trainer={trainer}"], tmp_path, ranks=ranks)
        if not fits:
            assert code == 2, said
            [sentence] = [line for line in said.splitlines() if line.startswith("dltrain: ")]
            assert f"model={model}" in sentence
            assert f"task={task}" in sentence
            return
        assert code == 0, said
        found[trainer] = json.loads((tmp_path / trainer / "run" / "result.json").read_text())["weights_sha256"]
    assert len(set(found.values())) == 1, found
    learnt(tmp_path / "single" / "run")


def reads(group: str, option: str) -> str:
    """What a network or a task reads, by its class."""
    return str(getattr(kind(group, option), "reads", "features"))


def kind(group: str, option: str) -> Any:
    """The class of a network or a task."""
    return Builder({group: yaml.safe_load(options(group)[option].read_text())}).kind(group)


def learnt(run: Path) -> None:
    """The loss of validation rows fell, and every parameter moved.

    Where two play against each other, what one wins the other loses again: it is enough that one of them was better.
    """
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "valid/loss" in record]
    players = [key for key in records[0] if key.startswith("valid/") and key.endswith("_loss")]
    if players:
        assert any(record[key] < records[0][key] for record in records[1:] for key in players)
    else:
        assert records[-1]["valid/loss"] < records[0]["valid/loss"]
    first, *_, last = sorted((run / "checkpoints").glob("step-*"))
    before, after = (load_file(folder / "model.safetensors") for folder in (first, last))
    moved = {".".join(name.split("|")[:2]) for name in load_file(last / "optim.safetensors")}
    assert moved
    assert [name for name in moved if after[name].equal(before[name])] == []

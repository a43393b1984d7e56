"""`dltrain reproduce`: the same bits on runs of each task, and the cause named where something is not as it was."""

import contextlib
import io
import json
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults.forks import Server
from runs import command, launch, working

from dltrain import cli
from dltrain.choices import options

SMALL = ["model.hidden=[8]", "batch_size=16", "epochs=3", "trainer.threads=1", "sample_every=null"]
CSV = ["data=csv", "data.path=rows.csv", "data.target=y", *SMALL]
ROWS = "a,b,y\n" + "".join(f"{k % 7},{k % 5}.5,{(k * k) % 11 / 2}\n" for k in range(90))
EQUAL = "the weights and the scores"
NETWORK = '''
"""A network."""

from torch import Tensor, nn


class Plain(nn.Module):
    def __init__(self, shape_in, shape_out, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape_in[0], width), nn.ReLU(), nn.Linear(width, shape_out[0]))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features) * 1.0
'''


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("reproduce")) as folder:
        Path("rows.csv").write_text(ROWS)
        launch(*CSV, name="table")
        yield folder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def reproduce(*words: str) -> tuple[int, list[str]]:
    """The exit code and the lines that were printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.run(["reproduce", *words])
    return code, said.getvalue().splitlines()


def causes(lines: list[str]) -> dict[str, tuple[str, str]]:
    """What is said to differ: as recorded, and here."""
    found: dict[str, tuple[str, str]] = {}
    tabled = False
    for line in lines:
        name, *values = line.split("  ")
        cells = [cell.strip() for cell in values if cell.strip()]
        if name.startswith("what differs"):
            tabled = True
        elif tabled and len(cells) == 2 and not line.startswith(" "):
            found[name.strip()] = cells[0], cells[1]
        else:
            tabled = False
    return found


def content(folder: Path | str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


DATA = {
    "language": ["data=text", "data.path=text.txt", "data.length=16", "model=gpt", "model.width=16", "model.depth=1"],
    "translation": ["data=pairs", "data.path=pairs.csv", "data.source=a", "data.target=b", "model=encoder_decoder"],
    "contrastive": ["model=cnn", "model.channels=[4]", "data.rows=200"],
    "diffusion": ["data.rows=200", "model.hidden=[8]"],
}
DATA["translation"] += ["model.width=16", "model.depth=1"]


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(options("task")))
def test_a_run_of_each_task_is_equal_to_the_bit(task: str) -> None:
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    Path("pairs.csv").write_text("a,b\n" + "".join(f"{k},{k + 1}\n" for k in range(100, 200)))
    words = DATA.get(task, ["data.rows=200", "model.hidden=[8]"])
    run = launch(*words, f"task={task}", "batch_size=32", "epochs=2", "trainer.threads=1", name=f"of-{task}")
    before = content(run.folder)
    code, lines = reproduce(f"run={run.name}")
    assert code == 0
    assert lines[-1].startswith("equal to the bit: ")
    assert lines[-1].endswith(EQUAL)
    assert "what differs" not in "\n".join(lines)
    assert content(run.folder) == before
    again = content(f"outputs/reproduced/{run.name}")
    assert again[f"outputs/reproduced/{run.name}/fingerprint"] == before[f"{run.folder}/fingerprint"]


def test_a_table_is_and_may_be_as_often_as_one_likes() -> None:
    for _ in range(2):
        code, lines = reproduce("run=table")
        assert code == 0
        assert lines[-1] == f"equal to the bit: 12 steps, {EQUAL}"
    assert [path.name for path in Path("outputs").iterdir() if path.name.startswith("table")] == ["table"]
    assert "reproduced" not in command("list", "runs")
    assert command("diff", "table", "outputs/reproduced/table").startswith("equal to the bit")


def test_one_changed_cell_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other rows.csv"
    other.write_text(ROWS.replace("\n4,2.5,0.5\n", "\n4,2.5,0.25\n", 1))
    assert other.read_text() != ROWS
    code, lines = reproduce("run=table", f"data.path={other}")
    assert code == 1
    assert causes(lines).keys() == {"content of data.path"}
    assert any(line.startswith("first different step: ") for line in lines)
    shutil.copy("rows.csv", other)
    assert reproduce("run=table", f"data.path={other}")[0] == 0  # where it is does not matter


@pytest.mark.parametrize(
    ("key", "old"), [("torch", "2.11.0"), ("scikit-learn", "1.5.0"), ("dltrain", "0.0.9"), ("python", "3.9.1")]
)
def test_one_changed_version_is_named(key: str, old: str, tmp_path: Path) -> None:
    run = shutil.copytree("outputs/table", tmp_path / "table")
    environment = json.loads((run / "environment.json").read_text())
    (environment if key == "python" else environment["versions"])[key] = old
    (run / "environment.json").write_text(json.dumps(environment))
    code, lines = reproduce(f"run={run}")
    assert code == 0  # the bits are the same all the same
    found = causes(lines)
    assert found.keys() == {key}
    assert found[key][0] == old


def test_a_run_that_went_on_under_another_version_tells(server: Server, tmp_path: Path) -> None:
    """Once for each that was another than the one before, and no more."""
    shutil.copy("rows.csv", tmp_path)
    words, run = [*CSV, "name=turns", "trainer.save_every=1steps"], tmp_path / "outputs/turns"
    assert server.run(words, tmp_path, FAULT="saved:kill:3")[0] == -signal.SIGKILL
    path = run / "environment.json"
    begun = json.loads(path.read_text())
    here = begun["versions"]["torch"]
    begun["versions"]["torch"] = "2.11.0"
    path.write_text(json.dumps(begun))
    for _ in range(2):
        assert server.run(["resume", "run=turns"], tmp_path, FAULT="saved:kill:1")[0] == -signal.SIGKILL
    assert server.run(["resume", "run=turns"], tmp_path)[0] == 0
    told = json.loads(path.read_text())
    assert {key: told[key] for key in begun} == begun
    assert [one["versions"]["torch"] for one in told["continued"]] == [here]
    code, lines = reproduce(f"run={run}")
    assert code == 0
    assert causes(lines)["torch"] == (f"2.11.0, then {here}", here)
    assert server.run(["resume", "run=turns", "epochs=4"], tmp_path)[0] == 0  # its beginning is a part of a longer one
    [longer] = (tmp_path / "outputs").glob("csv-*")
    code, lines = reproduce(f"run={longer}")
    assert code == 0
    assert causes(lines)["torch"] == (f"2.11.0, then {here}", here)


def test_dltrains_own_code_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dltrain.environment._source", lambda: "ab" * 32)
    code, lines = reproduce("run=table")
    assert code == 0
    assert causes(lines)["source of dltrain"][1] == "abababababab"


def test_another_thread_count_is_named() -> None:
    code, lines = reproduce("run=table", "trainer.threads=2")
    assert causes(lines) == {"threads": ("1", "2")}
    assert lines[-1].startswith("equal") or code == 1


def test_a_run_is_repeated_on_as_many_threads_as_it_had() -> None:
    words = [word for word in CSV if not word.startswith("trainer")]
    launch(*words, "trainer.threads=2", name="two")
    config = Path("outputs/two/config.yaml")
    config.write_text(config.read_text().replace("threads: 2", "threads: null"))  # as one that chose them itself
    code, lines = reproduce("run=two")
    assert code == 0
    assert causes(lines) == {}


def test_more_epochs_are_told_apart() -> None:
    code, lines = reproduce("run=table", "epochs=5")
    assert code == 1
    assert "equal to the bit in 12 steps, different after them" in lines
    assert "outputs/table has 12 steps, outputs/reproduced/table 20" in lines


def test_another_seed_is_named() -> None:
    code, lines = reproduce("run=table", "seed=1")
    assert code == 1
    assert causes(lines) == {"seed": ("0", "1")}
    assert "first different step: 0: rows" in lines


@pytest.mark.parametrize(("old", "new", "name"), [("seed: 0", "seed: 1", "seed"), ("lr: 0.001", "lr: 0.002", "lr")])
def test_a_config_that_was_edited_is_noticed(old: str, new: str, name: str, tmp_path: Path) -> None:
    run = shutil.copytree("outputs/table", tmp_path / "table")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"\n{old}", f"\n{new}").replace(f"\n  {old}", f"\n  {new}"))
    code, lines = reproduce(f"run={run}")
    assert code == 1
    found = causes(lines)
    assert found
    assert all(key.endswith(name) for key in found)


def test_a_changed_line_of_a_trusted_module_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "plain.yaml").write_text("# a network\n_target_: mine.Plain\nwidth: 4\n")
    (tmp_path / "mine.py").write_text(NETWORK)
    patch = "import sys; sys.path.insert(0, '')"
    words = ["data=iris", "model=plain", "trust=[mine]", "epochs=2", "trainer.threads=1", "name=own"]
    assert server.run(words, tmp_path, patch)[0] == 0
    again = ["reproduce", "run=own", "trust=[mine]"]
    code, said = server.run(again, tmp_path, patch)
    assert (code, causes(said.splitlines())) == (0, {})
    (tmp_path / "mine.py").write_text(NETWORK.replace("* 1.0", "* 1.25"))
    code, said = server.run(again, tmp_path, patch)
    assert code == 1
    assert causes(said.splitlines()).keys() == {"content of trust mine"}
    assert "first different step: 0: loss" in said
    code, said = server.run(again[:2], tmp_path, patch)
    assert code == 2
    assert "trust must name the modules" in said


def test_an_archive_is_reproduced_elsewhere(tmp_path: Path) -> None:
    command("pack", "run=table")
    with tarfile.open("table.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    shutil.copy("rows.csv", tmp_path / "moved.csv")
    Path("rows.csv").rename("elsewhere.csv")
    try:
        with contextlib.chdir(tmp_path):
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                assert cli.run(["reproduce", "run=table", "output_root=."]) == 65
            assert said.getvalue().endswith("; data.path=... says where the data is now\n")
            assert said.getvalue().count("\n") == 1
            assert not Path("reproduced").exists()
            code, lines = reproduce("run=table", "output_root=.", "data.path=moved.csv")
            assert code == 0
            assert causes(lines) == {}
    finally:
        Path("elsewhere.csv").rename("rows.csv")


def test_a_run_of_two_processes_is_reproduced_so_or_elsewhere_if_exact(server: Server, tmp_path: Path) -> None:
    words = ["data=iris", *SMALL, "exact=true", "shards=2", "trainer=ddp", "trainer.devices=2", "name=two"]
    assert server.run(words, tmp_path)[0] == 0
    code, said = server.run(["reproduce", "run=two"], tmp_path)
    assert code == 0
    assert causes(said.splitlines()) == {}
    code, said = server.run(["reproduce", "run=two", "trainer=single"], tmp_path)
    assert code == 0
    assert causes(said.splitlines()) == {"trainer": ("ddp", "single"), "processes": ("2", "1")}


def test_one_that_was_killed_is_repeated(server: Server, tmp_path: Path) -> None:
    words = ["data=iris", *SMALL, "epochs=6", "trainer.save_every=1epochs", "name=run"]
    assert server.run(words, tmp_path)[0] == 0
    before = content(tmp_path / "outputs" / "run")
    for place in ("publish", "saved", "finished"):
        code, _ = server.run(["reproduce", "run=run"], tmp_path, FAULT=f"{place}:kill")
        assert code == -signal.SIGKILL
        assert content(tmp_path / "outputs" / "run") == before
        code, said = server.run(["reproduce", "run=run"], tmp_path)
        assert code == 0, said
        assert "equal to the bit: 42 steps" in said


def test_one_without_a_fingerprint(tmp_path: Path) -> None:
    old = shutil.copytree("outputs/table", tmp_path / "old")
    (old / "fingerprint").unlink()
    (old / "environment.json").unlink()
    code, lines = reproduce(f"run={old}")
    assert code == 0
    assert lines[-1].startswith("equal to the bit: the weights and the scores")
    assert causes(lines) == {}


def test_what_is_refused(tmp_path: Path) -> None:
    half = shutil.copytree("outputs/table", tmp_path / "half")
    shutil.rmtree(half / "model")
    (half / "result.json").write_text('{"format": 1, "status": "stopped"}')
    for words, sentence in {
        (): "run must be given, as run=...",
        ("run=nothing",): "run must be a run in outputs, got nothing",
        (f"run={half}",): "run must be a finished run, got half, which is stopped",
        ("run=outputs/reproduced/table",): "run must be the run itself, got outputs/reproduced/table",
        ("run=table", "optimizer.lr=-1"): "optimizer.lr must be above 0, got -1",
        ("run=table", "sed=1"): "sed: no such setting",
        ("run=table", "data.path=nowhere.csv"): "nowhere.csv: no such file",
    }.items():
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert cli.run(["reproduce", *words]) in (2, 65)
        assert said.getvalue().removeprefix("dltrain: ").startswith(sentence)
        assert said.getvalue().count("\n") == 1

"""The command line as a process and in one: words, flags, exit codes, sweeps, completion, and what is not imported."""

import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import dltrain
from dltrain import cli
from dltrain.choices import groups, options
from dltrain.commands import commands, parse, parse_known
from dltrain.compose import compose
from dltrain.errors import ConfigError, DataError, Stopped

HEAVY = ("torch", "pandas", "sklearn", "numpy", "matplotlib", "torchmetrics", "scipy")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLTRAIN_CONFIGS", raising=False)
    return tmp_path


def typed(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dltrain", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "code", "hydra"),
    [
        (["--help"], 0, False),
        (["--version"], 0, False),
        (["list"], 0, False),
        (["list", "models"], 0, False),
        (["list", "runs"], 0, False),
        (["predict", "--help"], 0, False),
        (["predcit"], 2, False),
        (["predict", "inptu=3"], 2, False),
        (["--epochs", "5"], 2, False),
        (["--cfg", "job"], 0, True),
        (["data=csv", "data.path=été (1).csv", "--cfg", "job"], 0, True),
        (["model.droput=0.5", "optimizer.lr=abc"], 2, True),
        (["optimizer=adamv"], 2, True),
        (["model.hidden=[64,x"], 2, True),
        (["-m", "model=mlp,cn"], 2, True),
        (["-sc", "query=bash"], 0, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_first_words_are_light_and_leave_nothing(words: list[str], code: int, hydra: bool, here: Path) -> None:
    program = (
        "import sys, dltrain.cli as cli; code = cli.run(sys.argv[1:]);"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules];"
        f"assert not heavy, heavy; assert {hydra} or 'hydra' not in sys.modules; sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COMP_LINE": "dltrain model=m"},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{' '.join(words)}: {cpu:.3f} s of CPU")  # seen with -rP; a test never asserts a time
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (code == 0)
    assert bool(done.stderr) == (code != 0)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], f"trian: no such command; did you mean train? ({', '.join(commands())})"),
        (["Predict"], f"Predict: no such command; did you mean predict? ({', '.join(commands())})"),
        (
            ["houses.csv"],
            "houses.csv must be written as data=csv data.path=houses.csv data.target=<the column to predict>",
        ),
        (["--epochs", "5"], "--epochs must be written as epochs=5"),
        (["--epochs=5"], "--epochs=5 must be written as epochs=5"),
        (["--batch-size", "5"], "--batch-size must be written as batch_size=5"),
        (["--optimizer.lr"], "--optimizer.lr must be written as optimizer.lr=..."),
        (["--model", "cnn"], "--model must be written as model=cnn"),
        (["--cfg"], "--cfg must be followed by a value"),
        (["--cfg", "jop"], "--cfg must be job, hydra or all, got jop"),
        (["--cfg", "job", "-m"], "--cfg must be given without --multirun: it shows one config"),
        (["--cfg", "job", "-p", "modle"], None),
        (["--config-dir", "nowhere"], "--config-dir must be a folder, got nowhere"),
        (["--config-name", "other"], None),
        (["-sc"], "-sc must be followed by install=, uninstall= or query=, and bash or zsh or fish"),
        (["-sc", "install=tcsh"], "-sc must be followed by install=, uninstall= or query=, and bash or zsh or fish"),
        (["help", "trian"], f"trian: no such command; did you mean train? ({', '.join(commands())})"),
        (["init", "foo"], "foo must be written as key=value (out)"),
        (["init", "ou=x"], "ou: no such setting; did you mean out? (out)"),
        (["init", "--out", "x"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_text_of_every_error(
    words: list[str], message: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert all(line.startswith("dltrain: ") for line in lines)
    expected = {
        "--cfg job -p modle": "--package must be a part of the config, got modle; did you mean model?",
        "--config-name other": "--config-name is not a flag; settings are written as key=value; did you mean",
        "init --out x": "--out must be written as out=...",
    }
    if message:
        assert lines == [f"dltrain: {message}"]
    else:
        assert lines[0].startswith(f"dltrain: {expected[' '.join(words)]}")
    assert list(here.iterdir()) == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"dltrain {dltrain.__version__}\n"


def test_cfg_shows_the_config_that_would_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=csv", "data.path=[x] ${y}.csv", "data.columns.a b=number", "optimizer.lr=0.5"]
    assert cli.run([*words, "--cfg", "job"]) == 0
    text = capsys.readouterr().out
    assert "typed" not in text
    shown = yaml.safe_load(text)
    assert shown["optimizer"]["lr"] == 0.5
    assert shown["data"]["columns"] == {"a b": "number"}
    assert cli.run(["--cfg", "job", "-p", "optimizer"]) == 0
    config = compose([])
    assert yaml.safe_load(capsys.readouterr().out) == config["optimizer"]
    assert cli.run(["--cfg", "job", "--resolve", "seed=3", "-p", "data.split.seed"]) == 0
    assert capsys.readouterr().out == "3\n"
    assert cli.run(["--cfg", "hydra"]) == 0
    assert "sweep:" in capsys.readouterr().out
    assert "model/mlp" in typed("--info", "defaults").stdout  # in a process of its own: Hydra's logging stays on


def test_cfg_shows_a_config_that_lacks_what_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    Path("configs/data").mkdir(parents=True)
    Path("configs/data/own.yaml").write_text("_target_: dltrain.data.csv.CSV\npath: ???\n")
    assert cli.run(["data=own", "--cfg", "job"]) == 0
    assert "path: ???" in capsys.readouterr().out
    assert cli.run(["data=own", "--cfg", "job", "epochs=0"]) == 2


def test_config_dir_adds_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DLTRAIN_CONFIGS", "")  # what is set is restored afterwards
    for folder, name in (("configs", "one"), ("more", "two")):
        Path(folder, "model").mkdir(parents=True)
        Path(folder, "model", f"{name}.yaml").write_text("_target_: dltrain.models.mlp.MLP\nwidth: 3\n")
    assert cli.run(["--config-dir", "more", "model=two", "--cfg", "job"]) == 0
    assert cli.run(["model=one", "--cfg", "job"]) == 0
    capsys.readouterr()


def test_hydras_main_finds_the_users_configs() -> None:
    Path("configs/model").mkdir(parents=True)
    Path("configs/model/own.yaml").write_text("_target_: dltrain.models.mlp.MLP\nwidth: 3\n")
    assert "model/own" in typed("model=own", "--info", "defaults").stdout


ALONE = "sweep.together=false"  # trials one after another, each by commands.train


class Recorder:
    """Stands for training: keeps what it was called with, and ends as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Any], list[str]]] = []
        self.ends: list[int | BaseException] = []

    def __call__(self, config: dict[str, Any], words: list[str], opening: Callable[[str], None] = print) -> int:
        self.calls.append((config, words))
        end = self.ends.pop(0) if self.ends else 0
        if isinstance(end, BaseException):
            raise end
        return end


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr("dltrain.commands.train.train", recorder)
    return recorder


def test_train_gets_the_checked_config_and_the_words(train: Recorder) -> None:
    words = ["model=cnn", "optimizer.lr=1", "data=csv", "data.path=a b.csv", "data.target=x"]
    for prefix in ([], ["train"]):
        assert cli.run([*prefix, *words]) == 0
        config, got = train.calls.pop()
        assert got == words
        assert config == compose(words)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (ConfigError("a\nb"), 2, "dltrain: a\ndltrain: b\n"),
        (DataError("x"), 65, "dltrain: x\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 74, "dltrain: no space left on device: /x\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 74, "dltrain: permission denied: /x\n"),
        (Stopped("saved"), 75, "dltrain: saved\n"),
        (KeyboardInterrupt(), 130, ""),
        (7, 7, ""),
    ],
    ids=repr,
)
def test_exit_codes(end: Any, code: int, said: str, train: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    train.ends = [end]
    assert cli.run([]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("end", [RuntimeError("ours"), FileNotFoundError(errno.ENOENT, "ours")], ids=repr)
def test_our_own_bugs_keep_their_traceback(end: Exception, train: Recorder) -> None:
    train.ends = [end]
    with pytest.raises(type(end), match="ours"):
        cli.run([])


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m dltrain list optimizers | head -n 0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)  # 0 if the words were in the pipe before its reader went
    assert done.stderr == ""


def test_a_closed_pipe_exits_141() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    process = subprocess.Popen([sys.executable, "-m", "dltrain", "list"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_a_sweep_trains_every_combination(train: Recorder, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "-m",
        "model=mlp,linear",
        "seed=range(2)",
        "data=csv",
        "data.path=a,b (1).csv",
        "data.target=x",
        "name=two",
        ALONE,
    ]
    assert cli.run(words) == 0
    assert [(config["choices"]["model"], config["seed"]) for config, _ in train.calls] == [
        ("mlp", 0),
        ("mlp", 1),
        ("linear", 0),
        ("linear", 1),
    ]
    for config, typed_words in train.calls:
        assert config["name"] is None  # the name is the sweep's
        assert config["data"]["path"] == "a,b (1).csv"
        own = {"name": None, "sweep": config["sweep"], "report": False}  # the sweep has one
        assert {**compose(typed_words), **own} == config  # what resume will compose again
    folder = here / "outputs/sweeps/two"
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert [(line["trial"], line["exit"]) for line in lines] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert {path.name for path in folder.iterdir()} == {"trials.jsonl", "multirun.yaml"}
    assert {path.name for path in here.iterdir()} == {"outputs"}
    assert capsys.readouterr().out.endswith("sweep outputs/sweeps/two: 4 of 4 trials, 0 failed\n")


def test_a_sweep_goes_on_after_a_failed_trial(train: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    train.ends = [DataError("no rows"), 0, RuntimeError("ours")]
    assert cli.run(["-m", "seed=0,1,2,3", "name=s", ALONE]) == 1
    assert len(train.calls) == 4
    said = capsys.readouterr()
    assert said.out.splitlines()[-3:] == [
        "sweep outputs/sweeps/s: 4 of 4 trials, 2 failed",
        "  trial 1  exit 65  seed=0  no rows",
        "  trial 3  exit 1  seed=2  RuntimeError: ours",
    ]
    assert "dltrain: no rows\n" in said.err
    assert "Traceback" in said.err


def test_a_stopped_sweep_stops(train: Recorder) -> None:
    train.ends = [0, Stopped("saved")]
    assert cli.run(["-m", "seed=0,1,2,3", ALONE]) == 75
    assert len(train.calls) == 2
    assert cli.run(["-m", "seed=0,1,2,3", ALONE]) == 0  # the same command goes on with what has not ended
    assert len(train.calls) == 5
    assert cli.run(["-m", "seed=0,1,2,3", ALONE]) == 0
    assert len(train.calls) == 5


def test_the_same_sweep_has_the_same_folder(train: Recorder, here: Path) -> None:
    for words in (["seed=0,1", "epochs=2"], ["epochs=2", "seed=0,1"], ["seed=0,1", "epochs=3"]):
        assert cli.run(["-m", *words]) == 0
    assert len(list((here / "outputs/sweeps").iterdir())) == 2


def test_a_sweep_says_what_is_wrong_before_its_first_trial(
    train: Recorder, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["-m", "model=mlp,cn", "seed=1,x", "epochs=0", "name=a,b"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "dltrain: epochs must be a whole number of at least 1, got 0",
        "dltrain: name must be letters, digits, '.', '_' and '-', beginning with a letter or digit, got a,b",
        f"dltrain: model=cn: no such model; did you mean cnn? ({', '.join(options('model'))})",
        "dltrain: seed must be a whole number of at least 0, got x",
    ]
    assert train.calls == []
    assert list(here.iterdir()) == []


def test_an_experiment_may_ask_for_a_sweep(train: Recorder) -> None:
    Path("configs/experiment").mkdir(parents=True)
    Path("configs/experiment/many.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 3,4\n"
    )
    assert cli.run(["experiment=many", ALONE]) == 0
    assert [config["seed"] for config, _ in train.calls] == [3, 4]


def test_init_writes_a_starter_that_composes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init"]) == 0
    assert {str(path.relative_to(here)) for path in here.rglob("*.*")} == {
        "configs/README.md",
        "configs/experiment/mine.yaml",
    }
    assert compose(["experiment=mine"])["data"]["target"] == "price"
    Path("configs/experiment/mine.yaml").write_text("mine")
    capsys.readouterr()
    assert cli.run(["init"]) == 2
    files = "experiment/mine.yaml and README.md"
    assert capsys.readouterr().err == f"dltrain: out must be a folder without {files}, got configs\n"
    assert Path("configs/experiment/mine.yaml").read_text() == "mine"


def test_the_network_that_init_describes_can_be_chosen() -> None:
    assert cli.run(["init"]) == 0
    blocks = Path("configs/README.md").read_text().split("\n\n    ")
    code = next(block for block in blocks if block.startswith("from torch"))
    text = next(block for block in blocks if block.startswith("# one very wide"))
    Path("configs/model").mkdir()
    Path("configs/model/wide.yaml").write_text("\n".join(line[4:] for line in f"    {text}".splitlines()[:3]))
    compile(code.split("\n\n`")[0].replace("\n    ", "\n"), "mynets.py", "exec")
    assert compose(["model=wide", "model.width=1024", "trust=mynets", "data=wine"])["model"]["width"] == 1024


@dataclass
class Options:
    run: str
    rows: int = 3
    rate: float | None = 0.5
    deep: bool = False
    trust: list[str] = field(default_factory=list)


def test_words_of_other_commands_are_typed_by_their_dataclass() -> None:
    assert parse(["run=a b=[c],d"], Options) == Options("a b=[c],d")
    words = ["run=x", "rows=7", "rate=null", "deep=true", "trust=[a, b]"]
    assert parse(words, Options) == Options("x", 7, None, True, ["a", "b"])
    assert parse(["run=x", "rate=1e-3", "trust=a"], Options) == Options("x", 3, 0.001, False, ["a"])
    assert parse_known(["trainer=ddp", "run=x", "~a.b"], Options) == (Options("x"), ["trainer=ddp", "~a.b"])


def test_everything_wrong_with_the_words_of_a_command() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["rnu=x", "rows=1.5", "rate=x", "deep=1", "foo", "--rows", "--rate=3"], Options)
    names = "(deep, rate, rows, run, trust)"
    assert str(caught.value).splitlines() == [
        f"rnu: no such setting; did you mean run? {names}",
        f"foo must be written as key=value {names}",
        "--rows must be written as rows=...",
        "--rate=3 must be written as rate=3",
        "run must be given, as run=...",
        "rows must be a whole number, got 1.5",
        "rate must be a number, got x",
        "deep must be true or false, got 1",
    ]
    with pytest.raises(ConfigError, match="run must be given, got"):
        parse(["run="], Options)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dltrain pre", {"precision=", "predict"}),
        ("dltrain lis", {"list"}),
        ("dltrain model=", {f"model={name}" for name in options("model")}),
        ("dltrain train optimizer.l", {"optimizer.lr="}),
        ("dltrain data=csv data.path=a\\ (1).csv data.col", {"data.columns."}),
        (
            "dltrain list ",
            {*(group if group == "data" else "" for group in groups()), "runs", "losses", "models"} - {""},
        ),
        ("dltrain list mod", {"models"}),
        ("dltrain help pred", {"predict"}),
        ("dltrain predict inp", {"input="}),
        ("dltrain predict run=", {"run=last", "run=best", "run=iris-mlp-1234"}),
        ("dltrain predict run=iris input=h", {"input=houses (1).csv"}),
        ("dltrain data=csv data.path=out", {"data.path=outputs/"}),
        ("dltrain resume run=last optimi", {"optimizer=", "optimizer."}),
        ("dltrain model=nonsense optimi", {"optimizer="}),
        ('dltrain data.path="open', set()),
    ],
)
def test_completion(
    shell: str,
    line: str,
    expected: set[str],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "outputs/iris-mlp-1234").mkdir(parents=True)
    (here / "outputs/iris-mlp-1234/config.yaml").touch()
    (here / "houses (1).csv").touch()
    monkeypatch.setenv("COMP_LINE", line)
    assert cli.run(["-sc", f"query={shell}"]) == 0
    text = capsys.readouterr().out
    found = set(text.splitlines() if shell == "fish" else [text.strip()] if "(1)" in text else text.split())
    assert expected <= found - {""}
    if line != "dltrain list ":
        assert expected == found - {""}


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "complete"), ("fish", "commandline")])
def test_completion_is_installed_as_hydra_does(shell: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["-sc", f"install={shell}"]) == 0
    text = capsys.readouterr().out
    assert word in text
    assert "dltrain" in text
    assert cli.run(["--shell-completion", f"uninstall={shell}"]) == 0


def test_the_current_folder_can_be_imported_and_hides_nothing(here: Path) -> None:
    (here / "mynets.py").touch()
    (here / "json.py").write_text("raise SystemExit('hidden')")
    program = (
        "import sys; sys.path = [p for p in sys.path if p]; sys.argv = ['dltrain', '--version']\n"
        "import atexit; from dltrain.cli import main\n"
        "def end():\n    import json, mynets; print(json.dumps(1))\n"
        "atexit.register(end); main()"
    )
    root = str(Path(dltrain.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"dltrain {dltrain.__version__}\n1\n"), done.stderr


def test_the_first_word_comes_soon() -> None:
    start = time.perf_counter()
    assert typed("--help").returncode == 0
    print(f"--help: {time.perf_counter() - start:.3f} s")  # a test never asserts a time

"""Whole command lines that cannot be right: one sentence, an exit code, and not a byte of the folder changed."""

import json
import pickle
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import launch, working

from dltrain import cli, faults
from dltrain.checkpoint import write_manifest
from dltrain.opening import digest, identity

RUN, MODEL = Path("outputs/good"), Path("outputs/good/model")
TRAIN = "data=csv data.path=good.csv data.target=price epochs=1"
PREDICT = "predict run=good input=good.csv out=out.csv"
ALLOWED = "must name a class of dltrain, torch.nn, torch.optim or sklearn, or of a module in trust=[...]"
UNDAMAGED = "run must have an undamaged model, got good: "


def table(rows: int = 60, **cells: Callable[[int], object]) -> str:
    """A CSV of columns x (numbers), kind (a, b, c) and price; further columns or other cells by name."""
    columns = {"x": lambda i: i * 1.5 + i % 7, "kind": lambda i: "abc"[i % 3], "price": lambda i: 9.5 + 3 * i} | cells
    lines = [",".join(str(cell(i)) for cell in columns.values()) for i in range(rows)]
    return "\n".join([",".join(columns), *lines]) + "\n"


def once(row: int, wrong: object, right: Callable[[int], object]) -> Callable[[int], object]:
    """A column that is wrong in one row, counted from 1."""
    return lambda i: wrong if i == row - 1 else right(i)


FILES: dict[str, str | bytes] = {
    "good.csv": table(),
    "empty.csv": "",
    "blank.csv": "\n \n\n",
    "binary.csv": b"\x7fELF\0\1\2",
    "header.csv": "x,kind,price\n",
    "latin.csv": "x,price\n1,2\n3,4 \xa3\n".encode("latin-1"),
    "ragged.csv": "x,price\n1,2\n3,4,5\n",
    "twice.csv": "x,x,price\n1,2,3\n4,5,6\n",
    "cell.csv": table(x=once(17, "n/a?", lambda i: i / 2)),
    "cell_target.csv": table(price=once(17, "n/a?", lambda i: i / 2)),
    "constant.csv": table(price=lambda i: 5),
    "no_target.csv": table(price=lambda i: ""),
    "lone.csv": table(kind=once(4, "z", lambda i: "ab"[i % 2])),
    "one_class.csv": table(kind=lambda i: "a"),
    "three.csv": table(3),
    "infinite.csv": table(x=once(9, "inf", lambda i: i / 2)),
    "huge.csv": table(x=once(9, "1e999", lambda i: i / 2)),
    "groups.csv": table(kind=lambda i: "ab"[i % 2]),
    "no_x.csv": "kind,price\na,1\nb,2\n",
    "red.csv": "x,kind\nred,a\n",
    "short.csv": "x,kind\n1,a\n2\n",
    "unlabelled.csv": "x,kind\n1,a\n",
    "file": "a file where a folder should be",
    "evil.py": "from pathlib import Path\nPath('executed').touch()\nfrom torch import nn\nNet = nn.Identity\n",
}
Damage = Callable[[], object]


def signed(damage: Damage) -> Damage:
    """Damage by somebody who writes the manifest anew."""

    def sign() -> None:
        damage()
        (MODEL / "manifest.json").unlink()
        write_manifest(MODEL)

    return sign


def put(path: Path, content: str | bytes) -> Damage:
    return lambda: path.write_bytes(content.encode() if isinstance(content, str) else content)


def edited(path: Path, **changes: Any) -> Damage:
    """Entries of a JSON or YAML file changed; a dot in a name is written __."""

    def edit() -> None:
        content = yaml.safe_load(path.read_text())
        for name, value in changes.items():
            *parts, last = name.split("__")
            node = content
            for part in parts:
                node = node[part]
            node[last] = value
        path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))

    return edit


def unfinished(*damages: Damage) -> Damage:
    """A run that was stopped, and then damaged."""

    def stop() -> None:
        shutil.rmtree(MODEL)
        edited(RUN / "result.json", status="stopped")()
        for damage in damages:
            damage()

    return stop


def rehashed() -> None:
    """The config of somebody who can compute its hash, too."""
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    edited(RUN / "config.yaml", hash=digest(identity(config)))()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


OPTIMIZERS = "adadelta, adafactor, adagrad, adam, adamax, adamw, asgd, muon, nadam, radam, rmsprop, rprop, sgd"
MODELS = "cnn, decoder, encoder_decoder, gpt, gru, linear, lstm, mlp, pretrained, resmlp, rnn, tabm, transformer, unet"
EVERY = "model.from_run, model.weights, model.head, model.freeze, model.layer_decay"  # of every network
MLP = f"model.hidden, model.dropout, model.norm, model.init, {EVERY}"
COMMANDS = "compare, diff, ensemble, evaluate, help, init, list, pack, predict, report, reproduce, resume, sample"
COMMANDS += ", train, verify"
WHOLE = "must be a whole number of at least"
NEEDED = "(1 for validation, 1 for the test, at least 2 for training)"
NAMED = "name must be letters, digits, '.', '_' and '-', beginning with a letter or digit, got"
CLASSES = "accuracy, auroc, balanced_accuracy, calibration_error, f1, log_loss, loss"

TYPED = {  # what is wrong is the words themselves: exit 2
    "trian": f"trian: no such command; did you mean train? ({COMMANDS})",
    "good.csv": "good.csv must be written as data=csv data.path=good.csv data.target=<the column to predict>",
    "model=cn": f"model=cn: no such model; did you mean cnn? ({MODELS})",
    "optimizer=adamv": f"optimizer=adamv: no such optimizer; did you mean adam? ({OPTIMIZERS})",
    "~optimizer": f"optimizer must be one of {OPTIMIZERS}, got none",
    "model.droput=0.5": f"model.droput: no such setting of model=mlp; did you mean model.dropout? ({MLP})",
    "+model.droput=0.5": f"model.droput: no such setting of model=mlp; did you mean model.dropout? ({MLP})",
    "model.kernel=3": "model.kernel: no such setting of model=mlp; it belongs to model=cnn, decoder, unet",
    "data=iris monitor=acuracy": "monitor must be a metric of classes, got acuracy; did you mean accuracy?"
    f" ({CLASSES})",
    "optimizer.lr=abc": "optimizer.lr must be a number, got abc",
    "optimizer.lr=-1": "optimizer.lr must be above 0, got -1",
    "optimizer.betas=[0.9]": "optimizer.betas must be 2 numbers, got [0.9]",
    "scheduler=step scheduler.step_size=0": "scheduler.step_size must be at least 1, got 0",
    "epochs=2.5": f"epochs {WHOLE} 1, got 2.5",
    "model.hidden=[64,x]": "model.hidden must be a list of whole numbers, got [64, x]",
    "seed=": f"seed {WHOLE} 0, got ''",
    "=3": "=3 must be written as key=value",
    "--epochs 5": "--epochs must be written as epochs=5",
    "--model=cnn": "--model=cnn must be written as model=cnn",
    "-m seed=range(0)": "seed=range(0) must have a value to sweep over, got none",
    "regularizer=l1,l2": "regularizer=l1,l2 needs -m: it is a sweep, or write regularizer=[l1,l2] for a list",
    "name=../up": f"{NAMED} ../up",
    "name=last": "name must be none of last, best, sweeps, got last",
    f"name={'x' * 201}": f"name must be at most 200 letters, got {'x' * 201}",
    "model._target_=os.system": f"model._target_ {ALLOWED}, got os.system",
    "trust=nowhere": "trust must name modules that can be imported from here, got nowhere",
    "trust=os": "trust must be modules of your own, each a file, got os",
    "data=csv": "data.path must be given\ndata.target must be given",
    f"{TRAIN} output_root=file": "output_root must be a folder, got file, where a file is in the way",
    f"{TRAIN} output_root=file/sub": "output_root must be a folder, got file/sub, where a file is in the way",
    f"{TRAIN} data.target=prize": "data.target must be a column of good.csv, got prize; did you mean price?"
    " (kind, price, x)",
    f"{TRAIN} data.weight=[x,kind]": "data.weight must be one column, got [x, kind]",
    f"{TRAIN} data.encoding=hex": "data.encoding must be an encoding Python knows, got hex"
    " (cp1252, gb18030, latin-1, shift_jis, utf-16, utf-8)",
    f"{TRAIN} data.ignore=kind data.shape=[1,28,28]": "data.shape=[1,28,28] needs 784 columns, got 1",
    f"{TRAIN} loss=cross_entropy": "loss=cross_entropy must go with a target of classes or two classes,"
    " got numbers (price); use loss=mse or loss=auto",
    f"{TRAIN} name=good seed=1": "name must be free or of the same settings, got good, a run in which"
    " data.split.seed was 0, now 1; epochs was 2, now 1; model.hidden was [8], now [256, 256];"
    " seed was 0, now 1",
    "predict run=nix input=good.csv": "run must be a run in outputs, got nix (good)",
    "predict run=last input=good.csv output_root=nix": "run=last must have a run in nix, got none",
    "predict run=. input=good.csv": "run must be a run folder, got ., which has no config.yaml",
    "predict run=good": "input must be given, as input=...",
    "predict run=good inptu=good.csv input=-": "inptu: no such setting; did you mean input?"
    " (input, out, output_root, rows, run, trust)",
    "predict run=good input=good.csv rows=0": "rows must be at least 1, got 0",
    "predict run=good input=good.csv out=nix/p.csv": "out must be in a folder that exists, got nix/p.csv"
    " (there is no folder nix)",
    "predict run=good input=good.csv out=.": "out must be a file, got ., which is a folder",
    "predict run=good input=good.csv out=./good.csv": "out must be another file than input, got ./good.csv",
    "evaluate run=good out=nix/m.json": "out must be in a folder that exists, got nix/m.json (there is no folder nix)",
    "evaluate run=good input=good.csv out=good.csv": "out must be another file than input, got good.csv",
    "resume run=good optimizer.lr=3": "optimizer.lr must stay 0.001 in a run that is continued, got 3.0, which would"
    " change its result; without resume it is a run of its own",
    "resume run=good epochs=1": "epochs must be more than the 2 of run good, got 1",
}

DATA = {  # what is wrong is in a file: exit 65
    "good.cvs": "good.cvs: no such file; did you mean good.csv? ({files})",
    "gone/good.csv": "gone/good.csv: no such file (there is no folder gone)",
    ".": ".: is a folder; data.path must be a file",
    "empty.csv": "empty.csv: the file is empty",
    "blank.csv": "blank.csv: the file is empty",
    "binary.csv": "binary.csv: a binary file, not text; expected CSV, TSV, gzip of these, or Parquet",
    "header.csv": "header.csv: there is a header and no rows",
    "latin.csv": "latin.csv row 2: byte 0xa3 is not utf-8; try data.encoding=latin-1 or data.encoding=cp1252",
    "good.csv data.encoding=utf-16": "good.csv: the file is not utf-16 (data.encoding)",
    "ragged.csv": "ragged.csv row 2: expected 2 cells as in the header, got 3 (cells are separated by ',')",
    "twice.csv": "twice.csv: two columns are called x",
    "cell.csv": "cell.csv row 17, column x: expected a number, got 'n/a?'",
    "cell_target.csv": "cell_target.csv row 17, column price: expected a number, got 'n/a?'"
    " (correct them, leave them empty, or set data.columns.price=category)",
    "constant.csv": "constant.csv, column price: the target is 5 in all 42 training rows; there is nothing to learn",
    "no_target.csv": "no_target.csv, column price: the target is missing in all 60 rows",
    "lone.csv data.target=kind": "lone.csv, column kind: class z has one row, which cannot be on both sides"
    " of a stratified split; leave it out or set data.split.kind=random",
    "one_class.csv data.target=kind": "one_class.csv, column kind: the target is a in all 42 training rows;"
    " there is nothing to learn",
    "three.csv": f"three.csv: 3 rows are fewer than the split needs {NEEDED}",
    "good.csv data.rows=3": f"good.csv: 3 rows are fewer than the split needs {NEEDED}",
    "infinite.csv": "infinite.csv row 9, column x: expected a finite number, got inf",
    "huge.csv": "huge.csv row 9, column x: expected a finite number, got inf",
    "groups.csv data.split.kind=group data.split.by=kind": "groups.csv, column kind: 2 groups cannot be split in 3",
    "good.csv data.shape=[1,2]": "good.csv row 1, column kind: expected a number, got 'a'",
}
READ = {  # the same, of a new file
    "predict input=good.cvs": "good.cvs: no such file; did you mean good.csv? ({files})",
    "predict input=.": ".: is a folder; input must be a file",
    "predict input=empty.csv": "empty.csv: the file is empty",
    "predict input=no_x.csv": "no_x.csv: there is no column x",
    "predict input=red.csv": "red.csv row 1, column x: expected a number, got 'red'",
    "predict input=short.csv": "short.csv row 2: expected 2 cells as in the header, got 1 (cells are separated by ',')",
    "evaluate input=unlabelled.csv": "unlabelled.csv: has no column price,"
    " the target that metrics are measured against",
}
DAMAGED: dict[str, tuple[Damage, str, str]] = {  # a run's folder: exit 2
    "unfinished": (
        unfinished(),
        PREDICT,
        "run must be a finished run, got good, which is stopped; dltrain resume run=good",
    ),
    "no model": (lambda: shutil.rmtree(MODEL), PREDICT, UNDAMAGED + "model.json is missing"),
    "config": (
        put(RUN / "config.yaml", "{x: ["),
        "resume run=good",
        "run must be a run folder, got outputs/good, whose config.yaml is damaged",
    ),
    "config without a group": (
        put(RUN / "config.yaml", "format: 1\nhash: x\n"),
        "evaluate run=good",
        "run must be a run folder, got outputs/good, whose config.yaml is damaged",
    ),
    "config with an object": (
        put(RUN / "config.yaml", "!!python/object/apply:os.system ['touch executed']"),
        "resume run=good",
        "run must be a run folder, got outputs/good, whose config.yaml is damaged",
    ),
    "overrides": (
        put(RUN / "overrides.yaml", "- 3"),
        "resume run=good epochs=3",
        "run must be a run folder, got outputs/good, whose overrides.yaml is damaged",
    ),
    "newer config": (
        edited(RUN / "config.yaml", format=2),
        "evaluate run=good",
        "outputs/good/config.yaml must be of format 1 or older, got 2; update dltrain",
    ),
    "newer manifest": (
        edited(MODEL / "manifest.json", format=2),
        PREDICT,
        "model must be of format 1 or older, got 2; update dltrain",
    ),
    "newer model": (
        signed(edited(MODEL / "model.json", format=2)),
        PREDICT,
        "model.json must be of format 1 or older, got 2; update dltrain",
    ),
    "manifest": (
        put(MODEL / "manifest.json", b"\xff"),
        PREDICT,
        UNDAMAGED + "manifest.json cannot be read (UnicodeDecodeError)",
    ),
    "manifest upwards": (
        edited(MODEL / "manifest.json", files={"../config.yaml": {"bytes": 1, "sha256": ""}}),
        PREDICT,
        UNDAMAGED + "../config.yaml is missing",
    ),
    "manifest of nothing": (
        edited(MODEL / "manifest.json", files={}),
        PREDICT,
        UNDAMAGED + "model.json is not in its manifest",
    ),
    "another weight": (
        put(MODEL / "model.safetensors", b"x"),
        PREDICT,
        UNDAMAGED + "model.safetensors has 1 bytes, its manifest says 596",
    ),
    "weights cut short": (
        signed(put(MODEL / "model.safetensors", b"x")),
        PREDICT,
        UNDAMAGED + "model.safetensors does not hold what it must (SafetensorError: Error while deserializing header:"
        " header too small)",
    ),
    "weights with a huge header": (
        signed(put(MODEL / "model.safetensors", struct.pack("<Q", 2**62) + b"{}")),
        PREDICT,
        UNDAMAGED + "model.safetensors does not hold what it must (SafetensorError: Error while deserializing header:"
        " header too large)",
    ),
    "weights of pickle": (
        signed(put(MODEL / "model.safetensors", pickle.dumps(Evil()))),
        PREDICT,
        UNDAMAGED + "model.safetensors does not hold what it must (SafetensorError: Error while deserializing header:"
        " header too large)",
    ),
    "model not JSON": (
        signed(put(MODEL / "model.json", "NaN")),
        PREDICT,
        UNDAMAGED + "model.json does not hold what it must (TypeError: 'float' object is not subscriptable)",
    ),
    "model without parts": (
        signed(edited(MODEL / "model.json", parts={})),
        PREDICT,
        UNDAMAGED + "model.json does not hold what it must (KeyError: 'task')",
    ),
    "model that executes": (
        signed(edited(MODEL / "model.json", parts__model___target_="os.system")),
        PREDICT,
        f"model._target_ {ALLOWED}, got os.system",
    ),
    "preparation that executes": (
        signed(edited(MODEL / "model.json", preparation___target_="subprocess.Popen")),
        PREDICT,
        f"preparation {ALLOWED}, got subprocess.Popen",
    ),
    "config that trusts": (
        unfinished(edited(RUN / "config.yaml", trust=["evil"], model___target_="evil.Net"), rehashed),
        "resume run=good",
        "trust must name the modules whose code run good uses, as in trust=[evil], got []",
    ),
    "config that trusts, evaluated": (
        edited(RUN / "config.yaml", trust=["evil.module"]),
        "evaluate run=good",
        "trust must name the modules whose code run good uses, as in trust=[evil.module], got []",
    ),
    "config that executes": (
        unfinished(edited(RUN / "config.yaml", data___target_="os.system"), rehashed),
        "resume run=good",
        f"data._target_ {ALLOWED}, got os.system",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files, and a finished run."""
    folder = tmp_path_factory.mktemp("made")
    with working(folder):
        for name, content in FILES.items():
            put(Path(name), content)()
        launch(*TRAIN.replace("epochs=1", "epochs=2").split(), "model.hidden=[8]", name="good")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that folder, to be in."""
    monkeypatch.delenv("DLTRAIN_CONFIGS", raising=False)
    monkeypatch.syspath_prepend(".")  # as the command does, so that ./evil.py could be found
    home = tmp_path / "here"
    shutil.copytree(made, home)
    with working(home):
        yield home
    assert "evil" not in sys.modules


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with what is in it."""
    paths = [path for path in folder.rglob("*") if path.name != "run.lock"]  # which says who had it last
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def told(words: str, code: int, sentence: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command line and compare all that it said and did."""
    before = listing(here)
    capsys.readouterr()
    found = cli.run(shlex.split(words))
    lines = sentence.format(files=", ".join(sorted(FILES))).splitlines()
    assert (found, capsys.readouterr().err.splitlines()) == (code, [f"dltrain: {line}" for line in lines])
    assert listing(here) == before


@pytest.mark.parametrize("words", TYPED)
def test_words(words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(words, 2, TYPED[words], here, capsys)


@pytest.mark.parametrize("words", DATA)
def test_data(words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(f"data=csv data.target=price data.path={words}", 65, DATA[words], here, capsys)


@pytest.mark.parametrize("words", READ)
def test_new_file(words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(f"{words} run=good out=good.csv".replace("=good.csv", "=three.csv"), 65, READ[words], here, capsys)


@pytest.mark.parametrize("case", DAMAGED)
def test_run_folder(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, words, sentence = DAMAGED[case]
    damage()
    told(words, 2, sentence, here, capsys)


def test_no_folder_is_left_where_there_was_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("three.csv").write_text(table(3))
    train = "data=csv data.path=three.csv data.target=price"
    sentence = f"three.csv: 3 rows are fewer than the split needs {NEEDED}"
    told(train, 65, sentence, tmp_path, capsys)
    told(f"{train} 'output_root=a b/c'", 65, sentence, tmp_path, capsys)


def test_disk(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "cannot make the folder /proc/outputs: no such file or directory"  # to root, too
    told(f"{TRAIN} output_root=/proc/outputs", 74, sentence, here, capsys)
    told(f"{PREDICT} out=/proc/p.csv", 74, "cannot write /proc/p.csv: no such file or directory", here, capsys)
    monkeypatch.setattr(faults, "FAULT", "publish:full")
    faults.passed.clear()
    told(TRAIN, 74, "no space left on device: publish", here, capsys)


def test_a_disk_that_fills_up_later_loses_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(f"{TRAIN} name=full")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "FAULT", "save-model:full")
        faults.passed.clear()
        assert cli.run(words) == 74
    assert capsys.readouterr().err == "dltrain: no space left on device: save-model\n"
    assert json.loads((here / "outputs/full/result.json").read_text())["status"] == "failed"
    told(
        "predict run=full input=good.csv",
        2,
        "run must be a finished run, got full, which is failed; dltrain resume run=full",
        here,
        capsys,
    )
    assert cli.run(words) == 0
    assert not list((here / "outputs/full/checkpoints").glob(".*"))


@pytest.fixture
def held(here: Path) -> Iterator[None]:
    """Another process has the run."""
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('host there, pid 7', file=file, flush=True); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(RUN / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("more", ["", "fresh=true"])
def test_two_processes_on_one_run(more: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = f"{TRAIN} epochs=2 model.hidden=[8] name=good {more}"
    sentence = "run good is in use by host there, pid 7"
    told(train, 73, sentence, here, capsys)
    told("resume run=good", 73, sentence, here, capsys)
    told("resume run=good epochs=3", 73, sentence, here, capsys)


def test_what_is_there_stays_whole(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(shlex.split("predict run=good input=good.csv out=link.csv")) == 0
    Path("real.csv").write_text("keep me")
    Path("link.csv").unlink()
    Path("link.csv").symlink_to("real.csv")
    told("predict run=good input=red.csv out=link.csv", 65, READ["predict input=red.csv"], here, capsys)
    assert cli.run(shlex.split("predict run=good input=good.csv out=link.csv")) == 0
    assert Path("link.csv").is_symlink()
    assert len(Path("real.csv").read_text().splitlines()) == 61

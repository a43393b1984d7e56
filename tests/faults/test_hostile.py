"""Run folders of a failing disk, or of a stranger: no damage goes unnoticed, and nothing in them is executed."""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops
import skops.io
import torch
import yaml
from runs import launch, working
from safetensors.torch import load_file, save_file
from skops.io._protocol import PROTOCOL

from dltrain import cli
from dltrain.bundle import Model
from dltrain.checkpoint import Checkpoints, Damaged, verify, write_manifest
from dltrain.errors import ConfigError, UserError
from dltrain.opening import digest, identity
from dltrain.run import read_yaml, write_yaml

WORDS = (
    "data=xor data.rows=80 model.hidden=[4] epochs=3 batch_size=16 ema=0.9 trainer.save_every=2steps trainer.threads=1"
)
RUN, MODEL = Path("outputs/run"), Path("outputs/run/model")
STEPS = (8, 10, 12)  # the checkpoints that are kept
OLD, NEWEST = (RUN / f"checkpoints/step-{step:08d}" for step in STEPS[1:])
SAVED = ("ema.safetensors", "manifest.json", "model.safetensors", "optim.safetensors", "state.json")
BUNDLED = ("manifest.json", "model.json", "model.safetensors", "preparation.skops")
PREDICT, EVALUATE, RESUME = "predict run=run input=new.csv", "evaluate run=run input=new.csv", "resume run=run"
MEGABYTES = 150  # more than any of this needs
pytestmark = pytest.mark.timeout(120)  # nothing of this may hang
Damage = Callable[[], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and a file of new rows."""
    folder = tmp_path_factory.mktemp("made")
    with working(folder):
        assert launch(*WORDS.split(), name="run").steps == list(STEPS)
        Path("new.csv").write_text("a,b,xor\n0.1,0.9,1\n1,1,0\n0,0,0\n")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in a copy of that folder, and leave no canary behind."""
    monkeypatch.delenv("DLTRAIN_CONFIGS", raising=False)
    home = tmp_path / "here"
    shutil.copytree(made, home)
    with working(home):
        yield home
    assert not canary(home).exists(), "something of the run folder was executed"


@pytest.fixture
def modest() -> Iterator[None]:
    """What is refused must not have filled memory before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


def canary(home: Path) -> Path:
    return home / "executed"


def again(made: Path, finished: bool = True) -> None:
    """The run as it was; unfinished: stopped, so that `resume` reads its checkpoints."""
    shutil.rmtree(RUN)
    shutil.copytree(made / RUN, RUN)
    if not finished:
        shutil.rmtree(MODEL)
        (RUN / "result.json").unlink()


def signed(folder: Path) -> None:
    """The manifest of somebody who can compute hashes, too."""
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(folder, **({} if folder == MODEL else {"step": int(folder.name[5:])}))


def restored() -> tuple[int | None, list[str]]:
    """The step of the checkpoint that a restart takes up, None if there is none, and what it says."""
    said: list[str] = []
    found = Checkpoints(RUN / "checkpoints", said.append).newest()
    return (found[1]["position"]["step"] if found else None), said


def told(words: str, *codes: int) -> str:
    """Run a command line that ends with one of these codes, in one sentence if it fails; returns all it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(words.split())
    said = err.getvalue()
    assert code in codes, (words, code, said)
    assert "Traceback" not in said
    assert said.count("\n") == (1 if code else 0), said
    assert said.startswith("dltrain: ") if code else not said
    return " ".join((out.getvalue() + said).split())


def test_an_undamaged_run_is_read(made: Path, here: Path) -> None:
    """What the other tests take from a run is there at first, and no part of it unknown to them."""
    assert restored() == (STEPS[-1], [])
    Model.load(MODEL)
    assert {path.name for path in NEWEST.iterdir()} == set(SAVED)
    assert {path.name for path in MODEL.iterdir()} == set(BUNDLED)
    for folder in (NEWEST, MODEL):
        before = (folder / "manifest.json").read_bytes()
        signed(folder)
        assert (folder / "manifest.json").read_bytes() == before
    told(PREDICT, 0)
    told(EVALUATE, 0)
    again(made, finished=False)
    assert "rejected" not in told(RESUME, 0)


# --- a failing disk: hashes stay as they were


def swap(one: Path, other: Path) -> None:
    assert one.read_bytes() != other.read_bytes()
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def extend(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)


def accidents(made: Path) -> dict[str, tuple[Path, Callable[..., object], tuple[Any, ...]]]:
    """What can happen to files, with where it happens: at least 200, the same in every run of the same sizes."""
    chance = random.Random(0)
    found: dict[str, tuple[Path, Callable[..., object], tuple[Any, ...]]] = {}
    for folder, names in ((NEWEST, SAVED), (MODEL, BUNDLED)):
        for path in (folder / name for name in names):
            size, at = (made / path).stat().st_size, f"{folder.name}/{path.name}"
            found |= {f"{at}: bit {b}": (folder, flip, (path, b)) for b in chance.sample(range(8 * size), 14)}
            found |= {
                f"{at}: cut to {n}": (folder, cut, (path, n)) for n in [0, size - 1, *chance.sample(range(size), 3)]
            }
            for n in (8, 64, 5000):
                found[f"{at}: {n} bytes more"] = folder, extend, (path, chance.randbytes(n))
            found[f"{at}: zeros"] = folder, Path.write_bytes, (path, bytes(size))
            found[f"{at}: missing"] = folder, Path.unlink, (path,)
            found[f"{at}: a folder"] = folder, lambda path: (path.unlink(), path.mkdir()), (path,)
        for one, other in combinations(names, 2):
            found[f"{folder.name}: {one} and {other} swapped"] = folder, swap, (folder / one, folder / other)
    for name in SAVED:
        found[f"{name} of two checkpoints swapped"] = NEWEST, swap, (NEWEST / name, OLD / name)
    found["weights of a checkpoint in the bundle"] = MODEL, swap, (NEWEST / SAVED[2], MODEL / SAVED[2])
    found["checkpoints swapped"] = NEWEST, lambda: (OLD.rename("x"), NEWEST.rename(OLD), Path("x").rename(NEWEST)), ()
    return found


def unnoticed(folder: Path) -> str:
    """Why damage in a folder was not noticed; nothing if it was."""
    if folder == MODEL:
        with contextlib.suppress(ConfigError):
            Model.load(MODEL)
            return "loaded"
        return ""
    try:
        step, said = restored()
    except ConfigError as error:  # what looks like the checkpoint of a newer dltrain is left alone
        return "" if "update dltrain" in str(error) else str(error)
    why = [text for text in said if text.startswith(f"checkpoint {NEWEST.name} was rejected: ")]
    return "" if step in STEPS[:-1] and len(why) == 1 else f"step {step} taken up, {said}"


def test_every_accident_is_noticed(made: Path, here: Path) -> None:
    cases = accidents(made)
    missed = {}
    for name, (folder, damage, arguments) in cases.items():
        again(made)
        damage(*arguments)
        if why := unnoticed(folder):
            missed[name] = why
    print(f"{len(cases) - len(missed)} of {len(cases)} corruptions detected")
    assert len(cases) >= 200
    assert not missed


def test_commands_say_what_happened(made: Path, here: Path) -> None:
    cases = accidents(made)
    for name, (folder, damage, arguments) in random.Random(1).sample(sorted(cases.items()), 24):
        again(made, finished=folder == MODEL)
        damage(*arguments)
        if folder == MODEL:
            for words in (PREDICT, EVALUATE):
                said = told(words, 2)
                assert "run must have an undamaged model, got run" in said or "update dltrain" in said, name
        else:
            said = told(RESUME, 0, 2)
            assert f"checkpoint {NEWEST.name} was rejected: " in said or "update dltrain" in said, name


# --- pickles


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def written(write: Callable[[Any, io.BytesIO], object], content: Any) -> bytes:
    file = io.BytesIO()
    write(content, file)
    return file.getvalue()


def plain(path: Path) -> bytes:
    return pickle.dumps(Evil(path))


def of_torch(path: Path) -> bytes:
    return written(torch.save, {"model": Evil(path)})


def of_joblib(path: Path) -> bytes:
    return written(joblib.dump, [Evil(path)])


def of_numpy(path: Path) -> bytes:
    return written(lambda content, file: np.save(file, content, allow_pickle=True), np.array([Evil(path)], object))


CARELESS: dict[Callable[[Path], bytes], Callable[[bytes], object]] = {
    plain: pickle.loads,
    of_torch: lambda content: torch.load(io.BytesIO(content), weights_only=False),
    of_joblib: lambda content: joblib.load(io.BytesIO(content)),
    of_numpy: lambda content: np.load(io.BytesIO(content), allow_pickle=True),
}
BESIDE = (".metadata", "optim.pt", "model.pkl", "model.pt", "model.bin", "preprocessing.joblib", "data.npy", "ema.pth")
ROOT = ("config.yaml", "overrides.yaml", "result.json", "data.json", "environment.json", "metrics.jsonl", "run.lock")


@pytest.mark.parametrize("payload", CARELESS)
def test_the_canary_is_alive(payload: Callable[[Path], bytes], tmp_path: Path) -> None:
    content = payload(canary(tmp_path))
    assert not canary(tmp_path).exists()
    CARELESS[payload](content)
    assert canary(tmp_path).exists()


@pytest.mark.parametrize("payload", CARELESS)
def test_a_pickle_is_never_read(payload: Callable[[Path], bytes], made: Path, here: Path) -> None:
    """Under every name, with hashes that are wrong and with hashes that are right."""
    content = payload(canary(here))
    for folder, names in ((NEWEST, SAVED), (MODEL, BUNDLED)):
        for name in [*names, *BESIDE]:
            for sign in {False, name != "manifest.json"}:
                again(made)
                (folder / name).write_bytes(content)
                if sign:
                    signed(folder)
                ours = name in names or sign
                step, _ = restored()
                assert step == (STEPS[1] if folder == NEWEST and ours else STEPS[2]), name
                if folder == MODEL and name in names:
                    with pytest.raises(UserError):
                        Model.load(MODEL)
                else:
                    Model.load(MODEL)
                assert not canary(here).exists(), (name, sign)


def test_commands_read_no_pickle(made: Path, here: Path) -> None:
    content = plain(canary(here))
    for path in [*(NEWEST / name for name in (*SAVED, *BESIDE)), *(RUN / name for name in ROOT)]:
        again(made, finished=False)
        path.write_bytes(content)
        if path.parent == NEWEST and path.name != "manifest.json":
            signed(NEWEST)
        told(RESUME, 0, 2)
        assert not canary(here).exists(), path
    for path in [*(MODEL / name for name in (*BUNDLED, *BESIDE)), *(RUN / name for name in ROOT)]:
        again(made)
        path.write_bytes(content)
        if path.parent == MODEL and path.name != "manifest.json":
            signed(MODEL)
        for words in (PREDICT, EVALUATE, "evaluate run=run", "list runs"):
            told(words, 0, 2, 65)
            assert not canary(here).exists(), (path, words)


def archive(**entries: bytes | str) -> bytes:
    """A zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in entries.items():
            opened.writestr(name.replace("__", "."), content)
    return file.getvalue()


def smuggled(content: bytes, replaced: bytes) -> bytes:
    """A skops file in which every array is replaced."""
    source = zipfile.ZipFile(io.BytesIO(content))
    names = [name for name in source.namelist() if name.endswith(".npy")]
    assert names
    return archive(**{name: replaced if name in names else source.read(name) for name in source.namelist()})


def bomb(content: bytes) -> bytes:
    """The file with an array that unpacks to 256 megabytes."""
    file = io.BytesIO(smuggled(content, b""))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as opened, opened.open("x.npy", "w") as entry:
        entry.write(absurd(f"({2**25},)"))
        for _ in range(256):
            entry.write(bytes(2**20))
    return file.getvalue()


def absurd(shape: str) -> bytes:
    """An array that says it is larger than it is."""
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()


def named(module: str, name: str, loader: str = "FunctionNode") -> bytes:
    """A skops file that names a function."""
    node = {"__class__": name, "__module__": module, "__loader__": loader, "__id__": 1, "content": {}}
    return archive(schema__json=json.dumps({**node, "protocol": PROTOCOL, "_skops_version": skops.__version__}))


@pytest.mark.usefixtures("modest")
def test_a_preparation_brings_nothing_to_life(made: Path, here: Path) -> None:
    good = (MODEL / "preparation.skops").read_bytes()
    evil = named("posix", "system")
    assert skops.io.loads(evil, trusted=["posix.system"]) is os.system, "it would, were it trusted"
    for content in (
        *(payload(canary(here)) for payload in CARELESS),
        smuggled(good, of_numpy(canary(here))),
        smuggled(good, plain(canary(here))),
        smuggled(good, absurd(f"({2**40},)")),
        smuggled(good, absurd(f"({2**62}, {2**62})")),
        smuggled(good, absurd("(-1,)")),
        bomb(good),
        evil,
        named("builtins", "eval"),
        *(named("posix", "system", loader) for loader in ("TypeNode", "ObjectNode", "OperatorFuncNode", "MethodNode")),
        archive(schema__json="[" * 100_000),
        archive(schema__json="NaN"),
        archive(schema__json="{}"),
        archive(),
        skops.io.dumps({"blocks": {}, "steps": {"standard": 3}}),
        skops.io.dumps({"blocks": {"number": "text"}, "steps": {"standard": None}}),
        skops.io.dumps([]),
    ):
        (MODEL / "preparation.skops").write_bytes(content)
        signed(MODEL)
        with pytest.raises(UserError, match=r"(preparation.skops|model.json)"):
            Model.load(MODEL)
    told(PREDICT, 2, 65)
    told(EVALUATE, 2, 65)


# --- names that execute

TARGETS = (
    *("os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "runpy.run_path"),
    *("pickle.loads", "torch.load", "torch.hub.load", "torch.nn.functional.importlib.import_module", "joblib.load"),
    *("torch.nn.modules.module.torch.load", "dltrain.cli.run", "dltrain.bundle.shutil.rmtree", "sklearn.os.system"),
    *(
        "dltrain.environment.subprocess.Popen",
        "torch.nn.Module.__init_subclass__",
        "",
        "system",
        "..",
        None,
        3,
        ["os.system"],
    ),
)
PLACES = ("parts.task", "parts.model", "parts.activation", "parts.loss", "preparation", "parts.model.norm")
TAGS = ("os.system", "subprocess.Popen", "builtins.eval", "os.execvp")


def changed(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy of a tree with another value at a place."""
    if not at:
        return value
    copied = copy.copy(tree)
    copied[at[0]] = changed(tree[at[0]], at[1:], value)
    return copied


def test_a_bundle_names_no_function(here: Path) -> None:
    good = json.loads((MODEL / "model.json").read_text())
    for place in PLACES:
        for target in TARGETS:
            node = {"_target_": target, "args": [f"touch {canary(here)}"]}
            (MODEL / "model.json").write_text(json.dumps(changed(good, tuple(place.split(".")), node)))
            signed(MODEL)
            with pytest.raises(ConfigError):
                Model.load(MODEL)
            assert not canary(here).exists(), (place, target)
        told(PREDICT, 2)
        told(EVALUATE, 2)


GROUPS = ("data", "pipeline.standard", "model", "activation", "task", "loss", "optimizer", "scheduler", "trainer")


def test_a_config_names_no_function(made: Path, here: Path) -> None:
    good = yaml.safe_load((RUN / "config.yaml").read_text())
    for place in (*GROUPS, "logger.x", "regularizer.x"):
        for target in ("os.system", "subprocess.Popen", "torch.nn.functional.importlib.import_module"):
            again(made, finished=False)
            at = tuple(place.split("."))
            node = {"_target_": target, "command": f"touch {canary(here)}"}
            config = changed(good, at[:1], {at[1]: node} if at[1:] else node)
            config["hash"] = digest(identity(config))
            (RUN / "config.yaml").write_text(yaml.safe_dump(config))
            assert f"{place}._target_ must " in told(RESUME, 2)
            assert not canary(here).exists(), (place, target)


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
def test_yaml_makes_no_objects(name: str, made: Path, here: Path) -> None:
    good = (RUN / name).read_text()
    for target in TAGS:
        for tag in ("object/apply", "object/new"):
            evil = f"!!python/{tag}:{target} ['touch {canary(here)}']\n"
            for text in (evil, f"{good}\nx: {evil}" if name == "config.yaml" else f"{good}\n- {evil}"):
                again(made)
                (RUN / name).write_text(text)
                for words in (f"{RESUME} epochs=4", *(["evaluate run=run"] if name == "config.yaml" else [])):
                    assert f"whose {name} is damaged" in told(words, 2)
                told("list runs", 0)
                told(PREDICT, 0)
                assert not canary(here).exists(), text


# --- files that lie, with hashes that are right


def tensors(header: Any, rest: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header, of the length that it has or says it has."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


def parsed(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def lies(content: bytes) -> dict[str, bytes]:
    """Ways to write a tensors file that must not be believed."""
    header, data = parsed(content)
    name = min(name for name in header if name != "__metadata__")
    begin, end = header[name]["data_offsets"]
    lengths = (2**60, 2**63, 2**64 - 1, len(content), len(content) - 7, 0, 1, 100_000_001)
    found = {f"a header of {n} bytes": tensors(header, data, n) for n in lengths}
    texts = ("", "null", "[]", "3", "NaN", '"x"', "{", '{"x": null}', '{"x": NaN}', "[" * 100_000, '{"x":' * 50_000)
    found |= {f"a header {text[:12]}": tensors(text, data) for text in texts}
    for entry, values in {
        "data_offsets": (
            [end, begin],
            [begin, end + 4],
            [-4, end],
            [0, 2**63],
            [0, 2**70],
            [begin],
            [],
            None,
            ["0", "4"],
        ),
        "dtype": ("F64", "F16", "Q9", "object", None, 3, "pickle"),
        "shape": ([2**62, 4], [2**32, 2**32], [2**64], [-1], [0], ["x"], None, 7, [1.5], [float("nan")]),
    }.items():
        for value in values:
            found[f"{entry} {value}"] = tensors(changed(header, (name, entry), value), data)
    found["nothing after the header"] = tensors(header)
    found["more after the data"] = tensors(header, data + bytes(8))
    found["a hole"] = tensors({k: v for k, v in header.items() if k != name}, data)
    return found


@pytest.mark.usefixtures("modest")
def test_tensors_that_lie(made: Path, here: Path) -> None:
    for folder, name in [(MODEL, "model.safetensors"), *((NEWEST, name) for name in SAVED if "safetensors" in name)]:
        again(made)
        for case, content in lies((folder / name).read_bytes()).items():
            (folder / name).write_bytes(content)
            signed(folder)
            if folder == MODEL:
                with pytest.raises(ConfigError, match=r"model.safetensors does not hold what it must"):
                    Model.load(MODEL)
            else:
                with pytest.raises(Damaged):
                    Checkpoints(RUN / "checkpoints", print).read(STEPS[-1])
            assert not canary(here).exists(), case
    again(made, finished=False)
    (NEWEST / "optim.safetensors").write_bytes(lies((NEWEST / "optim.safetensors").read_bytes())["a header []"])
    signed(NEWEST)
    assert f"checkpoint {NEWEST.name} was rejected: SafetensorError" in told(RESUME, 0)


@pytest.mark.usefixtures("modest")
def test_tensors_of_another_network(made: Path, here: Path) -> None:
    """Sound files that do not belong here: none, others, one more, other shapes and kinds."""
    header, data = parsed((MODEL / "model.safetensors").read_bytes())
    name = "network.head.linear.weight" if "network.head.linear.weight" in header else "network.head.weight"
    less = {"t": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    others = {
        "none": tensors({}),
        "others": tensors(less, data),
        "renamed": tensors({f"{key}x": value for key, value in header.items()}, data),
        "another kind": tensors(changed(header, (name, "dtype"), "I32"), data),
        "transposed": tensors(changed(header, (name, "shape"), header[name]["shape"][::-1]), data),
        "without its dimensions": tensors(changed(header, (name, "shape"), [4]), data),
    }
    for case, content in others.items():
        again(made)
        (MODEL / "model.safetensors").write_bytes(content)
        signed(MODEL)
        if case != "another kind":  # numbers are numbers: torch converts them
            with pytest.raises(ConfigError, match=r"model.safetensors does not hold what it must"):
                Model.load(MODEL)
        again(made, finished=False)
        (NEWEST / "model.safetensors").write_bytes(content)
        signed(NEWEST)
        if case != "another kind":
            assert "checkpoint must be of this run's networks and optimizers, got another" in told(RESUME, 2)


@pytest.mark.usefixtures("modest")
def test_a_network_larger_than_its_weights_takes_no_memory(here: Path) -> None:
    good = json.loads((MODEL / "model.json").read_text())
    shape, hidden = ("preparation", "shape_in"), ("parts", "model", "hidden")
    for at, value in ((hidden, [2**31]), (hidden, [20_000, 20_000]), (hidden, [2**62]), (shape, [2**29]), (shape, [0])):
        (MODEL / "model.json").write_text(json.dumps(changed(good, at, value)))
        signed(MODEL)
        with pytest.raises(ConfigError, match="run must have an undamaged model"):
            Model.load(MODEL)


VALUES = {
    "null": "null",
    "not a number": "NaN",
    "infinity": "-Infinity",
    "400 digits": "1" + "0" * 400,
    "5000 digits": "9" * 5000,
    "2 to the 40th": str(2**40),
    "negative": "-1",
    "a word": '"x"',
    "half a character": '"\\ud800"',
    "a list": "[[1]]",
    "a mapping": "{}",
    "depth": "[" * 900 + "]" * 900,
    "more depth": "[" * 100_000,
}


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON, the root first."""
    yield at
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield from places(value, (*at, key))


def with_text(tree: Any, at: tuple[Any, ...], text: str) -> str:
    """JSON with any text at a place."""
    return json.dumps(changed(tree, at, "@here@")).replace('"@here@"', text)


@pytest.mark.usefixtures("modest")
def test_model_json_may_say_anything(here: Path) -> None:
    """Every value of it replaced by every kind of nonsense: refused at once, or all that follows goes well."""
    good = json.loads((MODEL / "model.json").read_text())
    refused = 0
    for at in places(good):
        for text in VALUES.values():
            (MODEL / "model.json").write_text(with_text(good, at, text))
            signed(MODEL)
            try:
                model = Model.load(MODEL)
            except ConfigError as error:
                refused += "\n" not in str(error)
                continue
            with contextlib.suppress(UserError):
                for frame in model.predict_file("new.csv"):
                    frame.to_csv("out.csv")
            with contextlib.suppress(UserError):
                model.evaluate_file("new.csv")
    assert refused > 500


@pytest.mark.parametrize("folder", [NEWEST, MODEL], ids=["checkpoint", "bundle"])
@pytest.mark.usefixtures("modest")
def test_a_manifest_may_say_anything(folder: Path, made: Path, here: Path) -> None:
    good = json.loads((folder / "manifest.json").read_text())
    for at in places(good):
        for kind, text in VALUES.items():
            again(made)
            (folder / "manifest.json").write_text(with_text(good, at, text))
            assert not unnoticed(folder), (at, kind)
            if at == ("format",):
                newer = kind in ("400 digits", "2 to the 40th")
                with pytest.raises(ConfigError if newer else Damaged):
                    verify(folder)
    for kind, name in {
        "up": "../{}",
        "far up": "../../../../../../../../etc/passwd",
        "round about": "../" + folder.name + "/{}",
        "absolute": str(here / folder) + "/{}",
        "below": "below/{}",
        "here": "./{}",
        "empty": "",
        "a dot": ".",
        "two dots": "..",
        "no name of a file": "a\0b",
        "half a character": "\ud800",
        "long": "x" * 5000,
        "a device": "/dev/zero",
    }.items():
        again(made)
        file = "state.json" if folder == NEWEST else "model.json"
        entry = good["files"][file]
        (folder / "below").mkdir()
        for other in (folder / "below", folder.parent):
            shutil.copy(folder / file, other / file)
        files = {key: value for key, value in good["files"].items() if key != file} | {name.format(file): entry}
        (folder / "manifest.json").write_text(json.dumps({**good, "files": files}))
        assert not unnoticed(folder), kind
        again(made)
        (folder / "manifest.json").write_text(json.dumps({**good, "files": good["files"] | {name: entry}}))
        assert not unnoticed(folder), f"{kind}, one more"


def test_links_are_not_followed(made: Path, here: Path) -> None:
    for folder, names in ((NEWEST, SAVED), (MODEL, BUNDLED)):
        for name in names:
            if name == "manifest.json":
                continue
            for there in (here / name, here / "nowhere"):
                again(made)
                shutil.move(folder / name, here / name)
                (folder / name).symlink_to(there)
                assert not unnoticed(folder), name


def test_a_state_that_cannot_be_read(made: Path, here: Path) -> None:
    """Numbers without end and lists without bottom, hashes and all."""
    for kind in ("5000 digits", "more depth"):
        again(made, finished=False)
        good = json.loads((NEWEST / "state.json").read_text())
        for at in ((), ("best",), ("players", "network"), ("position", "step")):
            again(made, finished=False)
            (NEWEST / "state.json").write_text(with_text(good, at, VALUES[kind]))
            signed(NEWEST)
            assert f"checkpoint {NEWEST.name} was rejected: " in told(RESUME, 0), (kind, at)


def test_a_manifest_that_is_no_file(made: Path, here: Path) -> None:
    """A pipe would be waited for, and a device never ends."""
    for folder in (NEWEST, MODEL):
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir):
            again(made)
            (folder / "manifest.json").unlink()
            make(folder / "manifest.json")
            assert not unnoticed(folder)


def test_names_that_are_not_checkpoints(made: Path, here: Path) -> None:
    folder = RUN / "checkpoints"
    for name in ("step-13", "step-000000013", "step-0000001\u0663", "step-\u00b2", "step-x", "step-", "step--0000013"):
        (folder / name).mkdir()
    assert Checkpoints(folder, print).steps() == list(STEPS)
    for name in ("step-00000013", "step-100000000"):
        (folder / name).touch()
    assert Checkpoints(folder, print).steps() == [*STEPS, 13, 100000000]
    step, said = restored()
    assert step == STEPS[-1]
    assert [text.split()[1] for text in said] == ["step-100000000", "step-00000013"]


def test_what_lies_in_the_way_of_a_checkpoint(made: Path, here: Path) -> None:
    folder = RUN / "checkpoints"
    for make in (Path.touch, lambda path: (path.mkdir(), (path / "x").touch())):
        again(made, finished=False)
        for name in (".tmp-x", ".trash-x", *(f".trash-step-{step:08d}" for step in STEPS)):
            make(folder / name)
        for step in STEPS[1:]:
            flip(folder / f"step-{step:08d}" / "state.json", 9)
        assert "continuing at epoch 2, step 8" in told(RESUME, 0)
        assert Checkpoints(folder, print).steps() == list(STEPS)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_best_that_a_damaged_state_names(here: Path) -> None:
    """What `_prune` keeps is read without a look at hashes."""
    for content in ('{"best": [1]}', '{"best": "8"}', '{"best": 1e999}', "[]", "null", VALUES["more depth"]):
        (NEWEST / "state.json").write_text(content)
        Checkpoints(RUN / "checkpoints", print)._prune()
    assert Checkpoints(RUN / "checkpoints", print).steps() == list(STEPS)


ANOTHER = "checkpoint must be of this run's networks and optimizers, got another"


def test_optimizer_tensors_of_other_shapes(made: Path, here: Path) -> None:
    """A fused kernel would read, and write, behind their ends."""
    good = load_file(NEWEST / "optim.safetensors")
    moments = [key for key in good if key.endswith("exp_avg") and good[key].ndim == 2]
    steps = [key for key in good if key.endswith("step")]
    key, other = moments[:2]
    assert good[key].shape != good[other].shape
    cases = [{**good, key: value} for value in (torch.zeros(1), torch.zeros(()), good[other] + 0, torch.zeros(99, 99))]
    cases += [{**good, key: good[key].flatten()}, {**good, steps[0]: torch.zeros(4)}, {**good, steps[0]: good[key] + 0}]
    cases += [{name: value for name, value in good.items() if name != missing} for missing in (key, steps[0])]
    cases += [{**good, name: good[key] + 0} for name in (f"{key}x", key.replace("weight", "nowhere"), "network")]
    for tensors_ in cases:
        again(made, finished=False)
        save_file(tensors_, NEWEST / "optim.safetensors")
        signed(NEWEST)
        assert ANOTHER in told(RESUME, 2)
    ema = load_file(NEWEST / "ema.safetensors")
    again(made, finished=False)
    save_file({name: torch.zeros(()) for name in ema}, NEWEST / "ema.safetensors")
    signed(NEWEST)
    assert ANOTHER in told(RESUME, 2)


GROUP = ("players", "network", "groups", 0)
STATES: dict[tuple[Any, ...], tuple[Any, ...]] = {  # what cannot stand at a place of state.json
    (): (None, [], {"position": None}),
    ("position",): (None, [], {}, 3),
    ("position", "step"): (None, "12", [12], 11, True, 12.0),
    ("position", "epoch"): (None, "x", -1, 1.5, [], True),
    ("position", "batch"): (None, "x", -1, 10**9),
    ("position", "seconds"): (None, "x", [], math.inf, 10**400),
    ("position", "losses"): (None, "x", {"network": 3}, {"network": [1.0]}, {"network": ["x", 1]}, {"network": [1, 0]}),
    ("position", "best_step"): ("x", [], {}, 1.5, -1),
    ("position", "best_value"): ("x", [], {}),
    ("position", "stopped_early"): (None, "x", 3),
    ("scaler",): (None, "x", [1], ["x", "y"], {}),
    ("health",): (None, "x", [], {}),
    ("health", "numbers"): (None, "x", 3, {"gradient/head": "x"}, {"gradient/head": math.nan}),
    ("health", "text"): (None, 3, []),
    ("health", "looks"): (None, "x", -1, 1.5, []),
    ("threads",): (None, "x", 0, 2**60, []),
    ("players",): (None, [], {}, {"network": None}),
    GROUP: (None, [], 3),
    (*GROUP, "lr"): (None, "x", [], True, math.nan, 10**400),
    (*GROUP, "betas"): (None, 0.9, [0.9], ["x", "y"], [0.9, 0.99, 0.999], {}),
    (*GROUP, "fused"): (None, False, "x", 1),
    (*GROUP, "amsgrad"): (True, None),
    (*GROUP, "param_names"): (None, [], "x", [1, 2, 3, 4], [[], [], [], []]),
    ("players", "network", "plain"): (None, [], {"nowhere": {"x": 1}}, {"input": 3}),
    ("players", "network", "scheduler"): (None, [], 3),
}


def test_a_state_of_wrong_kinds(made: Path, here: Path) -> None:
    good = json.loads((NEWEST / "state.json").read_text())
    for at, values in STATES.items():
        for value in values:
            again(made, finished=False)
            (NEWEST / "state.json").write_text(json.dumps(changed(good, at, value)))
            signed(NEWEST)
            said = told(RESUME, 0, 2)
            rejected = f"checkpoint {NEWEST.name} was rejected: state.json is not of step {STEPS[-1]}"
            assert (rejected if at in ((), ("position",), ("position", "step")) else ANOTHER) in said, (at, value)


def test_the_numbers_of_parameters_are_not_taken_from_a_file(made: Path, here: Path) -> None:
    """Swapped, they would give each parameter the moments of another."""
    again(made, finished=False)
    told(RESUME, 0)
    expected = (MODEL / "model.safetensors").read_bytes()
    good = json.loads((OLD / "state.json").read_text())
    numbers = good["players"]["network"]["groups"][0]["params"]
    for value in (numbers[::-1], numbers[:1] * len(numbers), ["x"], None):
        again(made, finished=False)
        shutil.rmtree(NEWEST)
        (OLD / "state.json").write_text(json.dumps(changed(good, (*GROUP, "params"), value)))
        signed(OLD)
        assert f"step {STEPS[1]}" in told(RESUME, 0)
        assert (MODEL / "model.safetensors").read_bytes() == expected


def test_links_in_a_run_lead_nowhere(made: Path, here: Path) -> None:
    """Nothing outside the run's folder is written, nothing is waited for."""
    names = ("metrics.jsonl", "run.lock", ".result.json.part", "result.json", "checkpoints", "checkpoints/.best.part")
    victim = here / "victim"
    for name in (*names, "checkpoints/.tmp-step-00000014", "logs", "model", ".model.new", "data.json"):
        for kind in ("file", "folder", "nothing", "pipe"):
            again(made, finished=False)
            path = RUN / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to(victim)
            if kind == "file":
                victim.write_text("mine")
            elif kind == "folder":
                (victim / "step-00000001").mkdir(parents=True)
            assert f"in which {path.name} is a link or a pipe" in told(RESUME, 2), (name, kind)
            if kind == "file":
                assert victim.read_text() == "mine"
                victim.unlink()
            elif kind == "folder":
                assert [path.name for path in victim.iterdir()] == ["step-00000001"]
                shutil.rmtree(victim)
            assert not victim.exists()
            told("list runs", 0)


def test_a_logger_writes_in_the_folder_of_its_run_alone(made: Path, here: Path) -> None:
    good = yaml.safe_load((RUN / "config.yaml").read_text())
    victim = here / "victim"
    for path in (str(victim), "../../victim", "../victim", "..", "", "below/victim", "/", ["victim", "/x"]):
        again(made, finished=False)
        victim.write_text("mine\n")
        logger = {"_target_": "dltrain.loggers.jsonl.JSONL", "path": path}
        (RUN / "config.yaml").write_text(yaml.safe_dump({**good, "logger": {"more": logger}}))
        assert "path of JSONL must be the name of a file in the run's folder, got " in told(RESUME, 2)
        assert victim.read_text() == "mine\n"


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))
YAMLS = {
    "deep": "x: " + "[" * 5000 + "]" * 5000,
    "no such day": "x: 2024-99-99",
    "a day": "x: 2024-01-01",
    "no time": "x: !!timestamp x",
    "no number": "x: !!int ''",
    "neither true nor false": "x: !!bool x",
    "bytes": "x: !!binary aGVsbG8=",
    "a set": "x: !!set {a, b}",
    "a bomb": BOMB,
    "a circle": "x: &x [*x]",
    "an alias": "x: &x 1\ny: *x",
    "numbers and words as keys": "3: 4",
    "lists as keys": "? [a]\n: 3",
    "half a character": 'x: "\\ud800"',
    "5000 digits": "x: " + "9" * 5000,
    "two documents": "x: 1\n---\ny: 2",
    "no data": "data: null",
    "a list of data": "data: []",
    "data of nothing": "data: {}",
    "no scheduler": "scheduler: {}",
    "no format": "format: x",
    "format 0": "format: 0",
    "no choices": "choices: {}",
    "no trust": "trust: null",
}


@pytest.mark.usefixtures("modest")
@pytest.mark.parametrize("case", YAMLS)
def test_yaml_that_is_no_config(case: str, made: Path, here: Path) -> None:
    again(made, finished=False)
    good = (RUN / "config.yaml").read_text()
    key = YAMLS[case].partition(":")[0]
    config = {name: value for name, value in yaml.safe_load(good).items() if name != key}
    (RUN / "config.yaml").write_text(f"{yaml.safe_dump(config)}\n{YAMLS[case]}\n")
    assert told(RESUME, 2).endswith("run, whose config.yaml is damaged")
    (RUN / "config.yaml").write_text(good)
    (RUN / "overrides.yaml").write_text(YAMLS[case])
    assert told(f"{RESUME} epochs=4", 2).endswith("run, whose overrides.yaml is damaged")


def test_what_is_written_has_no_aliases(here: Path) -> None:
    """Or it could not be read."""
    shared = ["x"]
    write_yaml(Path("x.yaml"), {"one": shared, "other": shared})
    assert read_yaml(Path("x.yaml")) == {"one": ["x"], "other": ["x"]}


def test_settings_that_were_tampered_with(made: Path, here: Path) -> None:
    """Without the hash they are noticed; with it, they are checked as typed ones are."""
    good = yaml.safe_load((RUN / "config.yaml").read_text())
    (RUN / "config.yaml").write_text(yaml.safe_dump(changed(good, ("data", "rows"), 90)))
    assert told("evaluate run=run", 65).startswith(f"dltrain: {RUN}/config.yaml: has changed since run run was")
    again(made, finished=False)
    (RUN / "config.yaml").write_text(yaml.safe_dump(changed(good, ("data", "rows"), 90)))
    assert told(RESUME, 65).startswith(f"dltrain: {RUN}/config.yaml: has changed since run run was started")
    for at, value, sentence in (
        (("optimizer", "lr"), "x", "optimizer.lr must be a number, got x"),
        (("optimizer", "lr"), 10**400, "optimizer.lr must be a number, got 1000"),
        (("optimizer", "betas"), [0.9], "optimizer.betas must be 2 numbers, got [0.9]"),
        (("shards",), "x", "shards must be a whole number of at least 1, or null, got x"),
        (("model", "hidden"), {"x": 3}, "model.hidden must be a list of whole numbers, got {x: 3}"),
    ):
        again(made, finished=False)
        config = changed(good, at, value)
        (RUN / "config.yaml").write_text(yaml.safe_dump({**config, "hash": digest(identity(config))}))
        assert sentence in told(RESUME, 2)


def test_a_monitor_that_is_no_name(made: Path, here: Path) -> None:
    good = json.loads((RUN / "result.json").read_text())
    for at in (("monitor",), ("direction",), ("epochs",), ("best_epoch",), ("rows_per_second",), ("valid", "loss")):
        for kind in VALUES:
            (RUN / "result.json").write_text(with_text(good, at, VALUES[kind]))
            assert "\nrun " in f"\n{listed()}"
            told("predict run=best input=new.csv", 0, 2)
            told(RESUME, 0)
            again(made)


def test_a_list_of_strange_runs(made: Path, here: Path) -> None:
    good = json.loads((RUN / "result.json").read_text())
    assert listed().split()[:3] == ["run", "finished", "3"]
    for at in (("monitor",), ("epochs",), ("valid", good["monitor"])):
        for kind in ("a list", "400 digits", "depth"):
            (RUN / "result.json").write_text(with_text(good, at, VALUES[kind]))
            assert listed().split()[:5] == ["run", "unfinished", "-", "loss", "-"], (at, kind)
    (RUN / "result.json").unlink()
    os.mkfifo(RUN / "result.json")
    assert listed().split()[:2] == ["run", "unfinished"]


def listed() -> str:
    """The line of the run in the list of all runs."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.run(["list", "runs"]) == 0
    return out.getvalue().splitlines()[1]


def test_a_result_may_say_anything(made: Path, here: Path) -> None:
    """It says whether a run is finished; `predict` needs the bundle alone."""
    good = json.loads((RUN / "result.json").read_text())
    for at in [(), ("status",), ("epochs",), ("valid",), ("valid", "accuracy"), ("test",), ("format",)]:
        for kind in ("null", "not a number", "infinity", "5000 digits", "a word", "half a character", "a mapping"):
            again(made)
            (RUN / "result.json").write_text(with_text(good, at, VALUES[kind]))
            assert "run" in told("list runs", 0)
            told(PREDICT, 0)
            told("predict run=last input=new.csv", 0)

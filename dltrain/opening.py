"""From a config to the locked folder of its run. This module alone names and makes run folders.

A run is built in `.<name>.new`, under a lock, and renamed once everything that could be wrong with it has been checked.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib import util
from pathlib import Path

from dltrain.data.content import content_hash, file_sha256
from dltrain.environment import DETERMINE, environment
from dltrain.errors import ConfigError, DiskError, must, nearest, show
from dltrain.run import (
    ELSEWHERE,
    FORMAT,
    GROUPS,
    WEIGHTS,
    WHERE,
    Config,
    Run,
    complete,
    differences,
    find,
    locked,
    read_yaml,
    runs,
    write_yaml,
)
from dltrain.settings import Settings, Transfer, own_settings


def identity(config: Config, processes: int = 1) -> Config:
    """What determines a run's result: the groups, files by content, the settings, and the source of trusted modules."""
    what: Config = {group: config.get(group) for group in GROUPS}
    what["data"] = content_hash(config["data"])
    what["model"] = own_settings(config["model"]) | Transfer.of(config["model"]).chosen()
    what["model"] |= {key: file_sha256(path) for key, path in origins(config).items()}
    what["pipeline"] = list((config.get("pipeline") or {}).items())  # the one mapping whose order matters
    what |= {f.name: config.get(f.name, f.default) for f in fields(Settings) if f.name not in ELSEWHERE}
    what["shards"] = what["shards"] or processes
    what["trust"] = {module: _source_hash(module) for module in config.get("trust") or []}
    return what


def _source_hash(module: str) -> str:
    try:
        found = util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or not found.origin:
        raise ConfigError(f"trust must name modules that can be imported from here, got {module}")
    must(found.has_location, "trust", "modules of your own, each a file", module)  # os is in the interpreter
    home = Path(found.origin)
    files = sorted(home.parent.rglob("*.py")) if home.name == "__init__.py" else [home]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def digest(what: Config) -> str:
    """The hash of an identity; mappings are sorted, so the order in which settings were typed does not matter."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def contents(what: Config) -> dict[str, str]:
    """The SHA-256 of every file of an identity, by the setting that names it, and of the source of trusted modules."""
    found = {f"data.{key}": value for key, value in what["data"].items() if key == "path" or key.endswith("_path")}
    found |= {f"model.{key}": what["model"].get(key) for key in ("from_run", "weights")}
    found |= {f"trust {module}": value for module, value in what["trust"].items()}
    return {key: str(value) for key, value in found.items() if value is not None}


def origins(config: Config) -> dict[str, Path]:
    """The file of weights that the network begins with, by the setting that names it; raises ConfigError without it."""
    transfer = Transfer.of(config["model"])
    if transfer.from_run:
        run = find(transfer.from_run, config["output_root"], "model.from_run").alone("model.from_run")
        path = run.finished("model.from_run") / "model.safetensors"
        if not path.is_file():
            raise ConfigError(f"model.from_run must have an undamaged model, got {run.name}: {path.name} is missing")
        return {"from_run": path}
    if transfer.weights:
        path = Path(transfer.weights).expanduser()
        others = [item.name for item in path.parent.glob("*.safetensors")]
        if path.suffix != ".safetensors" or not path.is_file():
            raise ConfigError(
                f"model.weights must be a .safetensors file, got {transfer.weights}{nearest(path.name, others)}"
            )
        return {"weights": path}
    return {}


def sourced(config: Config, processes: int = 1) -> Config:
    """A config whose network begins with what is found from any folder; raises ConfigError if there is no such thing.

    A run of these settings that has begun keeps a copy of what it began with, which serves where the other is gone.
    """
    model = config["model"]
    try:
        found = {key: path if key == "weights" else path.parent.parent for key, path in origins(config).items()}
    except ConfigError:
        for begun in runs(config["output_root"]) if not config["fresh"] else []:
            recorded = read_yaml(begun.folder / "config.yaml")
            if isinstance(recorded, dict) and complete(recorded) and _alike(model, recorded["model"]):
                kept = {key: begun.config()["model"][key] for key in ("from_run", "weights") if model.get(key)}
                same = {**config, "model": {**model, **kept}}
                if digest(identity(same, processes)) == recorded["hash"]:
                    return same
        raise
    return {**config, "model": {**model, **{key: str(path.absolute()) for key, path in found.items()}}}


def _alike(model: Config, recorded: Config) -> bool:
    """True if the beginning that a run has recorded is what these settings name."""
    for word, path in ((model[key], recorded.get(key)) for key in ("from_run", "weights") if model.get(key)):
        if not isinstance(path, str):
            return False
        if Path(word).expanduser().absolute() != Path(path) and not Path(path).name.startswith(word):
            return False
    return True


@contextmanager
def opened(config: Config, words: list[str], processes: int = 1) -> Iterator[tuple[Run, str, Config]]:
    """The run of a config, locked; the name that it gets or has; and its config, paths absolute and shards resolved.

    A new one lies in `.<name>.new` and is removed if it was not published.
    """
    config = sourced(config, processes)
    what = identity(config, processes)
    config = {**config, "data": absolute(config["data"]), "shards": what["shards"]}
    choices = config["choices"]
    name = config["name"] or f"{choices['data']}-{choices['model']}-{digest(what)[:8]}"
    root = Path(config["output_root"]).expanduser()
    with _home(root), _claimed(root / name, root / f".{name}.new", config["fresh"]) as run:
        try:
            if run.folder.name == name:
                _same(run, config, what, name)
            else:
                _fill(run, config, words, what)
            yield run, name, config
        finally:
            run.discard()


@contextmanager
def _home(root: Path) -> Iterator[None]:
    """The folder of all runs is there; what had to be made for it goes again if it stays empty."""
    made: list[Path] = []
    try:
        try:
            made += [path for path in (root, *root.parents) if not path.exists()]
            root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"output_root must be a folder, got {root}, where a file is in the way") from None
        except OSError as error:
            raise DiskError(f"cannot make the folder {root}: {(error.strerror or str(error)).lower()}") from error
        yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


@contextmanager
def _claimed(folder: Path, new: Path, fresh: bool) -> Iterator[Run]:
    """A run that is there, or else a new one, locked."""
    if fresh and Run(folder).result().get("status") == "finished":
        with locked(Run(folder)):
            set_aside(Run(folder))
    while True:
        run = Run(folder if folder.is_dir() else new)
        if run.folder is new:
            new.mkdir(parents=True, exist_ok=True)
        with locked(run) as there:
            if not there:  # removed while we looked
                continue
            if run.folder is new and folder.is_dir():  # published while we looked
                run.discard()
                continue
            yield run
            return


def _fill(run: Run, config: Config, words: list[str], what: Config) -> None:
    for path in run.folder.iterdir():  # left by a process that was killed before it could publish
        if path.name != "run.lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    head = {"format": FORMAT, "hash": digest(what)}
    write_yaml(run.folder / "config.yaml", head | {key: value for key, value in config.items() if key not in head})
    write_yaml(run.folder / "overrides.yaml", words)
    run.write("environment.json", environment() | {"content": contents(what)})
    for setting, path in origins(config).items():
        run.source.mkdir()
        if setting == "weights":
            shutil.copy2(path, run.source / WEIGHTS)
        else:
            shutil.copytree(path.parent, run.source / "model")
            shutil.copy2(path.parent.parent / "config.yaml", run.source)


def goes_on(run: Run, config: Config) -> None:
    """Record what a run goes on with: its config, and what it is trained in where that is not what it was."""
    run.record(config)
    (begun, *later), here = run.environments(), environment()
    if begun and any([begun, *later][-1].get(key) != here[key] for key in DETERMINE):
        run.write("environment.json", begun | {"continued": [*later, here]})


def absolute(data: Config) -> Config:
    """Data settings whose paths hold from any folder."""
    return {
        key: str(Path(value).expanduser().absolute()) if key.endswith("path") and isinstance(value, str) else value
        for key, value in data.items()
    }


def _same(run: Run, new: Config, what: Config, name: str) -> None:
    """Refuse a run of other settings under a name that the user gave."""
    config = run.config()
    if config.get("hash") == digest(what):
        return
    before = {
        key: value for key, value in config.items() if key not in (*ELSEWHERE, "format", "hash", "choices", *WHERE)
    }
    after = {key: value for key, value in new.items() if key in before}
    files = origins(new)
    for side in (before, after):  # where a file is does not matter
        side["data"] = {key: value for key, value in side["data"].items() if not key.endswith("path")}
        side["model"] = {key: value for key, value in side["model"].items() if key not in files}
    content = " or ".join(["data.path", *(f"model.{key}" for key in files)])
    changed = list(differences(before, after)) or [(f"the content of {content}", "another", "changed")]
    shown = "; ".join(f"{key} was {show(old)}, now {show(now)}" for key, old, now in changed[:5])
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    raise ConfigError(f"name must be free or of the same settings, got {name}, a run in which {shown}{more}")


def set_aside(run: Run) -> Path:
    """Move a finished run to `<name>~1` (or the next free number)."""
    number = 1
    while (target := run.folder.with_name(f"{run.folder.name}~{number}")).exists():
        number += 1
    run.folder.rename(target)
    return target

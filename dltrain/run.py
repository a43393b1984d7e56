"""A run on disk: its files, status and lock, and how a run is found."""

import fcntl
import json
import math
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from dltrain.errors import ConfigError, RunInUse, nearest, real, show, whole
from dltrain.settings import Settings, leaves

FORMAT = 1
WEIGHTS = "weights.safetensors"
MEMBERS = "members"  # folder, in an ensemble's, of the configs of the runs in it
GROUPS = ("data", "pipeline", "model", "activation", "task", "loss", "optimizer", "scheduler", "regularizer")
WHERE = ("trainer", "logger")  # groups that say where a run happens
# settings of where a run is, not of what it is
ELSEWHERE = ("name", "output_root", "fresh", "trust", "sample_every", "report", "sweep")
Config = dict[str, Any]


@dataclass
class Run:
    """A run folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def bundle(self) -> Path:
        """The folder with all that predict needs; raises ConfigError if the run has none yet."""
        return self.finished("run")

    def finished(self, setting: str) -> Path:
        """The folder with all that predict needs; raises ConfigError, about a setting, if the run has none yet."""
        if not (self.folder / "model" / "model.json").is_file():
            status = self.result().get("status", "unfinished")
            if status == "finished":
                raise ConfigError(f"{setting} must have an undamaged model, got {self.name}: model.json is missing")
            raise ConfigError(
                f"{setting} must be a finished run, got {self.name}, which is {status}; {self.command('resume')}"
            )
        return self.folder / "model"

    def command(self, verb: str, *words: str) -> str:
        """A line to paste that does something with it from here, trusting the modules that it trusts."""
        config = read_yaml(self.folder / "config.yaml")
        trust = config.get("trust") if isinstance(config, dict) else None
        trusted = [f"trust=[{','.join(map(str, trust))}]"] if trust and isinstance(trust, list) else []
        where = self.name if is_default(self.folder.parent) else self.folder
        return shlex.join(["dltrain", verb, f"run={where}", *words, *trusted])

    @property
    def source(self) -> Path:
        """The copy of what its network begins with: of a run as much as predict needs, or a file weights.safetensors.

        It is made when the run begins, which then needs the other no more.
        """
        return self.folder / "source"

    def config(self) -> Config:
        """The resolved config, whose network begins with the run's own copy of what it began with.

        Raises ConfigError if it cannot be read or is of a newer format.
        """
        config = self.recorded()
        copies = {"from_run": self.source, "weights": self.source / WEIGHTS}
        kept = {key: str(path) for key, path in copies.items() if config["model"].get(key) and path.exists()}
        return {**config, "model": {**config["model"], **kept}}

    def recorded(self) -> Config:
        """What config.yaml says; raises as `config` does."""
        return self._read("config.yaml")

    def _read(self, name: str) -> Config:
        path = self.folder / name
        config = read_yaml(path)
        if isinstance(config, dict):
            config = {"report": "auto", **config}  # runs that are older than this setting have none
            check_format(config, path)
        if not isinstance(config, dict) or not complete(config):
            raise ConfigError(f"run must be a run folder, got {self.folder}, whose {name} is damaged")
        return config

    def members(self) -> list[Config]:
        """The configs of the runs that it is an ensemble of, or its own; raises as `config` does."""
        files = sorted((self.folder / MEMBERS).glob("*.yaml"))
        return [self._read(f"{MEMBERS}/{file.name}") for file in files] or [self.config()]

    def alone(self, setting: str = "run") -> "Run":
        """Itself; raises ConfigError of an ensemble, which was put together of runs, not trained."""
        if (self.folder / MEMBERS).is_dir():
            raise ConfigError(f"{setting} must be a run that was trained, got {self.name}, an ensemble of several")
        return self

    def settings(self) -> dict[str, str]:
        """What was chosen of each group, and every setting, as they are typed; not where the run is.

        Raises ConfigError as `config` does.
        """
        config = self.config()
        found = {group: show(config["choices"].get(group)) for group in GROUPS}
        for group in GROUPS:
            found |= {f"{group}.{key}": show(value) for key, value in leaves(config[group])}
        single = (key for key, value in config.items() if not isinstance(value, dict))
        return found | {key: show(config[key]) for key in single if key not in (*ELSEWHERE, "format", "hash")}

    def trusted(self, trust: Collection[str]) -> Config:
        """The config, if all modules that it trusts are trusted here: a run folder may be a stranger's.

        Raises ConfigError before any of them is looked for: finding a module may import the package around it.
        """
        config = self.config()
        if others := [str(module) for module in config["trust"] if module not in trust]:
            raise ConfigError(
                f"trust must name the modules whose code run {self.name} uses, as in trust=[{','.join(others)}],"
                f" got {show(list(trust))}"
            )
        return config

    def words(self) -> list[str]:
        """The overrides that were typed; raises ConfigError if they cannot be read."""
        words = read_yaml(self.folder / "overrides.yaml")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ConfigError(f"run must be a run folder, got {self.folder}, whose overrides.yaml is damaged")
        return words

    def result(self) -> Config:
        """What result.json says; {} if there is none that can be read."""
        result = self.read("result.json")
        return result if all(KINDS[key](value) for key, value in result.items() if key in KINDS) else {}

    def environments(self) -> list[Config]:
        """What the run began in, and what it went on in where that was another, in turn."""
        begun = self.read("environment.json")
        later = begun.get("continued")
        return [begun, *(one for one in later if isinstance(one, dict))] if isinstance(later, list) else [begun]

    def read(self, name: str) -> Config:
        """What a JSON file says; {} if there is none that can be read."""
        try:
            content = json.loads(_text(self.folder / name))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file so that it is there whole or not at all."""
        write_whole(self.folder / name, json.dumps({"format": FORMAT, **content}, indent=2, ensure_ascii=False) + "\n")

    def record(self, config: Config) -> None:
        """Keep config.yaml what workers shall read: a run may go on in another place, with its data moved."""
        recorded = self.recorded()
        new = {**recorded, **config, **{key: recorded[key] for key in ("format", "hash", "model")}}
        if new != recorded:
            write_yaml(self.folder / "config.yaml", new)

    def publish(self, name: str) -> None:
        """Give a new run its name, now that all of it was checked."""
        if self.folder.name != name:
            target = self.folder.with_name(name)
            self.folder.rename(target)
            self.folder = target

    def discard(self) -> None:
        """Remove a run that never got its name; whatever a folder is called otherwise, it is somebody's."""
        if self.folder.name.startswith(".") and self.folder.name.endswith(".new"):
            shutil.rmtree(self.folder, ignore_errors=True)


def told_apart(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The settings of several runs, without those that go with the seed in all of them, as that of a split may."""
    every = [run.settings() for run in runs]
    others = {key for one in every for key, value in one.items() if key.endswith(".seed") and value != one["seed"]}
    return [{k: v for k, v in one.items() if not k.endswith(".seed") or k in others} for one in every]


def complete(config: Config) -> bool:
    """True if a config has everything that a run's config must have."""
    choices = config.get("choices")
    return (
        whole(config.get("format"), 1)
        and all(isinstance(config.get(group), dict) for group in (*GROUPS, *WHERE))
        and all("_target_" in config[group] for group in ("data", "model", "optimizer", "scheduler", "trainer"))
        and all(f.name in config for f in fields(Settings))
        and isinstance(choices, dict)
        and choices.keys() >= {"data", "model", "trainer", "scheduler"}
        and isinstance(config["trust"], list)
        and isinstance(config.get("hash"), str)
    )


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return whole(value, 0) and value < 2**53


def _number(value: Any) -> bool:
    return value is None or isinstance(value, float) or real(value)


def _scores(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


KINDS: dict[str, Callable[[Any], bool]] = {  # of what is read in result.json
    **dict.fromkeys(("status", "monitor", "direction", "reason", "health"), _word),
    **dict.fromkeys(("epochs", "best_epoch"), _count),
    **dict.fromkeys(("valid", "test", "members"), _scores),
    "each": lambda value: isinstance(value, dict) and all(map(_scores, value.values())),
    "rows_per_second": _number,
}


def _text(path: Path) -> str:
    """The text of a file; raises OSError for what is none: a pipe would be waited for."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Refuses aliases, of which a few lines make a tree that no memory holds, or one without an end."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


class _Dumper(yaml.CSafeDumper):
    """Writes no aliases, and by libyaml, which takes a fifth of the time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_yaml(path: Path) -> Any:
    """What a YAML file says; None if it cannot be read, or says what JSON could not."""
    try:
        content = yaml.load(_text(path), _Loader)
        json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
    except Exception:  # what a stranger's file makes yaml stumble over is of any kind
        return None
    return content


def parsed(text: str) -> Any:
    """What a text says as YAML; the text itself if it says nothing."""
    try:
        return yaml.load(text, _Loader) if text else text
    except Exception:
        return text


def write_yaml(path: Path, content: Any) -> None:
    write_whole(path, yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False))


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: temporary file, sync, rename."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def check_format(content: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for a file written by a newer dltrain."""
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ConfigError(f"{path} must be of format {FORMAT} or older, got {version}; update dltrain")


def lock(folder: Path) -> IO[str] | None:
    """Hold the run's lock until the file is closed; None if the folder is not there any more.

    Raises RunInUse if another process writes it, ConfigError for links: what is written here would be elsewhere.
    """
    for path in (*folder.glob("*"), *folder.glob("checkpoints/*"), *folder.glob("logs/*")):
        if path.is_symlink() or path.is_fifo():
            raise ConfigError(
                f"run must be a folder of files, got {folder.name}, in which {path.name} is a link or a pipe"
            )
    try:
        file = (folder / "run.lock").open("a+", encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        name = folder.name.removeprefix(".").removesuffix(".new") if folder.name.startswith(".") else folder.name
        raise RunInUse(f"run {name} is in use by {holder}") from None
    if not os.fstat(file.fileno()).st_nlink:  # its folder was removed before we had the lock
        file.close()
        return None
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, pid {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
    file.flush()
    return file


@contextmanager
def locked(run: Run) -> Iterator[bool]:
    """Hold the run's lock; False if its folder is not there any more. Raises RunInUse if another process writes it."""
    file = lock(run.folder)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()


def differences(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (setting, before, after) for every leaf in which two configs differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after} - {"format"}):
            yield from differences(before.get(key), after.get(key), f"{prefix}{key}.")
    elif before != after:
        yield prefix.rstrip("."), before, after


def find(word: str, root: str = "outputs", setting: str = "run", sweeps: Collection[str] | None = None) -> Run:
    """A run by its folder, a unique prefix of its name, `last` or `best`; raises ConfigError if there is none.

    The last run to begin with is one that is finished: the run that begins with it is a run as well. `sweeps` could
    have been named in its place.
    """
    given = Path(word).expanduser()
    if given.is_dir() and (given / "config.yaml").is_file():
        return Run(given.resolve())
    there = runs(root)
    if word in ("last", "best"):
        any_will_do = word == "last" and setting in ("run", "runs")
        ended = there if any_will_do else [run for run in there if run.result().get("status") == "finished"]
        picked = _last(ended) if word == "last" else _best(ended)
        if picked is None:
            raise ConfigError(
                f"{setting}={word} must have {'a run' if any_will_do else 'a finished run'} in {root}, got none"
            )
        return picked
    matching = [run for run in there if run.name == word] or [run for run in there if run.name.startswith(word)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(run.name for run in matching)
        raise ConfigError(f"{setting} must be the beginning of one name, got {word}, which begins {names}")
    if given.is_dir():
        raise ConfigError(f"{setting} must be a run folder, got {word}, which has no config.yaml")
    what = "a run" if sweeps is None else "a run or a sweep"
    tail = nearest(word, [*(run.name for run in there), *(sweeps or ())])
    raise ConfigError(f"{setting} must be {what} in {root}, got {word}{tail}")


def is_default(root: Path) -> bool:
    """Whether runs are looked for in this folder unless output_root is said."""
    return root.resolve() == Path("outputs").resolve()


def runs(root: str) -> list[Run]:
    """The runs in a folder, by name."""
    home = Path(root).expanduser()
    return [Run(path) for path in sorted(home.iterdir()) if _is_run(path)] if home.is_dir() else []


def _is_run(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and (path / "config.yaml").is_file()


def _last(runs: list[Run]) -> Run | None:
    return max(
        runs,
        key=lambda run: (run.folder / "result.json").stat().st_mtime if (run.folder / "result.json").exists() else 0,
        default=None,
    )


def _best(finished: list[Run]) -> Run | None:
    """The run with the best monitored validation metric, among the finished runs with the metric of the last one."""
    newest = _last(finished)
    if newest is None:
        return None
    monitor, data = newest.result().get("monitor"), newest.config().get("data")
    rivals = [run for run in finished if run.result().get("monitor") == monitor and run.config().get("data") == data]
    sign = -1.0 if newest.result().get("direction") == "min" else 1.0

    def score(run: Run) -> float:
        value = run.result().get("valid", {}).get(monitor)
        return sign * value if value is not None and not math.isnan(value) else -math.inf

    return max(rivals, key=score)

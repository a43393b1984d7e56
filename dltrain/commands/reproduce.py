"""Prove a run again: check data, code and environment, train it once more beside the old one, compare every step."""

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field

from dltrain.commands import parse_known
from dltrain.commands.diff import differing, table, verdict
from dltrain.commands.train import go
from dltrain.compose import compose, literals
from dltrain.errors import ConfigError, DataError, must, show
from dltrain.launch import led, processes
from dltrain.opening import contents, digest, identity, opened
from dltrain.run import ELSEWHERE, WHERE, Config, Run, differences, find, locked, read_yaml

BESIDE = "reproduced"  # the folder beside a run in which it is trained again, under its name


@dataclass
class Options:
    """What `dltrain reproduce` takes; other words are settings that shall be otherwise, such as data.path."""

    run: str  # a folder, the beginning of a run's name, last or best
    trust: list[str] = field(default_factory=list)  # modules of your own that the run's parts come from
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Say what is not as it was, train `run=...` again and say how equal that is; 0 if equal to the bit, else 1."""
    options, overrides = parse_known(words, Options)
    found = find(options.run, options.output_root).alone()
    found.finished("run")
    must(found.folder.parent.name != BESIDE, "run", "the run itself", f"{options.run}, which reproduces it")
    new = _again(found, found.trusted(options.trust), overrides)
    n = processes(new)
    with led(new) as leads:
        return _reproduce(found, new, n) if leads else 0


def _again(found: Run, config: Config, overrides: list[str]) -> Config:
    """A run's config with what is typed changed, on as many threads as it had, and told to no logger."""
    moved = _paths(literals(overrides)[0].get("data", {}))
    others = [word for word in overrides if word.partition("=")[0] not in {f"data.{key}" for key in moved}]
    typed = found.words()
    if others:
        elsewhere = any(word.startswith("trainer=") for word in others)  # which has settings of its own
        kept = [word for word in typed if not (elsewhere and word.lstrip("+~").startswith("trainer"))]
        after = _changed(config, compose(typed), compose([*kept, *others]))
    else:
        after = config
    trainer = {**after["trainer"], "threads": after["trainer"].get("threads") or found.result().get("threads")}
    return {
        **after,
        "data": {**after["data"], **moved},
        "trainer": trainer,
        "logger": {},
        "sample_every": None,
        "report": False,
    }


def _changed(config: Config, before: Config, after: Config) -> Config:
    """A config with what differs between two others, of a group no more than the settings that do."""
    changed = dict(config)
    for key, value in after.items():
        if isinstance(value, dict) and before["choices"].get(key) == after["choices"].get(key):
            changed[key] = {**config[key], **{k: v for k, v in value.items() if v != before[key].get(k)}}
        elif value != before[key]:
            changed[key] = value
    return changed


def _reproduce(found: Run, config: Config, n: int) -> int:
    """Train again, beside; what differs is said before, where it is known, and after."""
    home, name = found.folder.parent / BESIDE, re.sub(r"[^A-Za-z0-9._-]", ".", found.name)
    config = {**config, "name": name, "output_root": str(home), "fresh": False}
    try:
        hashed = digest(identity(config, n))
    except DataError as error:
        raise DataError(f"{error}; data.path=... says where the data is now") from None
    _make_room(Run(home / name), hashed)
    with opened(config, found.words(), n) as (again, name, resolved):
        before = _edited(found, config) + differing(found, again)
        if before:
            print("\n".join(table(["recorded", "here"], before)), flush=True)
        go(again, name, resolved)
    later = [row for row in differing(found, again) if row not in before]
    equal, lines = verdict(found, again)
    print("\n".join([*(table(["recorded", "here"], later) if later else []), *lines]))
    return 0 if equal else 1


def _edited(found: Run, config: Config) -> list[list[str]]:
    """What of a run's config.yaml is not as it was when the run began: its hash tells that something is."""
    recorded = found.config()
    what = identity({**recorded, "data": {**recorded["data"], **_paths(config["data"])}})
    known = found.read("environment.json").get("content")
    if digest(what) == recorded["hash"] or contents(what) != known:
        return []
    with suppress(ConfigError):  # what was typed may name choices of another place
        typed = compose(found.words())
        typed |= {key: recorded[key] for key in ("shards", *ELSEWHERE, *WHERE) if key in recorded}
        edited = differences({**typed, "data": typed["data"] | _paths(recorded["data"])}, recorded)
        if rows := [[key, show(one), show(two)] for key, one, two in edited if key not in ("hash", "format")]:
            return rows
    return [["hash of all settings", recorded["hash"][:12], digest(what)[:12]]]


def _paths(data: Config) -> Config:
    """The settings of data that say where files are."""
    return {key: value for key, value in data.items() if key == "path" or key.endswith("_path")}


def _make_room(earlier: Run, hashed: str) -> None:
    """Remove what was reproduced earlier, unless it is of the same settings and not finished: then it goes on."""
    if earlier.folder.is_dir():
        with locked(earlier) as there:
            unfinished = (
                earlier.result().get("status") != "finished"
                and (read_yaml(earlier.folder / "config.yaml") or {}).get("hash") == hashed
            )
            if there and not unfinished:
                shutil.rmtree(earlier.folder)

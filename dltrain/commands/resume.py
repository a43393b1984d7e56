"""Continue a run found by its name, elsewhere if wanted, or with more epochs as a new run."""

import shutil
from dataclasses import dataclass, field

from dltrain.commands import parse_known
from dltrain.commands.train import go
from dltrain.compose import compose, recheck
from dltrain.errors import ConfigError, DataError
from dltrain.fingerprint import file as fingerprint
from dltrain.launch import led, processes
from dltrain.opening import digest, identity, opened
from dltrain.run import WHERE, Config, Run, differences, find, locked
from dltrain.settings import leaves


@dataclass
class Options:
    """What `dltrain resume` takes; other words are settings of the run."""

    run: str  # a folder, the beginning of a run's name, or last
    trust: list[str] = field(default_factory=list)  # modules of your own that the run's parts come from
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Continue `run=...`; `trainer=` and `logger=` may change, `epochs=N` starts a new run from its checkpoint."""
    options, overrides = parse_known(words, Options)
    found = find(options.run, options.output_root).alone()
    config = found.trusted(options.trust)
    if digest(identity(config)) != config["hash"]:
        what = config["data"].get("path") or found.folder / "config.yaml"
        raise DataError(f"{what}: has changed since run {found.name} was started")
    recheck(config)
    if "sweep" in config:  # who continues a trial that was pruned wants it whole
        config["sweep"] = {**config["sweep"], "of": None}
    typed, new = overrides, config
    if overrides:
        typed = [*_kept(found.words(), overrides), *overrides]
        new = _overridden(config, found.words(), typed)
    n = processes(new)
    with led(new) as leads:
        if leads and new["epochs"] == config["epochs"]:
            with locked(found):
                go(found, found.name, new)
        elif leads:
            _extend(found, new, typed, n)
    return 0


def _kept(words: list[str], overrides: list[str]) -> list[str]:
    """The words of a run but for settings that what is chosen in place of it does not have.

    trainer=single has no trainer.devices, which were typed for trainer=ddp.
    """
    chosen = {word.partition("=")[0] for word in overrides} & {*WHERE}
    settings = {word: word.lstrip("+~").partition("=")[0] for word in words}
    about = [word for word, key in settings.items() if "." in key and key.split(".")[0] in chosen]
    there = dict(leaves(compose([*(word for word in words if word not in about), *overrides]))) if about else {}
    return [word for word in words if word not in about or settings[word] in there]


def _overridden(config: Config, words: list[str], others: list[str]) -> Config:
    """The run's config with what other words than its own change; raises ConfigError for what changes mathematics."""
    before, after = compose(words), compose(others)
    for setting, old, new in differences(before, after):
        group = setting.split(".")[0]
        if group not in (*WHERE, "choices", "epochs"):
            raise ConfigError(
                f"{setting} must stay {old} in a run that is continued, got {new}, which would change its result; "
                "without resume it is a run of its own"
            )
    moved = {group: after[group] for group in WHERE}
    return {**config, **moved, "epochs": after["epochs"], "choices": {**config["choices"], **after["choices"]}}


def _extend(found: Run, new: Config, words: list[str], n: int) -> None:
    """A new run of more epochs, started from a copy of the checkpoints."""
    from dltrain.build import Builder

    builder, scheduler = Builder(new, tuple(new["trust"])), new["choices"]["scheduler"]
    if any(builder.accepts("scheduler", word) for word in ("total_steps", "T_max")):
        raise ConfigError(f"epochs must stay as it is with scheduler={scheduler}, whose curve depends on the last step")
    done = found.result().get("epochs", 0)
    if new["epochs"] <= done:
        raise ConfigError(f"epochs must be more than the {done} of run {found.name}, got {new['epochs']}")
    beside = {"name": None, "output_root": str(found.folder.parent)}
    with opened({**new, **beside}, words, n) as (run, name, config):
        if run.folder.name != name:  # it has not been started before
            with locked(found):  # its checkpoints come and go while another process trains it
                _copy(found, run)
        go(run, name, config)


def _copy(found: Run, run: Run) -> None:
    """What a run has come to, for another to go on from there."""
    for source in ("checkpoints", "metrics.jsonl", "environment.json", fingerprint.NAME):
        path = found.folder / source
        if path.is_dir():
            shutil.copytree(path, run.folder / source)
        elif path.is_file():
            shutil.copy2(path, run.folder / source)

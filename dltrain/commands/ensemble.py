"""Make one model of several: of finished runs, picked on validation rows, or of runs trained on folds of the rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dltrain.commands import parse, parse_known
from dltrain.commands.compare import named, scores
from dltrain.commands.train import predict_command, train
from dltrain.compose import compose
from dltrain.ensembles.weighing import METHODS
from dltrain.errors import ConfigError, DataError, must, nearest
from dltrain.launch import external
from dltrain.opening import digest, identity, opened
from dltrain.report.terminal import Terminal
from dltrain.report.text import aligned, number
from dltrain.run import MEMBERS, Config, Run, differences, write_yaml
from dltrain.settings import RULES, Transfer

LISTED = 20  # members on the terminal
FREE = ("target_transform", "shape", "ignore", "columns", "weight")  # settings of data that move no row


@dataclass
class Options:
    """What `dltrain ensemble` takes; with folds, other words are settings of what is trained, as for train."""

    runs: list[str] = field(default_factory=list)  # finished runs, as for compare: folders, names, patterns, or sweeps
    folds: int | None = None  # or train on so many folds of the rows, each time without one
    method: str | None = None  # how runs are weighed: greedy, average or stack (default greedy; of folds the average)
    metric: str | None = None  # what greedy goes by; left out: what picked the runs' best epochs
    name: str | None = None  # folder of the ensemble; left out: named by what it is made of
    fresh: bool = False  # true: make it again even if it is there
    trust: list[str] = field(default_factory=list)  # modules of your own that the runs' networks come from
    output_root: str = "outputs"  # where runs are looked for, and made


def run(words: list[str]) -> int:
    """Make the ensemble, a run like any other, or show it if it has been made."""
    options, settings = parse_known(words, Options)
    must(bool(options.runs) != (options.folds is not None), "runs", "given, or folds in its place", options.runs)
    method = options.method or ("average" if options.folds else "greedy")
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method}{nearest(method, METHODS)}")
    holds, requirement = RULES["name"]
    must(holds(options.name), "name", requirement, options.name)
    must(not external(), "ensemble", "started as one process", "several")
    if options.folds is None:
        parse(words, Options)  # no other words are known
        runs = _finished(options)
        metric = options.metric or _monitor(runs)
    else:
        must(options.folds >= 2, "folds", "a whole number of at least 2", options.folds)
        must(method == "average", "method", "average of folds, which share no validation row", method)
        must(options.metric is None, "metric", "left out with folds, which all count the same", options.metric)
        runs, metric = _trained(options, settings), None
    configs = [run.trusted(options.trust) for run in runs]
    with opened(_config(options, method, metric, runs, configs), words) as (made, name, config):
        _make(made, name, config, runs, configs)
    return 0


# The runs that it is made of.


def _finished(options: Options) -> list[Run]:
    """The finished runs that are meant, by name; raises ConfigError unless they are of the same rows."""
    found = {run.folder.resolve(): run for word in options.runs for run in named(word, options.output_root)}
    single = [run for run in found.values() if not (run.folder / MEMBERS).is_dir()]
    runs = sorted((run for run in single if run.result().get("status") == "finished"), key=lambda run: run.name)
    must(len(runs) >= 2, "runs", "two finished runs or more", [run.name for run in runs] or options.runs)
    first, config = runs[0], runs[0].trusted(options.trust)
    if digest(identity(config)) != config["hash"]:
        what = config["data"].get("path") or first.folder / "config.yaml"
        raise DataError(f"{what}: has changed since run {first.name} was trained")
    for other in runs[1:]:
        for setting, one, another in differences(_rows(first, options.trust), _rows(other, options.trust)):
            hint = "; data.split.seed=0 gives runs of every seed the same" * (setting == "data.split.seed")
            raise ConfigError(
                f"runs must have the same rows in every split, got {first.name} and {other.name},"
                f" whose {setting} is {one} and {another}{hint}"
            )
    if left := len(found) - len(runs):
        print(f"{left:,} left out: not finished, or an ensemble")
    return runs


def _rows(run: Run, trust: Sequence[str]) -> Config:
    """What says which rows are in which split of a run."""
    data = run.trusted(trust)["data"]
    data = {key: value for key, value in data.items() if not key.endswith("path") and key not in FREE}
    try:
        told = json.loads((run.folder / "data.json").read_text(encoding="utf-8"))
        content = [told.get("content_hash"), told.get("other_hashes")]
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ConfigError(f"runs must have an undamaged data.json, got {run.name}") from None
    return {"data": {**data, "content": content}}


def _monitor(runs: Sequence[Run]) -> str:
    """The metric that picked the best epochs of all; raises ConfigError where there are several."""
    found = [*dict.fromkeys(str(run.result().get("monitor")) for run in runs)]
    must(len(found) == 1, "metric", f"one of {', '.join(found)} for runs that went by several", None)
    return found[0]


def _trained(options: Options, settings: list[str]) -> list[Run]:
    """A run for each fold, trained if it has not been."""
    assert options.folds is not None
    for word in settings:
        if word.lstrip("+~").startswith("data.split.fold"):
            raise ConfigError(f"{word.partition('=')[0]} must be left out with folds, got {word.partition('=')[2]}")
    trust = [f"trust=[{','.join(options.trust)}]"] if options.trust else []
    words = [*settings, *trust, f"output_root={options.output_root}", f"data.split.folds={options.folds}"]
    each = [[*words, f"data.split.fold={fold}"] for fold in range(options.folds)]
    configs, names = [compose(one) for one in each], list[str]()
    nodes = configs[0]["trainer"].get("nodes", 1)
    must(nodes == 1, "trainer.nodes", "1 with folds", nodes)
    for fold, (config, typed) in enumerate(zip(configs, each, strict=True), 1):
        print(f"fold {fold} of {options.folds}", flush=True)
        train({**config, "report": config["report"] is True}, typed, names.append)
    return [Run(Path(options.output_root).expanduser() / name) for name in names]


# What is made of them.


def _config(
    options: Options, method: str, metric: str | None, runs: Sequence[Run], configs: Sequence[Config]
) -> Config:
    """What all of them share, null where they differ, and how they are put together."""
    shared: Config = _common(configs)
    weights = "".join(str(run.result().get("weights_sha256")) for run in runs)
    own = {"method": method, "metric": metric, "runs": [run.name for run in runs]}
    own["content"] = hashlib.sha256(weights.encode()).hexdigest()
    seed = shared["seed"] if shared["seed"] is not None else shared["data"].get("split", {}).get("seed", 0)
    trust = sorted({module for config in configs for module in config["trust"]})
    return {
        **{key: value for key, value in shared.items() if key not in ("format", "hash")},
        "choices": {**configs[0]["choices"], **shared["choices"], "model": "ensemble"},
        "model": {"_target_": "dltrain.tasks.ensemble.Ensemble", **own, **asdict(Transfer())},
        **{"seed": seed, "shards": None, "name": options.name, "fresh": options.fresh},
        **{"trust": trust, "output_root": options.output_root},
    }


def _common(nodes: Sequence[Any]) -> Any:
    """What several configs say alike; null where they do not."""
    first = nodes[0]
    if all(isinstance(node, Mapping) for node in nodes):
        keys = dict.fromkeys(key for node in nodes for key in node)
        return {key: _common([node.get(key) for node in nodes]) for key in keys}
    return first if all(node == first for node in nodes) else None


def _make(made: Run, name: str, config: Config, runs: Sequence[Run], configs: Sequence[Config]) -> None:
    """Put the runs together in the folder of the ensemble, and show what came of it."""
    terminal, result = Terminal(), made.result()
    if result.get("status") == "finished":
        terminal.opening(f"{made.name} is finished; fresh=true makes it again")
        _show(terminal, made, result)
        return
    told = config["model"]
    terminal.opening(f"{name}  {told['method']} of {len(runs):,} runs")
    # torch, pandas and scikit-learn: the first words are on the screen
    from dltrain.ensembles.combining import of_folds, weighed

    bundles, trust = [run.bundle for run in runs], tuple(config["trust"])
    if told["metric"] is None:
        found = of_folds(bundles, configs, trust)
    else:
        found = weighed(bundles, configs, told["method"], told["metric"], trust)
    members = {runs[k].name: float(weight) for k, weight in zip(found.kept, found.task.weights, strict=True)}
    seconds = sum(float(runs[k].result().get("seconds") or 0) for k in found.kept)
    result = {"status": "finished", "monitor": found.monitor[0], "direction": found.monitor[1], "members": members}
    result |= {"valid": found.valid, "test": found.test(), "seconds": round(seconds, 3)}
    each = {runs[k].name: {key: scores(runs[k]).get(key) for key in _shown(result)} for k in found.kept}
    (made.folder / MEMBERS).mkdir()
    for place, k in enumerate(found.kept):
        write_yaml(made.folder / MEMBERS / f"{place:03}-{runs[k].name}.yaml", runs[k].recorded())
    made.write("data.json", found.views.each[0].description)
    sha = found.save(made.folder / "model", config["choices"])
    made.write("result.json", {**result, "each": each, "weights_sha256": sha})
    made.publish(name)
    _show(terminal, made, made.result())


def _shown(result: Config) -> tuple[str, str]:
    return f"valid/{result.get('monitor')}", f"test/{result.get('monitor')}"


def _show(terminal: Terminal, made: Run, result: Config) -> None:
    """The members with their weights, then the ensemble itself."""
    metrics = _shown(result)
    rows = [["weight", *metrics, "run"]]
    for name, weight in result.get("members", {}).items():
        scored = result.get("each", {}).get(name, {})
        rows.append([number(weight), *(number(scored.get(key)) for key in metrics), name])
    for line in aligned(rows[: LISTED + 1], frozenset({0, 1, 2})):
        terminal.note(line)
    if (more := len(rows) - 1 - LISTED) > 0:
        terminal.note(f"  ... {more:,} more in result.json")
    terminal.finish(result, str(made.folder), predict_command(made))

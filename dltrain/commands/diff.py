"""Compare two runs step by step: equal to the bit, equal within so much, or the first different step and why."""

import re
from dataclasses import dataclass
from itertools import groupby

from dltrain.commands import parse
from dltrain.commands.compare import scores
from dltrain.commands.help import heading
from dltrain.commands.list import width
from dltrain.errors import show
from dltrain.fingerprint.compared import compare
from dltrain.fingerprint.file import read
from dltrain.report.text import aligned, number, shown
from dltrain.run import GROUPS, MEMBERS, Config, Run, find, told_apart

HOW = (
    "trainer",
    "processes",
    "threads",
    "device",
    "compile",
    "deterministic",
)  # of a result: how it came about
UNDER = {"python": "python", "platform": "platform", "processor": "processor", "source of dltrain": "source"}


@dataclass
class Options:
    """What `dltrain diff` takes; two words without a name are a and b."""

    a: str  # a folder, the beginning of a run's name, last or best; the word alone will do
    b: str  # another
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Show what two runs differ in; returns 0 if they are equal to the bit, else 1."""
    free = [key for key in ("a", "b") if not any(word.startswith(f"{key}=") for word in words)]
    named = [f"{free.pop(0)}={word}" if free and re.match(r"[^-=][^=]*$", word) else word for word in words]
    options = parse(named, Options)
    mine, other = find(options.a, options.output_root, "a"), find(options.b, options.output_root, "b")
    return tell(mine, other, differing(mine, other))


def tell(mine: Run, other: Run, found: list[list[str]]) -> int:
    """Print what differs about two runs, and where they part; returns 0 if they are equal to the bit, else 1."""
    if found:
        print("\n".join(table([mine.name, other.name], found)))
    equal, lines = verdict(mine, other)
    print("\n".join(lines))
    return 0 if equal else 1


def table(names: list[str], found: list[list[str]]) -> list[str]:
    """What differs, as lines."""
    cells = [[shown(cell) for cell in row] for row in [["what differs", *names], *found]]
    first, *others = aligned(cells, width=width())
    return [heading(first), *others]


def differing(mine: Run, other: Run) -> list[list[str]]:
    """What is known to differ about two runs: its name, and both values. Settings first, then content, then how."""
    settings = [{k: v for k, v in one.items() if not _place(k)} for one in told_apart((mine, other))]
    chosen = {key for key in settings[0] if key in GROUPS and settings[0][key] != settings[1].get(key)}
    found = [
        [key, *(side.get(key, "-") for side in settings)]
        for key in dict.fromkeys(key for side in settings for key in side)
        if key.partition(".")[0] not in chosen - {key} and "_target_" not in key
    ]
    known = surroundings(mine), surroundings(other)
    found += [[key, value, known[1][key]] for key, value in known[0].items() if key in known[1]]
    return [[key, _short(one), _short(two)] for key, one, two in found if one != two]


def surroundings(run: Run) -> dict[str, str]:
    """What else than settings determines what a run comes to, as far as it is recorded."""
    environments, data, result = run.environments(), run.read("data.json"), run.result()
    found = {f"content of {key}": [value] for key, value in _table(environments[0], "content").items()}
    if "content of data.path" not in found:
        found["content of data"] = [data.get("content_hash")]
    under = [_table(one, "versions") | {key: one.get(name) for key, name in UNDER.items()} for one in environments]
    found |= {key: [one.get(key) for one in under] for key in under[0]}
    found |= {key: [result.get(key)] for key in HOW}
    told = {key: [show(value) for value in each if value is not None] for key, each in found.items()}
    return {key: ", then ".join(one for one, _ in groupby(each)) for key, each in told.items() if each}


def _table(content: Config, key: str) -> Config:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _place(setting: str) -> bool:
    """Whether a setting says where a file is: the content matters, which is looked at of its own."""
    return setting in ("model.from_run", "model.weights") or (setting.startswith("data.") and setting.endswith("path"))


def _short(value: str) -> str:
    """A value, of hashes no more than the beginning."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", value)


def verdict(mine: Run, other: Run) -> tuple[bool, list[str]]:
    """Whether two runs are equal to the bit, and what to say of it."""
    taken = read(mine.folder), read(other.folder)
    compared = compare(taken[0], taken[1]) if taken[0] is not None and taken[1] is not None else None
    weights = [run.result().get("weights_sha256") for run in (mine, other)]
    ended = [weight is not None for weight in weights]
    said = _scores(mine, other)
    if compared is None:
        if all(ended) and weights[0] == weights[1] and not said:
            return True, ["equal to the bit: the weights and the scores (of the steps nothing is recorded)"]
        lacking = [run for run, moves in zip((mine, other), taken, strict=True) if moves is None]
        why = _without(lacking) if lacking else "they have no step in common"
        return False, ["different", f"at which step is not known: {why}", *said]
    names = [str(run.folder) if mine.name == other.name else run.name for run in (mine, other)]
    steps = f"{compared.steps:,} step{'s' * (compared.steps != 1)}"
    if compared.began:
        said.append(f"before step {compared.began:,} nothing is recorded of one of them")
    if compared.lengths[0] != compared.lengths[1]:
        said.append(f"{names[0]} has {compared.lengths[0]:,} steps, {names[1]} {compared.lengths[1]:,}")
    for name, together in zip(names, compared.together, strict=True):
        if together:
            said.append(f"{together:,} steps of {name} were taken together with other runs, which rounds otherwise")
    if compared.first is None:
        if compared.equal and weights[0] == weights[1] and not said:
            return True, [f"equal to the bit: {steps}{', the weights and the scores' if all(ended) else ''}"]
        return False, [f"equal to the bit in {steps}, different after them", *said]
    within = [f"equal within {number(compared.apart)}: the losses of {steps}"] if compared.close else []
    return False, [*within, f"first different step: {compared.told()}", *said]


def _without(lacking: list[Run]) -> str:
    """Which runs have no fingerprint, and why, where they are ensembles."""
    made = any((run.folder / MEMBERS).is_dir() for run in lacking)
    has = "has" if len(lacking) == 1 else "have"
    return f"{' and '.join(run.name for run in lacking)} {has} no fingerprint{': ensembles are not trained' * made}"


def _scores(mine: Run, other: Run) -> list[str]:
    """The scores that differ, in words; of the monitored one if there are several."""
    one, two = scores(mine), scores(other)
    differ = [key for key in one if key in two and one[key] != two[key]]
    monitored = [key for key in differ if key.partition("/")[2] == mine.result().get("monitor")]
    return [f"{key} {one[key]:.9g}, {two[key]:.9g}" for key in monitored or differ]

"""The page of a run, from what its files say. A stranger's files may say anything: what makes no sense is left out."""

import base64
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dltrain.errors import real
from dltrain.report import description, figures
from dltrain.report.page import Block, Cell, Code, Figure, Page, Picture, Section, Table
from dltrain.report.text import clock, number

Content = dict[str, Any]
CLASSES = 20  # whose confusion is shown
TARGETS = 4  # whose predictions are drawn
COLUMNS = 200  # of the data, that are listed
FEW = 4  # names of a list that are told
OPEN = 15  # columns that are not folded away
LAYERS = 8  # that are drawn
PICTURES = 3  # of samples
SIGNATURE = b"\x89PNG\r\n\x1a\n"
UNITS = {  # of metrics, as an axis says them
    "accuracy": "share of rows",
    "balanced_accuracy": "mean share of a class",
    "log_loss": "nats a row",
    "calibration_error": "probability",
    "r2": "share of the variance",
    "f1": "from 0 to 1",
    "auroc": "area from 0 to 1",
    "average_precision": "area from 0 to 1",
    "rmse": "the target's unit",
    "mae": "the target's unit",
    "bits_per_token": "bits",
    "bits_per_character": "bits",
    "silhouette": "from -1 to 1",
    "adjusted_rand": "from -1 to 1",
}


@dataclass
class Files:
    """What a run's folder holds, as far as it can be read."""

    name: str
    config: Content
    commands: Sequence[str]  # what to type to use it, and to make it again
    settings: str = ""  # config.yaml
    environment: Content = field(default_factory=dict)
    data: Content = field(default_factory=dict)
    result: Content = field(default_factory=dict)
    records: Sequence[Content] = ()
    curves: Content = field(default_factory=dict)
    samples: Mapping[str, bytes] = field(default_factory=dict)


def page(files: Files) -> Page:
    """Everything there is to see of a run."""
    made: tuple[tuple[str, Callable[[Files], Iterator[Block]]], ...] = (
        ("Learning", learning),
        ("Metrics", metrics),
        (f"Predictions of {_rows(files.curves.get('split'))}", predictions),
        ("Samples", samples),
        ("Health of the network", health),
        ("Data", data),
        ("Commands", commands),
        ("Settings and environment", settings),
    )
    lead, facts = _safely(lambda: (sentence(files), key_numbers(files)), ("", []))
    found = Page(files.name, lead, facts)
    for title, blocks in made:
        section = _safely(partial(_made, blocks, files), None)
        text = _safely(partial(_text, title, files), "")
        if section is None:
            found.sections.append(Section(title, text="What the run's files say of this cannot be shown."))
        elif section or text:
            found.sections.append(Section(title, section, text))
    return found


def _made(blocks: Callable[[Files], Iterator[Block]], files: Files) -> list[Block]:
    return [*blocks(files)]


def _safely(make: Callable[[], Any], otherwise: Any) -> Any:
    """What is made of files, if they hold what they must."""
    try:
        return make()
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return otherwise


def _text(title: str, files: Files) -> str:
    if title.startswith("Health"):
        return str(files.result.get("health") or "")
    if title == "Data":
        lines = [description.source(files.data), description.target_line(files.data.get("target") or {})]
        return "; ".join(line for line in [*lines, description.splits_line(files.data)] if line) + "."
    if missing := title.startswith("Predictions") and files.curves.get("missing"):
        return f"Not drawn, since the rows could not be scored again. {missing}"
    return ""


def _rows(split: Any) -> str:
    return {"test": "the test rows", "valid": "the validation rows"}.get(str(split), "rows")


def sentence(files: Files) -> str:
    """What was trained on what, and what came of it, for somebody who knows nothing of it."""
    config, result = files.config, files.result
    choices, splits = config["choices"], files.data.get("splits") or {}
    network = f"A network ({choices['model']}) was trained by {choices.get('optimizer')}"
    rows = f" on {splits['train']:,} training rows of" if "train" in splits else " on rows of"
    told = f"{network}{rows} {files.data.get('source') or choices['data']}{_aim(files)}"
    status = str(result.get("status") or "unfinished")
    if status != "finished":
        reason = f": {result['reason']}" if result.get("reason") else ""
        done = f"{result.get('epochs', 0):,} of {config['epochs']:,} epochs"
        return f"{told}. Its training is {status} after {done}{reason}."
    early = ", stopped early" if result.get("stopped_early") else ""
    epochs = f"It saw them {_times(result['epochs'])}{early}; the best epoch was {result.get('best_epoch')}."
    name, value = _headline(result.get("test") or {}, str(result.get("monitor")))
    test = f" On {splits.get('test', 0):,} test rows, which it had never seen, its {name} is {value}." if name else ""
    return f"{told}. {epochs}{test}"


def _aim(files: Files) -> str:
    """What is to be learnt."""
    target = files.data.get("target") or {}
    names = ", ".join([*map(str, target.get("names") or ())][:FEW]) + ", ..." * (len(target.get("names") or ()) > FEW)
    classes = [str(one) for one in target.get("classes") or ()]
    match files.curves.get("kind"):
        case "number":
            several = len(target["names"]) > 1
            return (
                f" to predict {len(target['names']):,} numbers, {names}"
                if several
                else f" to predict {names}, a number"
            )
        case "binary":
            return f" to tell whether {names} is {classes[1]} or {classes[0]}"
        case "classes":
            return f" to tell which of {len(classes):,} classes {names} is"
        case "multilabel":
            return f" to answer yes or no for {len(target['names']):,} columns"
    return f" (task={files.config['choices'].get('task')})"


def _times(n: int) -> str:
    return "once" if n == 1 else "twice" if n == 2 else f"{n:,} times"


def _headline(scores: Content, monitor: str) -> tuple[str, str]:
    """The metric that a person asks for first."""
    for name in ("accuracy", "rmse", monitor, *scores):
        if real(scores.get(name)):
            return name.replace("_", " "), number(scores[name])
    return "", ""


def key_numbers(files: Files) -> list[tuple[str, str]]:
    """The numbers that count."""
    result, splits = files.result, files.data.get("splits") or {}
    split = "test" if result.get("test") else "valid"
    scores = {name: value for name, value in (result.get(split) or {}).items() if real(value) and "/" not in name}
    first = [name for name in scores if name != "loss"][:4] or [*scores][:1]
    facts = [(f"{split} {name.replace('_', ' ')}", number(scores[name])) for name in first]
    facts += [("best epoch", f"{result['best_epoch']:,} of {result['epochs']:,}")] if result.get("best_epoch") else []
    seconds = float(result["seconds"]) if real(result.get("seconds")) else 0.0
    facts += [("time to train", f"{seconds:.1f} s" if seconds < 60 else clock(seconds))] if seconds else []
    facts += [("rows a second", f"{result['rows_per_second']:,.0f}")] if real(result.get("rows_per_second")) else []
    facts += [("training rows", f"{splits['train']:,}")] if "train" in splits else []
    return [("status", str(result.get("status") or "unfinished")), *facts]


def learning(files: Files) -> Iterator[Block]:
    """Losses, the monitored and the first metric, and the learning rate by epoch."""
    records, result = files.records, files.result
    if not records:
        return
    x, best = _epochs(files), result.get("best_epoch")
    best = best if real(best) and result.get("status") == "finished" else None
    mark = f" The dashed line is the best epoch, {best}." if best is not None else ""
    losses = {name: _curve(records, x, f"{name}/loss") for name in ("train", "valid")}
    text = "Mean loss of the training rows while the network changed, and of the validation rows after." + mark
    yield figures.lines("Loss", text, losses, "epoch", "loss (mean of a row)", best, log=True)
    parts = [key for key in _keys(records) if re.fullmatch(r"(train|valid)/\w+_loss", key) and key != "valid/log_loss"]
    if parts:
        own = {key.removesuffix("_loss"): _curve(records, x, key) for key in parts}
        yield figures.lines("Loss of each player", "Of the networks that play.", own, "epoch", "loss (mean)", best)
    told = [key for key in _keys(records) if key.startswith("valid/") and key.count("/") == 1 and key != "valid/loss"]
    monitor = f"valid/{result.get('monitor')}"
    for key in dict.fromkeys([key for key in told if key == monitor] + [key for key in told if key not in parts][:1]):
        name = key.removeprefix("valid/")
        why = "On validation rows." + (" It picks the best epoch." if key == monitor else "") + mark
        title = f"Validation {name.replace('_', ' ')}"
        yield figures.lines(title, why, {name: _curve(records, x, key)}, "epoch", unit(name), best)
    rates = {"learning rate": _curve(records, x, "lr")}
    text = "The size of a step, as the scheduler has set it."
    yield figures.lines("Learning rate", text, rates, "epoch", "learning rate (step size)", log=True)


def unit(name: str) -> str:
    """A metric, with its unit where it has one of its own."""
    first = name.partition("/")[0]
    return figures.short(name.replace("_", " ")) + (f" ({UNITS[first]})" if first in UNITS else "")


def _epochs(files: Files) -> list[float]:
    """Where each record stands, in epochs."""
    result, records = files.result, files.records
    if real(result.get("steps")) and result.get("epochs"):
        steps = result["steps"] / result["epochs"]
    else:
        steps = min((one["step"] / one["epoch"] for one in records if one.get("epoch")), default=1)
    return [record["step"] / max(steps, 1e-9) for record in records]


def _keys(records: Sequence[Content]) -> list[str]:
    return [*dict.fromkeys(key for record in records for key in record)]


def _curve(records: Sequence[Content], x: Sequence[float], key: str) -> figures.Points:
    points = [(at, record[key]) for at, record in zip(x, records, strict=True) if key in record]
    return [at for at, _ in points], [value for _, value in points]


def metrics(files: Files) -> Iterator[Block]:
    """Every metric of validation and test rows."""
    splits = {"train": "training", "valid": "validation", "test": "test"}
    found = {word: files.result[split] for split, word in splits.items() if files.result.get(split)}
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    if names:
        rows = [[name, *(number(scores.get(name)) for scores in found.values())] for name in names]
        yield Table(["metric", *found], rows, right=frozenset(range(1, len(found) + 1)))


def predictions(files: Files) -> Iterator[Block]:
    """Of classes what is taken for what, and curves; of numbers predictions against the truth."""
    curves = files.curves
    each = curves.get("each") or []
    for name, one in [(str(one["name"]), one) for one in curves.get("numbers") or []][:TARGETS]:
        yield figures.against(figures.short(name), one["true"], one["predicted"])
        yield figures.residuals(figures.short(name), one["true"], one["predicted"])
        title, text = f"Residuals of {figures.short(name)}, counted", f"Of all {curves['rows']:,} rows."
        yield figures.counts(title, text, one["counts"], one["edges"], "predicted less true (the target's unit)")
    drawn = [one for one in each if one.get("roc")][: len(figures.SERIES)]
    if drawn:
        of = {f"{one['name']} ({one['auroc']:.3f})": one["roc"] for one in drawn}
        text = "How many of a class are found for how many of the others; in brackets the area."
        x, y = "false alarms (share of the others)", "found (share of the class)"
        yield figures.ranking("ROC", text, of, x, y, chance=True)
        of = {f"{one['name']} ({one['average_precision']:.3f})": one["precision_recall"] for one in drawn}
        text = "How many of those that are taken for a class are of it; in brackets the average precision."
        x, y = "recall (share of the class found)", "precision (share that is right)"
        yield figures.ranking("Precision and recall", text, of, x, y, chance=False)
    if curves.get("calibration"):
        several = curves["kind"] == "classes"
        yield figures.calibration(curves["calibration"], "mean largest p" if several else "mean p")
    if each and curves.get("confusion"):
        yield confusion([str(one["name"]) for one in each], curves["confusion"])
    if each:
        yield _per_class(each)


def confusion(names: Sequence[str], found: Sequence[Sequence[int]]) -> Table:
    """Rows of each true class by the class they were taken for; of many classes those with the most mistakes."""
    wrong = [sum(row) - row[k] + sum(other[k] for other in found) - row[k] for k, row in enumerate(found)]
    kept = sorted(sorted(range(len(found)), key=lambda k: -wrong[k])[:CLASSES])
    title = "Confusion: rows of each true class (left) by the class they were taken for (above)"
    title += f"; the {CLASSES} classes with the most mistakes" if len(kept) < len(found) else ""
    rows: list[list[str | Cell]] = []
    for k in kept:
        total = max(1, sum(found[k]))
        rows.append([names[k], *(Cell(f"{found[k][j]:,}", shade=found[k][j] / total) for j in kept)])
    right = frozenset(range(1, len(kept) + 1))
    return Table(["true \\ taken for", *(names[k] for k in kept)], rows, title, right)


def _per_class(each: Sequence[Content]) -> Table:
    """Precision, recall, f1 and rows of every class."""
    keys = [
        key
        for key in ("rows", "precision", "recall", "f1", "auroc", "average_precision")
        if any(key in one for one in each)
    ]
    rows = [[str(one["name"]), *(f"{one[k]:,}" if k == "rows" else number(one.get(k)) for k in keys)] for one in each]
    header = ["class", *(key.replace("_", " ") for key in keys)]
    return Table(header, rows, "Each class", frozenset(range(1, len(header))))


def samples(files: Files) -> Iterator[Block]:
    """What the network made while it trained: a few pictures, the last table or texts."""
    pictures = [
        name for name, content in files.samples.items() if name.endswith(".png") and content.startswith(SIGNATURE)
    ]
    spaced = {round(k * (len(pictures) - 1) / (PICTURES - 1)) for k in range(PICTURES)} if pictures else set()
    for name in [pictures[k] for k in sorted(spaced)]:
        coded = base64.b64encode(files.samples[name]).decode()
        yield Picture(f"Samples after {_when(name)}", f"data:image/png;base64,{coded}")
    if texts := [name for name in files.samples if name.endswith(".txt")]:
        yield Code(files.samples[texts[-1]].decode("utf-8", "replace"), f"Samples after {_when(texts[-1])}")
    if tables := [name for name in files.samples if name.endswith(".csv")]:
        yield _rows_made(tables[-1], files.samples[tables[-1]].decode("utf-8", "replace"))


def _rows_made(name: str, text: str) -> Figure | Table:
    """Rows that were made: of two columns a picture, else the first of them as a table."""
    header, *rows = csv.reader(io.StringIO(text))
    if len(header) == 2 and rows:
        xs, ys = ([float(row[k]) for row in rows] for k in (0, 1))
        return figures.scatter(f"Samples after {_when(name)}", "Rows that the network made.", (xs, ys), *header)
    few = [[_cut(cell) for cell in row] for row in rows[:8]]
    return Table(header, few, f"Samples after {_when(name)}", frozenset(range(len(header))))


def _cut(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def _when(name: str) -> str:
    return f"epoch {int(found[1]):,}" if (found := re.search(r"(\d+)\.\w+$", name)) else name


def health(files: Files) -> Iterator[Block]:
    """Gradients, updates and dead units of the layers, as far as a step was looked at."""
    x = _epochs(files)
    drawn = (
        ("gradient", "Gradients", "The norm of the gradient of each layer's weights.", "norm of the gradient", True),
        ("update", "Updates", "By how much of itself a step changes each layer.", "step over weight (norms)", True),
        ("dead", "Dead units", "Units that no row of a batch moves.", "dead units (share)", False),
        ("saturated", "Saturated units", "Values at which the activation is flat.", "flat values (share)", False),
    )
    keys = _keys(files.records)
    for prefix, title, text, y, log in drawn:
        names = [key.removeprefix(f"{prefix}/") for key in keys if key.startswith(f"{prefix}/")]
        spaced = sorted({round(k * (len(names) - 1) / (LAYERS - 1)) for k in range(LAYERS)}) if len(names) > 1 else [0]
        found = {names[k]: _curve(files.records, x, f"{prefix}/{names[k]}") for k in spaced if names}
        if any(points[0] for points in found.values()):
            more = f" {len(found)} of {len(names):,} layers." if len(found) < len(names) else ""
            if len(found) == 1:
                more += f" Layer {names[0]}."
            yield figures.lines(title, text + more, found, "epoch", y, log=log)


def data(files: Files) -> Iterator[Block]:
    """The columns, and the components of a PCA."""
    if shares := [share for share in files.data.get("components") or [] if real(share)]:
        yield figures.scree(shares)
    columns = files.data.get("columns") or []
    rows = [[str(c.get("name", "")), description.kind(c), description.values(c)] for c in columns[:COLUMNS]]
    if rows:
        more = (
            f"The first {COLUMNS} of {len(columns):,} columns"
            if len(columns) > COLUMNS
            else f"{len(columns):,} columns"
        )
        yield Table(["column", "kind", "values in training rows"], rows, more, folded=len(columns) > OPEN)


def commands(files: Files) -> Iterator[Block]:
    """What to type to use the run, and to make it again."""
    yield Code("\n".join(files.commands))


def settings(files: Files) -> Iterator[Block]:
    """The resolved config, and where it was trained."""
    place = files.environment
    versions = {f"{name} (version)": value for name, value in (place.get("versions") or {}).items()}
    git = place.get("git") or {}
    commit = {"commit": f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}"} if git else {}
    told = {key: place[key] for key in ("started", "python", "platform", "processor", "cores") if key in place}
    ran = {key: files.result[key] for key in ("device", "threads", "trainer", "processes") if key in files.result}
    rows = [[key, str(value)] for key, value in (told | ran | commit | versions).items()]
    if rows:
        yield Table(["environment", ""], rows)
    if files.settings:
        yield Code(files.settings, "Every setting (config.yaml)", folded=True)

"""`dltrain report`: the numbers against scikit-learn's, one file that needs nothing, whatever the run's files say."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
import yaml
from runs import Trained, command, launch, working
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from test_help import on_terminal

from dltrain import cli, curves
from dltrain.choices import options
from dltrain.commands import report
from dltrain.data.target import Target
from dltrain.report import sweeps

HOSTILE = ("<script>alert(1)</script>", "猫 & \"quotes\" 'more'", "$x_1$ ${jndi}", "a very long name " * 8)
SMALL = ["model.hidden=[8]", "trainer.threads=1", "report=true"]
VOID = {"meta", "img", "br", "link", "input"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("report")) as folder:
        draw = np.random.default_rng(0)
        with (folder / "hostile.csv").open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(["高さ <b>cm</b>", "${x}", "plain", "<i>kind</i>"])
            for k in range(240):
                lines.writerow([*(draw.normal(size=3) + k % 4).round(4), HOSTILE[k % 4]])
        (folder / "book.txt").write_text("one two three four five\nsix seven eight\n" * 60, encoding="utf-8")
        (folder / "pairs.csv").write_text("a,b\n" + "".join(f"{k},{k + 1}\n" for k in range(100, 300)))
        yield folder


@pytest.fixture(scope="module")
def digits() -> Trained:
    return launch("data=digits", "epochs=3", *SMALL, "model.hidden=[32]", name="digits")


@pytest.fixture(scope="module")
def diabetes() -> Trained:
    return launch("data=diabetes", "pipeline=pca", "pipeline.pca.n_components=0.9", "epochs=4", *SMALL, name="diabetes")


@pytest.fixture(scope="module")
def hostile() -> Trained:
    words = ["data=csv", "data.path=hostile.csv", "data.target=<i>kind</i>", "epochs=3", *SMALL]
    return launch(*words, name="hostile")


class Page(HTMLParser):
    """A page as its elements; fails where they are not nested, and keeps tables by title as rows of words."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.open, self.words = text, [""], [""]
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == [""], f"{self.open} are never closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        assert len(dict(attributes)) == len(attributes), attributes
        if tag not in VOID:
            self.open.append(tag)
            self.words.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"
        words = self.words.pop()
        if tag in ("th", "td"):
            self.tables[-1][-1].append(words)
        else:
            self.words[-1] += words

    def handle_data(self, data: str) -> None:
        self.words[-1] += data

    @property
    def said(self) -> str:
        """Everything that a person can read, outside of tables."""
        return self.words[0]

    def table(self, first: str) -> list[list[str]]:
        """The rows of the table whose header begins so."""
        [found] = [table for table in self.tables if table[0][0] == first]
        return found[1:]


def page(run: Trained | Path) -> Page:
    folder = run if isinstance(run, Path) else run.folder
    found = Page((folder / "report.html").read_text(encoding="utf-8"))
    check(found)
    return found


def check(page: Page) -> None:
    """What holds of every page: it needs nothing, runs nothing, and every name in it is one thing's."""
    assert "://" not in page.text
    assert "cannot be shown" not in page.said
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "link", "object", "embed", "base", "foreignobject")
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert re.fullmatch(r"(#[\w.-]+|\.\./\.\./[\w.-]+/report\.html)?", attributes.get("href", ""))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    meant = re.findall(r'(?:href="|url\()#([\w.-]+)', page.text)
    assert set(meant) <= set(names)
    assert not re.search(r"url\((?!#)|@import|#0[1-9a-f](0[1-9a-f]){2}\b", page.text)  # no colour but the page's
    pictures = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert all(attributes["aria-label"] for attributes in pictures)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def told(run: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the test rows by the bundle, and the truth in its own units."""
    rows = run.data.test
    target = run.model.preparation.target
    return run.model.outputs(rows["features"]).double().numpy(), target.decode(rows["target"]).numpy()


def test_classes_are_told_as_scikit_learn_tells_them(digits: Trained) -> None:
    p, truth = told(digits)
    found, kept = page(digits), digits.read("curves.json")
    confusion = reference.confusion_matrix(truth, p.argmax(1))
    assert [[int(cell) for cell in row[1:]] for row in found.table("true \\ taken for")] == confusion.tolist()
    each = reference.classification_report(truth, p.argmax(1), output_dict=True, zero_division=0)
    for k, row in enumerate(found.table("class")):
        expected = each[str(k)]
        assert row[0] == str(k)
        assert int(row[1]) == expected["support"]
        values = [expected["precision"], expected["recall"], expected["f1-score"]]
        area = reference.roc_auc_score(truth == k, p[:, k])
        values += [area, reference.average_precision_score(truth == k, p[:, k])]
        assert [float(cell) for cell in row[2:]] == pytest.approx(values, abs=6e-5)
        assert f"{k} ({area:.3f})" in found.said
        false, true, _ = reference.roc_curve(truth == k, p[:, k])
        assert np.trapezoid(*kept["each"][k]["roc"][::-1]) == pytest.approx(area, abs=1e-4)
        assert kept["each"][k]["roc"] == [false.round(6).tolist(), true.round(6).tolist()]
    right, mean = calibration_curve(p.argmax(1) == truth, p.max(1), n_bins=10)
    assert kept["calibration"]["right"] == pytest.approx(right.tolist())
    assert kept["calibration"]["p"] == pytest.approx(mean.tolist())
    assert sum(kept["calibration"]["rows"]) == kept["rows"] == len(truth)
    accuracy = reference.accuracy_score(truth, p.argmax(1))
    assert ["accuracy", f"{digits.result['valid']['accuracy']:.4f}", f"{accuracy:.4f}"] in found.table("metric")
    assert f"its accuracy is {accuracy:.4f}" in found.said


def test_yes_and_no_are_told_as_scikit_learn_tells_them() -> None:
    run = launch("data=breast_cancer", "epochs=3", "task.threshold=auto", *SMALL)
    p, truth = told(run)
    choice = p[:, 0] > float(run.model.task.threshold)
    kept = run.read("curves.json")
    assert kept["confusion"] == reference.confusion_matrix(truth[:, 0], choice).tolist()
    assert "roc" not in kept["each"][0]  # it would be the other's, turned
    assert kept["each"][1]["auroc"] == pytest.approx(reference.roc_auc_score(truth[:, 0], p[:, 0]))
    right, mean = calibration_curve(truth[:, 0], p[:, 0], n_bins=10)
    assert kept["calibration"]["right"] == pytest.approx(right.tolist())
    assert kept["calibration"]["p"] == pytest.approx(mean.tolist())
    assert [row[0] for row in page(run).table("class")] == list(run.model.preparation.target.classes)


def test_numbers_are_told_as_they_are(diabetes: Trained) -> None:
    p, truth = told(diabetes)
    kept = diabetes.read("curves.json")
    [one] = kept["numbers"]
    assert one["true"] == truth[:, 0].tolist()  # fewer rows than are kept
    assert one["predicted"] == pytest.approx(p[:, 0].tolist(), rel=1e-6)
    counts, edges = np.histogram(p[:, 0] - truth[:, 0], bins=len(one["counts"]))
    assert one["counts"] == counts.tolist()
    assert one["edges"] == pytest.approx(edges.tolist(), rel=1e-5)
    rmse = reference.root_mean_squared_error(truth, p)
    assert f"its rmse is {rmse:.2f}" in page(diabetes).said
    for axis in ("true progression", "predicted progression", "predicted less true", "rmse (the target's unit)"):
        assert axis in page(diabetes).text


def test_the_scree_plot_is_of_the_training_rows(diabetes: Trained) -> None:
    frame = yaml.safe_load((diabetes.folder / "data.json").read_text(encoding="utf-8"))
    from sklearn.datasets import load_diabetes

    rows = load_diabetes().data[diabetes.data.train["row"].numpy()]
    shares = PCA(0.9, svd_solver="full").fit(StandardScaler().fit_transform(rows)).explained_variance_ratio_
    assert frame["components"] == pytest.approx(shares.tolist(), rel=1e-9)
    assert f"{len(shares)} components tell {shares.sum():.1%} of the variance" in page(diabetes).said


def test_labels_are_told_as_scikit_learn_tells_them() -> None:
    draw = np.random.default_rng(1)
    p, truth = draw.random((60, 3)), draw.integers(0, 2, (60, 3))
    labels = (("no", "yes"),) * 3
    target = Target("multilabel", ("a", "b", "c"), labels=labels)
    found = curves.curves(target, torch.tensor(p), torch.tensor(truth).float(), 0.4)
    each = reference.precision_recall_fscore_support(truth, p > 0.4, average=None)
    for k, one in enumerate(found["each"]):
        assert [one["precision"], one["recall"], one["f1"], one["rows"]] == [values[k] for values in each]
        assert one["auroc"] == reference.roc_auc_score(truth[:, k], p[:, k])
    right, mean = calibration_curve(truth.ravel(), p.ravel(), n_bins=10)
    assert found["calibration"]["right"] == right.tolist()
    assert found["calibration"]["p"] == mean.tolist()


def test_what_is_kept_is_small_however_many_rows() -> None:
    draw = np.random.default_rng(2)
    classes = tuple(f"c{k}" for k in range(30))
    p = torch.tensor(draw.dirichlet(np.ones(30), 20_000))
    truth = torch.tensor(draw.integers(0, 30, 20_000))
    found = curves.curves(Target("classes", ("x",), classes), p, truth)
    assert len(json.dumps(found)) < 150_000
    assert sum("roc" in one for one in found["each"]) == curves.DRAWN
    for one, k in ((one, k) for k, one in enumerate(found["each"]) if "roc" in one):
        area = reference.roc_auc_score(truth == k, p[:, k])
        assert np.trapezoid(*one["roc"][::-1]) == pytest.approx(area, abs=0.01)
    numbers = curves.curves(Target("number", ("y",)), p[:, :1], p[:, 1:2])
    assert len(numbers["numbers"][0]["true"]) == curves.SHOWN
    assert sum(numbers["numbers"][0]["counts"]) == 20_000


def test_nothing_is_kept_of_predictions_that_are_no_numbers() -> None:
    assert curves.curves(Target("number", ("y",)), torch.full((3, 1), torch.nan), torch.zeros(3, 1)) == {}
    assert curves.curves(Target("number", ("y",)), torch.zeros(0, 1), torch.zeros(0, 1)) == {}


def test_a_class_that_no_test_row_has() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    found = curves.curves(Target("classes", ("x",), ("a", "b", "c")), p, torch.tensor([0, 1]))
    assert found["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert ["roc" in one for one in found["each"]] == [True, True, False]


@pytest.mark.parametrize("task", sorted(options("task")))
def test_every_task_has_a_page(task: str) -> None:
    words = {
        "language": [
            "data=text",
            "data.path=book.txt",
            "model=gpt",
            "model.width=16",
            "model.depth=1",
            "data.length=8",
        ],
        "translation": ["data=pairs", "data.path=pairs.csv", "data.source=a", "data.target=b", "model.width=16"],
    }.get(task, ["data=digits", "data.rows=200", "model.hidden=[16]"])
    words += ["model=encoder_decoder", "model.depth=1"] if task == "translation" else []
    quick = {"diffusion": ["task.steps=10", "task.sampling_steps=3"]}.get(task, [])
    run = launch(*words, f"task={task}", "epochs=2", "sample_every=1", "report=true", "trainer.threads=1", *quick)
    found = page(run)
    for title in ("Learning", "Metrics", "Health of the network", "Data", "Commands", "Settings and environment"):
        assert f"\n{title}\n" in found.said
    makes = (run.folder / "samples").is_dir()
    assert ("Samples after epoch 2" in found.said) == makes
    assert makes == (task in ("vae", "gan", "diffusion", "language"))
    assert (run.folder / "curves.json").exists() == (task == "supervised")
    assert "epoch" in found.text
    assert f"dltrain reproduce run={run.name}" in found.said


def test_what_users_have_named_is_text(hostile: Trained) -> None:
    found = page(hostile)
    assert "<script>" not in found.text
    assert "<i>" not in found.text
    assert "<b>cm" not in found.text
    shown = [name.strip() for name in HOSTILE]
    assert sorted(row[0].strip() for row in found.table("class")) == sorted(shown)
    assert "高さ <b>cm</b>" in {row[0] for row in found.table("column")}
    assert "which of 4 classes <i>kind</i> is" in found.said


def test_a_name_at_an_axis_is_text(here: Path) -> None:
    text = (here / "hostile.csv").read_text(encoding="utf-8")
    (here / "numbers.csv").write_text(text.replace("plain", "$x$ & <script>价格"), encoding="utf-8")
    words = ["data=csv", "data.path=numbers.csv", "data.target=$x$ & <script>价格", "epochs=2", *SMALL]
    run = launch(*words)
    assert "true $x$ &amp; &lt;script&gt;价格" in page(run).text


def test_the_same_files_give_the_same_bytes(digits: Trained) -> None:
    before = (digits.folder / "report.html").read_bytes()
    command("report", "run=digits")
    assert (digits.folder / "report.html").read_bytes() == before
    code = f"from dltrain import cli; cli.run(['report', 'run={digits.folder.absolute()}', 'out=other.html'])"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert Path("other.html").read_bytes() == before


GONE = ["environment.json", "data.json", "result.json", "metrics.jsonl", "curves.json", "model", "overrides.yaml"]


@pytest.mark.parametrize("gone", [*GONE[:-1], GONE[:-1]], ids=str)
def test_what_is_missing_is_left_out(gone: str | list[str], diabetes: Trained) -> None:
    folder = copied(diabetes, "missing")
    for name in [gone] if isinstance(gone, str) else gone:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command("report", f"run={folder}")
    assert "diabetes" in page(folder).said


def copied(run: Trained, name: str) -> Path:
    folder = run.folder.with_name(name)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run.folder, folder)
    return folder


WRONG: dict[str, list[Any]] = {
    "data.json": [
        [],
        {"columns": 3},
        {"columns": [3]},
        {"target": []},
        {"splits": {"train": "many"}},
        {"components": {}},
    ],
    "environment.json": ["text", {"versions": []}, {"git": "here"}, {"versions": {"<script>": "<script>"}}],
    "curves.json": [{"kind": 3}, {"each": [{}]}, {"numbers": [{"name": "x"}]}, {"kind": "classes", "calibration": {}}],
    "result.json": [{"status": "finished"}, {"status": "<script>"}, {"epochs": 2, "seconds": "long", "steps": []}],
    "metrics.jsonl": [{"step": 1}, {"step": 2, "valid/loss": "low"}, {"step": 0, "epoch": 0}, {"step": 1, "lr": {}}],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, every in WRONG.items() for one in every], ids=repr)
def test_what_makes_no_sense_is_left_out(name: str, content: Any, diabetes: Trained) -> None:
    folder = copied(diabetes, "wrong")
    (folder / name).write_text(json.dumps(content) + "\n")
    command("report", f"run={folder}")
    text = (folder / "report.html").read_text(encoding="utf-8")
    Page(text)
    assert "<script" not in text


def test_damaged_files_and_large_samples_are_left_out(diabetes: Trained) -> None:
    folder = copied(diabetes, "damaged")
    for name in ("data.json", "environment.json", "curves.json", "metrics.jsonl"):
        (folder / name).write_bytes(b'{"a": \xff[[')
    (folder / "samples").mkdir()
    (folder / "samples" / "epoch-00001.png").write_bytes(b"<script>")
    (folder / "samples" / "epoch-00002.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(report.LARGEST))
    (folder / "samples" / "epoch-00003.png").symlink_to("/etc/passwd")
    command("report", f"run={folder}")
    assert "data:image" not in page(folder).text


def test_a_failed_run_has_a_page_that_says_why(digits: Trained) -> None:
    folder = copied(digits, "failed")
    result = {"status": "failed", "epochs": 2, "reason": "the loss of step 41 is not finite <b>"}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "curves.json").unlink()
    command("report", f"run={folder}")
    said = page(folder).said
    assert "Its training is failed after 2 of 3 epochs: the loss of step 41 is not finite <b>." in said
    assert "\nLearning\n" in said


@pytest.mark.parametrize("words", [["epochs=1"], ["data.split.test=0"], ["evaluate_every=3steps"]])
def test_short_and_partial_runs_have_a_page(words: list[str]) -> None:
    run = launch("data=iris", *SMALL, *(["epochs=2"] if "epochs=1" not in words else []), *words)
    found = page(run)
    rows = "validation" if "data.split.test=0" in words else "test"
    assert f"\nPredictions of the {rows} rows\n" in found.said


def test_a_run_without_matplotlib_says_so_and_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no\nink")

    monkeypatch.setattr("dltrain.report.figures.svg", broken)
    run = launch("data=iris", "epochs=1", *SMALL)
    assert run.result["status"] == "finished"
    assert "warning: report.html was not written (RuntimeError: no ink)" in run.printed
    assert not (run.folder / "report.html").exists()


def test_curves_that_fail_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dict[str, Any]:
        raise ZeroDivisionError("rows")

    monkeypatch.setattr("dltrain.tasks.supervised.curves", broken)
    run = launch("data=iris", "epochs=1", *SMALL)
    assert run.result["status"] == "finished"
    assert "curves.json: not written" in run.printed
    assert "Predictions" not in page(run).said


def test_report_is_a_setting() -> None:
    run = launch("data=iris", "epochs=1", "model.hidden=[8]")  # report=false
    assert not (run.folder / "report.html").exists()
    assert cli.run(["data=iris", "epochs=1", "model.hidden=[8]", "output_root=auto", "name=x"]) == 0
    assert Path("auto/x/report.html").exists()
    Path("auto/x/report.html").unlink()
    assert (
        cli.run(["data=iris", "epochs=1", "model.hidden=[8]", "output_root=auto", "name=x"]) == 0
    )  # shown, not trained
    assert Path("auto/x/report.html").exists()


def test_predictions_that_were_not_kept_are_made_again(here: Path) -> None:
    (here / "flowers.csv").write_text(load_iris(as_frame=True).frame.to_csv(index=False))
    words = ["data=csv", "data.path=flowers.csv", "data.target=target", "epochs=2", *SMALL]
    kept, spared = launch(*words), launch(*(word for word in words if word != "report=true"))
    assert not (spared.folder / "curves.json").exists()
    command("report", f"run={spared.name}")
    for header in ("true \\ taken for", "class"):
        assert page(spared).table(header) == page(kept).table(header)
    (here / "flowers.csv").write_text((here / "flowers.csv").read_text().replace("5.1,", "5.2,", 1))
    command("report", f"run={spared.name}")
    said = page(spared).said
    assert "Not drawn, since the rows could not be scored again." in said
    assert f"flowers.csv: has changed since run {spared.name} was trained" in said
    command("report", f"run={kept.name}")
    assert page(kept).table("class")


def test_a_run_that_is_older_than_the_setting_goes_on(digits: Trained) -> None:
    folder = copied(digits, "older")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["report"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli.run(["resume", "run=older"]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "run must be given, or runs, or sweep, and one of them alone, got []"),
        (["run=digits", "sweep=x"], "run must be given, or runs, or sweep, and one of them alone, got [run, sweep]"),
        (["sweep=x"], "sweep must be the name of a sweep in outputs/sweeps, got x"),
        (
            ["runs=digits", "out=x.html"],
            "out must be left out with runs, each of which has a page of its own, got x.html",
        ),
        (["run=digits", "out=nowhere/x.html"], "out must be in a folder that exists, got nowhere/x.html"),
        (["run=digits", "to=x"], "to: no such setting"),
    ],
    ids=str,
)
def test_mistakes(words: list[str], sentence: str, digits: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", *words]) == 2
    assert capsys.readouterr().err.startswith(f"dltrain: {sentence}")


def test_a_page_goes_where_one_wants_it(digits: Trained, here: Path) -> None:
    assert command("report", "run=digits", "out=here.html") == "wrote here.html\n"
    assert (here / "here.html").read_bytes() == (digits.folder / "report.html").read_bytes()
    assert command("report", "run=digits", "out=-") == (here / "here.html").read_text(encoding="utf-8")


def test_mistakes_are_told_before_anything_is_drawn() -> None:
    code = "import sys\nfrom dltrain import cli\nassert cli.run(['report', 'run=none']) == 2\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "jinja2", "torch", "sklearn", "pandas"} & set(done.stdout.split())


@pytest.fixture(scope="module")
def searched() -> Path:
    """A sweep of nine good trials and one that fails."""
    words = ["data=wine", "epochs=2", "trainer.threads=1", "model.hidden=[8]", "name=searched"]
    assert cli.run(["-m", *words, "optimizer.lr=1e-1,1e-2,1e-3", "seed=0,1,2"]) == 0
    folder = Path("outputs/sweeps/searched")
    failed = {
        "trial": 10,
        "exit": 1,
        "status": "failed",
        "words": [*words[:-1], "optimizer.lr=9<script>", "seed=0"],
        "message": "ValueError: <b>",
        "run": None,
    }
    with (folder / "trials.jsonl").open("a") as file:
        file.write(json.dumps(failed) + "\n")
    return folder


def test_a_sweep_has_a_page(searched: Path) -> None:
    assert (searched / "report.html").exists()
    lines = [json.loads(line) for line in (searched / "trials.jsonl").read_text().splitlines()]
    runs = [Path("outputs") / line["run"] for line in lines[:-1]]
    assert [run for run in runs if (run / "curves.json").exists()] == []
    [best] = [run for run in runs if (run / "report.html").exists()]
    assert "Predictions of the test rows" in page(best).said
    command("report", "sweep=searched")
    found = page(searched)
    scores = {run.name: json.loads((run / "result.json").read_text())["valid"]["log_loss"] for run in runs}
    rows = found.table("rank")
    assert [row[-1] for row in rows[:-1]] == sorted(scores, key=lambda name: scores[name])
    assert [row[0] for row in rows] == [*(str(k) for k in range(1, 10)), ""]
    assert rows[-1][1:4] == ["10", "9<script>", "0"]
    assert "<script" not in found.text
    assert ["10", "ValueError: <b>"] in found.table("trial")
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert links == [f"../../{min(scores, key=lambda name: scores[name])}/report.html"]
    command("report", "runs=searched")
    command("report", "sweep=searched")
    links = [attributes["href"] for tag, attributes in page(searched).tags if tag == "a"]
    assert len(links) == 9
    assert all((searched / link).exists() for link in links)


@pytest.mark.parametrize("together", ["true", "false"])
def test_each_trial_of_a_sweep_has_a_page_if_asked(together: str) -> None:
    words = ["data=iris", "epochs=1", "trainer.threads=1", "model.hidden=[8]", f"output_root=asked-{together}"]
    assert cli.run(["-m", *words, "seed=0,1", "report=true", f"sweep.together={together}", "name=x"]) == 0
    assert len([*Path(f"asked-{together}").glob("iris-*/report.html")]) == 2
    assert len([attributes for tag, attributes in page(Path(f"asked-{together}/sweeps/x")).tags if tag == "a"]) == 2


def test_importance_is_that_of_what_decides() -> None:
    draw = np.random.default_rng(3)
    lr, seed = 10 ** draw.uniform(-4, 0, 60), draw.integers(0, 5, 60)
    activation = draw.choice(["relu", "tanh"], 60)
    values = (np.log10(lr) + 2) ** 2 + 0.5 * (activation == "relu")
    trials = [
        sweeps.Trial(k, {"optimizer.lr": str(a), "activation": str(b), "seed": str(c)}, "finished")
        for k, (a, b, c) in enumerate(zip(lr, activation, seed, strict=True))
    ]
    found = sweeps.importances(trials, ["seed", "activation", "optimizer.lr"], values.tolist())
    assert sum(found.values()) == pytest.approx(1)
    assert found["optimizer.lr"] > 0.8
    assert found["optimizer.lr"] > found["activation"] > found["seed"]
    assert found["seed"] < 0.02
    assert sweeps.importances(trials[:7], ["seed"], values[:7].tolist()) == {}
    assert sweeps.importances(trials, ["seed"], [1.0] * 60) == {}


def test_a_comparison_has_a_page(searched: Path) -> None:
    assert command("compare", "runs=searched", "out=c.csv").startswith("wrote c.csv")
    assert command("compare", "runs=searched", "out=c.html").startswith("wrote c.html (3 variants of 9 runs)")
    found = Page(Path("c.html").read_text(encoding="utf-8"))
    check(found)
    rows = list(csv.DictReader(Path("c.csv").read_text(encoding="utf-8").splitlines()))
    assert [row[0] for row in found.table("rank")] == ["1", "2", "3"]
    for told, row in zip(found.table("rank"), rows, strict=True):
        assert told[1] == row["optimizer.lr"]
        mean, _, error = told[3].partition(" ± ")
        assert float(mean) == pytest.approx(float(row["valid/log_loss"]), rel=1e-2)
        assert float(error) == pytest.approx(float(row["error of valid/log_loss"]), rel=1e-2)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_overflows_in_a_browser(
    width: int, digits: Trained, hostile: Trained, diabetes: Trained, searched: Path, tmp_path: Path
) -> None:
    frames = ""
    for number, folder in enumerate((digits.folder, hostile.folder, diabetes.folder, searched)):
        shutil.copy(folder / "report.html", tmp_path / f"{number}.html")
        frames += f'<iframe src="{number}.html" style="width:{width}px;height:800px;border:0"></iframe>'
    look = "[...document.querySelectorAll('iframe')].map(f => f.contentDocument.documentElement)"
    script = f"onload = () => document.title = {look}.map(e => e.scrollWidth - e.clientWidth).join(' ')"
    (tmp_path / "all.html").write_text(f"<title>none</title>{frames}<script>{script}</script>")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += (
        f" --disable-component-update --disable-sync --allow-file-access-from-files --user-data-dir={tmp_path}/user"
    )
    words = [str(CHROMIUM), *flags.split(), "--dump-dom", f"file://{tmp_path}/all.html"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert re.findall(r"<title>(.*?)</title>", done.stdout)[0] == "0 0 0 0"


def test_help_knows_the_command() -> None:
    assert "report" in on_terminal(80, "--help")

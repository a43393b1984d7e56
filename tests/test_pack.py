"""`dltrain pack`: one archive with which another folder can do what a run can do."""

import contextlib
import html
import io
import json
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from runs import command, launch, working

from dltrain import cli

WORDS = ["data=iris", "model.hidden=[8]", "epochs=2", "trainer.threads=1"]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("pack")) as folder:
        launch(*WORDS, name="flowers")
        yield folder


def names(archive: str) -> set[str]:
    with tarfile.open(archive) as file:
        return set(file.getnames())


def refused(*words: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert cli.run(["pack", *words]) == 2
    assert said.getvalue().count("\n") == 1
    return said.getvalue().removeprefix("dltrain: ").rstrip()


def test_an_archive_does_elsewhere_what_the_run_does(tmp_path: Path) -> None:
    for name in ("mlflow.txt", "wandb/offline-run/host.txt"):
        Path("outputs/flowers", name).parent.mkdir(parents=True, exist_ok=True)
        Path("outputs/flowers", name).write_text("here")
    said = command("pack", "run=flowers")
    assert said.startswith("wrote flowers.tar.gz (")
    found = names("flowers.tar.gz")
    assert not any("mlflow" in name or "wandb" in name for name in found)
    assert {"flowers/config.yaml", "flowers/result.json", "flowers/metrics.jsonl"} <= found
    assert {"flowers/environment.json", "flowers/model/model.safetensors", "flowers/model/manifest.json"} <= found
    assert not any("checkpoints" in name or "run.lock" in name or "/." in name for name in found)
    (tmp_path / "outputs").mkdir()
    with tarfile.open("flowers.tar.gz") as file:
        file.extractall(tmp_path / "outputs", filter="data")
    expected = command("evaluate", "run=flowers", "out=metrics.json") and Path("metrics.json").read_text()
    with contextlib.chdir(tmp_path):
        command("evaluate", "run=flowers", "out=metrics.json")
        assert Path("metrics.json").read_text() == expected
        again = launch(*WORDS, "name=again")
        assert again.read("result.json")["weights_sha256"] == again.read("../flowers/result.json")["weights_sha256"]


def test_commands_to_paste_are_quoted_and_say_where_the_run_is() -> None:
    said = command(*WORDS, "output_root=out puts", "name=u", "report=true")
    line = said.splitlines()[-1]
    assert line == "dltrain predict 'run=out puts/u' input=new.csv"
    Path("new.csv").write_text("sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n5,3,1,0\n")
    assert "(1 rows)" in command(*shlex.split(line)[1:])
    page = html.unescape((Path("out puts") / "u" / "report.html").read_text())
    for verb in ("evaluate", "reproduce"):
        assert f"dltrain {verb} 'run=out puts/u'\n" in page
    said = command("pack", "run=out puts/u", "out=a b.tgz")
    assert "elsewhere: tar -xzf 'a b.tgz' and run=u" in said
    Path("out puts/u/model/model.json").unlink()
    Path("out puts/u/result.json").unlink()
    said = refused("run=out puts/u")
    assert said.endswith(f"unfinished; dltrain resume 'run={Path('out puts/u').resolve()}'")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    command("pack", "run=flowers", "out=one.tar.gz")
    for path in Path("outputs/flowers").rglob("*"):
        path.touch()
    command("pack", "run=outputs/flowers", "out=two.tgz")
    assert Path("one.tar.gz").read_bytes() == Path("two.tgz").read_bytes()


def test_what_is_unpacked_is_as_old_as_the_run(tmp_path: Path) -> None:
    command("pack", "run=flowers", "out=old.tgz")
    with tarfile.open("old.tgz") as file:
        file.extractall(tmp_path / "there", filter="data")
    started = json.loads(Path("outputs/flowers/environment.json").read_text())["started"]
    [row] = command("list", "runs", f"output_root={tmp_path / 'there'}").splitlines()[1:]
    assert row.endswith(datetime.fromisoformat(started).strftime("%Y-%m-%d %H:%M"))


def test_a_link_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    shutil.copytree("outputs/flowers", "outputs/linked")
    Path("outputs/linked/logs").mkdir(exist_ok=True)
    Path("outputs/linked/logs/secret").symlink_to(tmp_path / "secret")
    command("pack", "run=linked", "out=linked.tar.gz")
    assert "linked/logs/secret" not in names("linked.tar.gz")


def test_what_is_refused() -> None:
    assert refused("run=flowers", "out=flowers.zip") == "out must be a .tar.gz, got flowers.zip"
    assert refused("run=nothing").startswith("run must be a run in outputs, got nothing")
    assert refused("run=flowers", "out=nowhere/x.tar.gz").startswith("out must be in a folder that exists")
    assert refused() == "run must be given, as run=..."
    shutil.copytree("outputs/flowers", "outputs/half")
    shutil.rmtree("outputs/half/model")
    Path("outputs/half/result.json").write_text('{"format": 1, "status": "stopped"}')
    assert refused("run=half").startswith("run must be a finished run, got half, which is stopped")
    assert not list(Path().glob("*.part"))

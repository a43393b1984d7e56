"""What docs/ says works: its files are written as the text says, its commands typed, and they say what is shown."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults.forks import Server

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("adding-*.md"))
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
HERE = "import sys; sys.path.insert(0, '')"  # as the console script does
OURS = {"mynets.Maxout": "models", "mytasks.Fill": "tasks"}  # where a class would stand in dltrain


def files(doc: Path) -> dict[str, str]:
    """The files of a page, by path."""
    return {path: body for _, path, body in BLOCK.findall(doc.read_text(encoding="utf-8")) if path}


def commands(doc: Path) -> list[tuple[str, list[str]]]:
    """The commands of a page, each with the lines that it says."""
    found: list[tuple[str, list[str]]] = []
    for language, _, body in BLOCK.findall(doc.read_text(encoding="utf-8")):
        for line in body.splitlines() if language == "console" else []:
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def write(doc: Path, folder: Path) -> None:
    for name, body in files(doc).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body, encoding="utf-8")


def typed(command: str, folder: Path, server: Server) -> tuple[int, str]:
    """The exit code of a command and what it says."""
    if command.startswith("dltrain "):
        return server.run(shlex.split(command)[1:], folder, patch=HERE, seconds=600)
    command = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", command)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def says(output: str, shown: list[str]) -> None:
    """The shown lines stand in the output, one after the other; `...` is anything, and so are columns' widths."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for line in shown:
        if line == "...":
            continue
        pattern = re.compile(re.escape(" ".join(line.split())).replace(re.escape("..."), ".*"))
        place = next((k for k, found in enumerate(lines) if pattern.fullmatch(found)), None)
        assert place is not None, f"{line!r} is not in\n{output}"
        lines = lines[place + 1 :]


def walk(doc: Path, folder: Path, server: Server, slow: bool) -> None:
    write(doc, folder)
    for command, shown in commands(doc):
        if slow or not command.startswith("dltrain verify"):
            code, output = typed(command, folder, server)
            assert code == (2 if shown and shown[0].startswith("dltrain: ") else 0), f"{command}\n{output}"
            says(output, shown)


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_a_page_works_as_it_is_written(doc: Path, server: Server, tmp_path: Path) -> None:
    walk(doc, tmp_path, server, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_what_a_page_adds_is_verified(doc: Path, server: Server, tmp_path: Path) -> None:
    walk(doc, tmp_path, server, slow=True)


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_the_same_two_files_are_a_part_of_dltrain(doc: Path, tmp_path: Path) -> None:
    skipped = shutil.ignore_patterns("__pycache__")
    for part in ("dltrain", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skipped)
    found = files(doc)
    [name] = [name for name in found if name.endswith(".yaml")]
    [path] = re.findall(r"_target_: (\S+)", found[name])
    group, option = Path(name).parts[1], Path(name).stem
    module = f"dltrain.{OURS[path]}.{option}"
    (tmp_path / "dltrain" / OURS[path] / f"{option}.py").write_text(found[path.partition(".")[0] + ".py"])
    own = f"{module}.{path.partition('.')[2]}"
    (tmp_path / name).write_text(found[name].replace(path, own))
    assert own in doc.read_text(encoding="utf-8")
    assert f"dltrain/{OURS[path]}/{option}.py" in doc.read_text(encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = ["data=wine", f"{group}={option}", "epochs=1", "name=run", f"output_root={tmp_path / 'outputs'}"]
    command = [sys.executable, "-P", "-m", "dltrain", *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_layers.py", tmp_path / "tests")
    layers = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_layers.py"]
    done = subprocess.run(layers, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_something_to_check() -> None:
    assert {"adding-a-network", "adding-a-task"} <= {doc.stem for doc in DOCS}
    for doc in DOCS:
        assert len(files(doc)) >= 3
        assert len(commands(doc)) >= 5
        assert f"docs/{doc.name}" in (ROOT / "README.md").read_text(encoding="utf-8")

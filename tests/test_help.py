"""Help and lists: whole at every width, plain in a pipe, complete, and taken from the folders alone."""

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dltrain import cli
from dltrain.choices import describe, groups, options, plural
from dltrain.commands import about, commands, settings
from dltrain.commands.help import page
from dltrain.commands.list import members, runs


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLTRAIN_CONFIGS", raising=False)
    return tmp_path


def on_terminal(columns: int, *words: str) -> str:
    """What dltrain prints on a pseudo-terminal of some columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    environment["TERM"] = "xterm"
    process = subprocess.Popen(
        [sys.executable, "-m", "dltrain", *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not block:
            break
        said += block
    os.close(ours)
    assert process.wait() == 0
    return said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("words", [["--help"], ["list", "models"], ["predict", "--help"]], ids=" ".join)
def test_nothing_is_cut_on_a_terminal(columns: int, words: list[str]) -> None:
    text = re.sub(r"\x1b\[\d*m", "", on_terminal(columns, *words))
    whole = {"--help": page(width=10_000), "predict --help": page("predict", 10_000)}.get(" ".join(words))
    expected = whole or "\n".join(members("model"))
    assert text.split() == expected.split()  # every word, in order
    for line in text.splitlines():
        assert len(line) <= columns or line.strip().startswith(("dltrain ", "eval ")), line  # commands are to be copied


def test_headings_are_bold_on_a_terminal_only() -> None:
    assert "\x1b[1mcommands\x1b[0m" in on_terminal(80, "--help")
    done = subprocess.run([sys.executable, "-m", "dltrain", "--help"], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert done.stdout == page(width=80)
    assert done.stderr == ""


def test_help_names_every_command_group_and_option() -> None:
    text = page(width=80)
    for name in commands():
        assert f"\n  {name} " in text
        assert about(name).endswith("."), f"{name}.py begins with a sentence"
    words = set(text.replace("*", "").split())
    assert {option for group in groups() for option in options(group)} <= words
    assert {"begin", "commands", "choices", "results"} <= words


def test_help_knows_the_users_own_configs() -> None:
    Path("configs/model").mkdir(parents=True)
    Path("configs/model/mine.yaml").write_text("# a net of mine\n_target_: mynets.Net\n")
    assert " mine " in page(width=80)
    assert f"  {'mine':<{len('encoder_decoder')}}  a net of mine (configs/model/mine.yaml)" in members("model")


@pytest.mark.parametrize("name", sorted(set(commands()) - {"train"}))
def test_help_of_each_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert about(name) in " ".join(text.split())
    assert f"  dltrain {name}" in text
    for setting in settings(name):
        assert f"  {setting.name}=" in text
        assert setting.about, f"{name}: a comment on the line of {setting.name} says what it is"
    assert cli.run(["help", name]) == 0
    assert capsys.readouterr().out == text


def test_help_of_train_is_the_whole_page(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h"], ["train", "--help"], ["model=cnn", "--help"], ["help"]):
        assert cli.run(words) == 0
        assert capsys.readouterr().out == page()


@pytest.mark.parametrize("group", groups())
def test_list_prints_each_option_with_its_first_comment(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in (group, plural(group)):
        assert cli.run(["list", word]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(options(group))  # one line each in a pipe
        for line, (name, file) in zip(lines, options(group).items(), strict=True):
            assert line.split()[0].rstrip("*") == name
            assert describe(file) in line


def test_list_of_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*map(plural, groups()), "runs"]
    assert cli.run(["list", "models", "where=x"]) == 2
    assert capsys.readouterr().err == "dltrain: where must be given to list runs, got list models where=x\n"
    assert cli.run(["list", "modles"]) == 2
    names = ", ".join(sorted([*map(plural, groups()), "runs"]))
    assert capsys.readouterr().err == f"dltrain: list modles: no such list; did you mean models? ({names})\n"


def test_list_runs_newest_first_and_tolerates_damage(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(name: str, when: int, result: str | None) -> None:
        folder = here / "outputs" / name
        folder.mkdir(parents=True)
        for file, text in {"config.yaml": "{}", "result.json": result}.items():
            if text is not None:
                (folder / file).write_text(text)
                os.utime(folder / file, (when, when))

    scores = {"monitor": "accuracy", "valid": {"accuracy": 0.5}, "test": {"accuracy": 0.25}}
    make("old", 1_000_000, json.dumps({"status": "finished", "epochs": 12, **scores}))
    make(
        "new", 2_000_000, json.dumps({"status": "stopped", "epochs": 3, "monitor": "valid/loss", "valid": {"loss": 2}})
    )
    make("broken", 1_500_000, "{not json")
    make("strange", 1_400_000, json.dumps({"status": None, "epochs": "x", "valid": 3, "test": {"loss": "y"}}))
    make("none", 1_300_000, None)
    make(".hidden.new", 3_000_000, "{}")
    (here / "outputs/sweeps").mkdir()
    assert cli.run(["list", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "status", "epochs", "metric", "valid", "test", "when"]
    assert [line.split()[0] for line in lines[1:]] == ["new", "broken", "strange", "none", "old"]
    assert lines[1].split()[1:6] == ["stopped", "3", "loss", "2.0000", "-"]
    assert lines[2].split()[1:6] == ["unfinished", "-", "loss", "-", "-"]
    assert lines[5].split()[1:6] == ["finished", "12", "accuracy", "0.5000", "0.2500"]
    assert runs(here / "nowhere") == [f"no runs in {here / 'nowhere'}; dltrain makes one"]
    assert cli.run(["list", "runs", "output_root=outputs/sweeps"]) == 0
    assert capsys.readouterr().out == "no runs in outputs/sweeps; dltrain makes one\n"

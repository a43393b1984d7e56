"""What README says can be typed is right, and says what README shows."""

import re
import shlex
from pathlib import Path

import pytest

from dltrain import cli
from dltrain.compose import compose

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^    \$ dltrain (.*)\n    (dltrain: .*)$", README, re.M)
WARNED = re.findall(r"^    \$ dltrain (.*)\n    (warning: .*)$", README, re.M)
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"^    dltrain (.*)$", README, re.M)]
TRAIN = [words for words in COMMANDS if "=" in words[0]]
LEARNT = [shlex.split(line) for line in re.findall(r"^\| [^|]*\| `dltrain ([^`]*)` \|", README, re.M)]
PARTS = [words.split(" · ") for words in re.findall(r"^\| [^|]* \| (`.*`) \|$", README, re.M)]


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) >= 1
    assert len(WARNED) >= 1
    assert len(TRAIN) >= 3
    assert len(LEARNT) >= 10
    assert len(PARTS) >= 8


@pytest.mark.parametrize("words", TRAIN + LEARNT, ids=" ".join)
def test_commands_compose(words: list[str]) -> None:
    assert compose(words)["choices"]


@pytest.mark.parametrize("part", [part for parts in PARTS for part in parts if "=" in part])
def test_settings_of_the_table_compose(part: str) -> None:
    words = shlex.split(re.findall(r"`([^`]*)`", part)[0])
    if words[0].startswith(("data.", "task.")):
        words = ["data=csv", "data.path=houses.csv", "data.target=price", *words]
    assert compose(words)["choices"]


@pytest.mark.parametrize(("words", "sentence"), SHOWN)
def test_a_mistake_says_what_is_shown(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(shlex.split(words)) == 2
    assert capsys.readouterr().err.strip() == sentence


@pytest.mark.parametrize(("words", "sentence"), WARNED)
def test_a_warning_says_what_is_shown(
    words: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*shlex.split(words), "epochs=3", f"output_root={tmp_path}", "trainer.threads=1"]) == 0
    assert sentence in capsys.readouterr().out.splitlines()

"""Files with one object a line: whatever the power's going has left of them can be read."""

from pathlib import Path

import pytest

from dltrain.lines import read_lines

WHOLE = b'{"a": 1}\n{"b": "\xe2\x80\xa8"}\n'  # U+2028 is no end of a line
HERE = [{"a": 1}, {"b": "\u2028"}]
NO_OBJECT = (b"[]\n", b"3\n", b"\n", b"\0\0\0\0", b'{"c": \xff}\n', b"[" * 100_000 + b"\n")


def found(path: Path, content: bytes) -> list[dict[str, object]]:
    path.write_bytes(content)
    return [*read_lines(path)]


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_a_torn_last_line_is_left_out(cut: int, tmp_path: Path) -> None:
    closed = WHOLE[:cut].count(b"}")
    assert found(tmp_path / "x", WHOLE[:cut]) == HERE[:closed]


@pytest.mark.parametrize("other", NO_OBJECT, ids=lambda line: repr(line[:10]))
def test_what_is_no_object_is_left_out(other: bytes, tmp_path: Path) -> None:
    assert found(tmp_path / "x", WHOLE + other) == HERE
    if other.endswith(b"\n"):
        assert found(tmp_path / "x", other + WHOLE) == HERE


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert [*read_lines(tmp_path / "gone")] == [*read_lines(tmp_path)] == []

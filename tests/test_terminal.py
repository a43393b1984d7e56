"""What a person reads: at any width, in a pipe, with names of any script, and after Ctrl-C."""

import io
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from torch import nn

from dltrain.report import terminal as module
from dltrain.report.network import layers
from dltrain.report.terminal import Terminal
from dltrain.report.text import aligned, clock, number

torch.set_num_threads(1)
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COMMAND = (
    "dltrain predict run=outputs/digits-mlp-1a2b3c4d input=new.csv out=a-name-that-no-narrow-terminal-can-hold.csv"
)
DATA = {
    "source": "wohnungen.csv",
    "rows": 1500,
    "columns": [
        {"name": "price [red]", "kind": "number", "mean": 3.5, "std": 1.23456, "min": 0.25, "median": 3.0, "max": 7.5},
        {"name": "花弁の長さ", "kind": "number", "missing": 12, "mean": 3.0, "min": 2.0, "max": 4.5},
        {
            "name": "city [/x]",
            "kind": "category",
            "unique": 12,
            "levels": {"Paris": 1000, "東京": 9, "Bern": 8, "Rom": 7, "Oslo": 6},
        },
        {"name": "row:smile:", "kind": "identifier", "role": "id", "unique": 1500},
        {"name": "kind\x1b[2J\n", "kind": "category", "role": "target"},
    ],
    "splits": {"train": 1050, "valid": 225, "test": 225},
    "target": {"kind": "classes", "names": ["kind"], "classes": ["[b]a[/b]", "β", "c"], "counts": [350, 300, 400]},
    "dropped_rows": 4,
}
RESULT = {
    "status": "finished",
    "epochs": 3,
    "best_epoch": 2,
    "rows_per_second": 41_000.0,
    "valid": {"accuracy": 0.98, "log_loss": 0.0003},
    "test": {"accuracy": 0.96},
}


def record(step, epoch):
    return {
        "step": step,
        "epoch": epoch,
        "train/loss": 0.0412,
        "valid/loss": 0.0815,
        "valid/accuracy": 0.9778,
        "valid/f1": 0.5,
        "rows_per_second": 41_000.4,
    }


def piped():
    return Terminal(Console(file=io.StringIO(), width=80))


def moving(width):
    return Terminal(Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard"))


def said(terminal):
    return terminal.console.file.getvalue()


def whole_run(terminal):
    terminal.opening("digits-mlp-1a2b3c4d  reading data=digits")
    terminal.data(DATA)
    terminal.warn("4 rows of [b]train[/b] stand in test")
    terminal.network(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 3)), (64,))
    terminal.start(3, 10, 1050, 0, 0, "accuracy")
    for step in range(1, 31):
        terminal.tick(step, lambda: 0.5)
        if step % 10 == 0:
            terminal.epoch(record(step, step // 10), step == 20)
    terminal.finish(RESULT, "outputs/digits-mlp-1a2b3c4d", COMMAND)


def test_a_pipe_gets_plain_lines_that_are_not_cut():
    terminal = piped()
    whole_run(terminal)
    text = said(terminal)
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert "epoch 2/3  train loss 0.0412  valid loss 0.0815  accuracy 0.9778  41,000 rows/s  *best" in lines
    assert lines.count("epoch 1/3  train loss 0.0412  valid loss 0.0815  accuracy 0.9778  41,000 rows/s") == 1
    assert lines[-1] == COMMAND
    assert "city [/x]      category  Paris: 1,000, 東京: 9, Bern: 8, Rom: 7, ... 12 in all" in lines
    assert "price [red]    number    0.25 to 7.5, mean 3.5, std 1.235" in lines
    assert r"kind\x1b[2J\n  target" in text
    assert "target kind: 3 classes ([b]a[/b]: 350, β: 300, c: 400)" in lines
    assert "rows 1,050 train, 225 valid, 225 test (4 without a target left out)" in lines
    assert "warning: 4 rows of [b]train[/b] stand in test" in lines


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_of_any_width_is_never_overrun(width):
    terminal = moving(width)
    whole_run(terminal)
    lines = ESCAPE.sub("", said(terminal)).replace("\r", "\n").splitlines()
    too_long = [line for line in lines if cell_len(line) > width]
    assert set(too_long) <= {COMMAND}  # what is copied stays whole: the terminal folds it
    assert COMMAND in lines
    assert [line for line in lines if line.startswith("price [red]")]
    assert [line for line in lines if line.startswith("row:smile:")]


def test_a_terminal_shows_one_moving_line_and_not_one_per_epoch():
    terminal = moving(120)
    terminal.start(500, 2, 1050, 0, 0, "accuracy")
    for step in range(1, 1001):
        terminal.tick(step, lambda: 0.25)
        if step % 2 == 0:
            terminal.epoch(record(step, step // 2), improved=step == 4)
    terminal._due = 0.0
    terminal.tick(1000, lambda: 0.25)
    text = ESCAPE.sub("", said(terminal))
    assert "epoch 500/500" in text
    assert "loss 0.2500  accuracy 0.9778  best 0.9778  41,000 rows/s  0:00 left" in text
    assert len(text) < 2000
    terminal.close()


def test_an_epoch_that_takes_seconds_leaves_a_line_on_a_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal = moving(120)
    terminal.start(3, 10, 1050)
    for step, seconds in ((10, 1.0), (20, 3.0)):
        now[0] += seconds
        terminal.epoch(record(step, step // 10), improved=False)
    terminal.close()
    text = ESCAPE.sub("", said(terminal))
    assert "epoch 2/3  train loss" in text
    assert "epoch 1/3  train loss" not in text


def test_an_evaluation_inside_an_epoch_says_where_it_is():
    terminal = piped()
    terminal.start(50, 8, 500, epoch=12, step=98, monitor="loss")
    terminal.epoch(record(100, 12), improved=False)
    terminal.epoch(record(104, 13) | {"valid/loss": None}, improved=False)
    assert said(terminal).splitlines() == [
        "epoch 12.50/50  train loss 0.0412  valid loss 0.0815  accuracy 0.9778  41,000 rows/s",
        "epoch 13/50  train loss 0.0412  valid loss -  accuracy 0.9778  41,000 rows/s",
    ]


def test_the_monitored_metric_stands_beside_the_first_one():
    for terminal in (piped(), moving(120)):
        terminal.start(5, 10, 1000, monitor="f1")
        terminal.epoch(record(10, 1), improved=True)
        terminal.tick(11, lambda: 0.25)
        terminal._due = 0.0
        terminal.tick(12, lambda: 0.25)
        terminal.close()
        text = ESCAPE.sub("", said(terminal))
        assert "accuracy 0.9778  f1 0.5000  " in text


def test_a_step_costs_nothing_when_no_drawing_is_due(capsys):
    asked = []
    for terminal in (piped(), moving(80), Terminal(quiet=True)):
        terminal.start(10, 100, 1000)
        terminal._due = max(terminal._due, time.monotonic() + 1000)
        before = said(terminal) if not terminal.quiet else ""
        start = time.perf_counter()
        for step in range(100_000):
            terminal.tick(step, asked.append)
        cost = (time.perf_counter() - start) / 100_000 * 1e9
        assert terminal.quiet or said(terminal) == before
        terminal.close()
    assert asked == []
    drawn = moving(120)
    drawn.start(10, 100, 1000)
    start = time.perf_counter()
    for step in range(100):
        drawn._due = 0.0
        drawn.tick(step, lambda: 0.5)
    drawing = (time.perf_counter() - start) / 100 * 1e3
    drawn.close()
    with capsys.disabled():
        print(f"\ntick: {cost:.0f} ns; with a drawing, 8 a second: {drawing:.2f} ms")


def test_the_loss_is_asked_eight_times_a_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal, asked = moving(80), []
    terminal.start(1, 1000, 1000)
    for step in range(1, 1001):
        now[0] = step / 1000
        terminal.tick(step, lambda: asked.append(1) or 0.5)
    terminal.close()
    assert len(asked) == 8


def test_quiet_says_nothing_and_leaves_the_network_alone(capsys):
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    terminal = Terminal(quiet=True)
    terminal.network(Counting(2, 2), (2,))
    whole_run(terminal)
    terminal.stopped("stopped")
    assert capsys.readouterr() == ("", "")
    assert Counting.calls == 0


def test_many_columns_and_many_layers_are_summed_up():
    terminal = piped()
    columns = [{"name": f"x{k}", "kind": "number" if k % 4 else "category"} for k in range(64)]
    terminal.data({"source": "wide.csv", "rows": 10, "columns": columns})
    terminal.network(nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(40))), (3,))
    lines = said(terminal).splitlines()
    assert lines[0] == "wide.csv: 10 rows, 64 columns"
    assert "  ... 13 categories, 39 numbers more" in lines
    assert [line.split() for line in lines if line.startswith("...")] == [["...", "17", "more", "204"]]
    assert lines[-1] == "Sequential 3: 480 parameters"
    assert len(lines) < 45


@pytest.mark.parametrize("description", [{}, {"columns": [{}]}, {"target": {"kind": "number", "names": ["y"]}}])
def test_a_description_with_holes_is_shown_for_what_it_has(description):
    terminal = piped()
    terminal.data(description)
    assert said(terminal).startswith("data")


class Odd(nn.Module):
    """Draws, keeps count in a buffer, ties a weight and gives a tuple."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(3))
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        noise = torch.rand_like(x)
        return self.rnn(self.second(self.first(self.drop(self.norm(x + noise))))[:, None])


def test_showing_a_network_changes_nothing_in_it():
    network = Odd()
    network.drop.eval()  # a mode that is not its parent's
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [m.training for m in network.modules()]
    generator = torch.get_rng_state()
    terminal = piped()
    terminal.network(network, (4,))
    assert torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks for m in network.modules())
    with torch.random.fork_rng():
        network(torch.zeros(2, 4))
    assert network.calls == 1  # the comparison above can fail: a forward pass does change it


def test_layers_count_every_parameter_once_and_name_the_shapes():
    network = Odd()
    found = {layer.name: layer for layer in layers(network, (4,))}
    assert sum(layer.parameters for layer in found.values()) == sum(p.numel() for p in network.parameters())
    assert found[""].parameters == 3
    assert found["first"].parameters == 20
    assert found["second"].parameters == 4
    assert found["rnn"].shape == (1, 5)
    assert found["drop"].shape == (4,)


def test_layers_of_a_network_that_refuses_a_row_have_no_shapes():
    found = layers(nn.Sequential(nn.Linear(4, 2)), (5,))
    assert [(layer.name, layer.shape, layer.parameters) for layer in found] == [("0", None, 10)]


def test_a_network_that_reads_tokens_is_given_tokens():
    network = nn.Sequential(nn.Embedding(10, 3), nn.Flatten())
    network.reads = "tokens"
    assert [layer.shape for layer in layers(network, (6,))] == [(6, 3), (18,)]


def test_numbers_and_durations_are_short():
    assert [number(v) for v in (0.0412, 12.345, 41_000.4, 1.2e-5, 0.0, -3.0, None, float("nan"), 3e12)] == [
        "0.0412",
        "12.35",
        "41,000",
        "1.20e-05",
        "0.0000",
        "-3.0000",
        "-",
        "-",
        "3.00e+12",
    ]
    assert [clock(s) for s in (0.2, 59.7, 750, 10_925)] == ["0:00", "1:00", "12:30", "3:02:05"]


def test_cells_are_aligned_by_what_a_screen_shows():
    rows = [["a", "1"], ["花弁", "20"]]
    assert aligned(rows, right=frozenset({1})) == ["a      1", "花弁  20"]
    assert aligned([["花弁の長さ花弁の長さ", "12"]], width=12) == ["花弁 ...  12"]


WATCHED = """
import sys, time
from dltrain.report.terminal import Terminal
assert "torch" not in sys.modules
with Terminal() as terminal:
    terminal.opening("höhe 東京")
    terminal.start(5, 10, 100)
    for step in range(1, 51):
        terminal.tick(step, lambda: 0.5)
        if step % 10 == 0:
            terminal.epoch({"step": step, "epoch": step // 10, "train/loss": 0.5}, False)
        time.sleep(0.02)
        if step == 40 and "stop" in sys.argv:
            raise KeyboardInterrupt
print("went on", file=sys.stderr)
"""


def watched(*words, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")}
    return [sys.executable, "-c", WATCHED, *words], clean | environment


def test_ctrl_c_leaves_the_cursor_visible():
    pexpect = pytest.importorskip("pexpect")
    command, environment = watched("stop", TERM="xterm-256color")
    child = pexpect.spawn(command[0], command[1:], env=environment, encoding="utf-8", dimensions=(24, 60), timeout=60)
    child.expect(pexpect.EOF)
    child.close()
    assert "\x1b[?25l" in child.before  # hidden while the line moves
    assert child.before.rfind("\x1b[?25h") > child.before.rfind("\x1b[?25l")
    assert "epoch 4/5" in child.before
    assert "KeyboardInterrupt" in child.before


def test_a_pipe_has_no_moving_line_even_where_colours_are_forced():
    command, environment = watched(FORCE_COLOR="1")
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "\x1b[?25l" not in text
    assert ESCAPE.sub("", text).splitlines()[1:3] == ["epoch 1/5  train loss 0.5000", "epoch 2/5  train loss 0.5000"]


def test_an_output_that_lacks_letters_gets_them_escaped():
    command, environment = watched(PYTHONIOENCODING="ascii")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == r"h\xf6he \u6771\u4eac"


def test_training_goes_on_when_nobody_reads():
    command, environment = watched()
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr.strip() == "went on"
    assert done.returncode == 0


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal(Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard"))
    terminal.warn("careful")
    assert said(terminal) == "warning: careful\n"
    monkeypatch.delenv("NO_COLOR")
    colourful = moving(80)
    colourful.warn("careful")
    assert "\x1b[33m" in said(colourful)


def test_limits_hold_what_they_show():
    terminal = piped()
    result = {"status": "finished", "test": {f"f1/{k}": 0.5 for k in range(100)}}
    terminal.finish(result, "outputs/x", COMMAND)
    assert "  ... 80 more in result.json" in said(terminal)
    assert said(terminal).count("f1/") == module.METRICS

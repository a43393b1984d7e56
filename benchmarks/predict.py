"""`dltrain predict` on a big file: rows a second, and memory above what the imports take.

    python benchmarks/predict.py [--rows 1000000] [--columns 50] [--profile]

Trains a small network on a few thousand rows, repeats them to a CSV of --rows rows (about 9 bytes a cell), and predicts
it in a fresh process: from a file to a file, and through a pipe with `input=- out=-`. Both must give the same bytes.

How to read: `seconds` and `cpu` are of the command after its imports, `memory` is its peak above the memory after the
imports. The target, at most 1 GiB, must hold whatever --rows is: the file is read and written a piece at a time. A pipe
is first copied to a temporary file, as its rows are looked at twice. --profile prints where the time goes. Nothing is
asserted of time; the exit code is 0.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

BLOCK = 5_000  # different rows
CHILD = """
import cProfile, json, os, pstats, resource, sys, time
import dltrain.bundle, dltrain.data.preparation, dltrain.losses, dltrain.models.mlp, dltrain.tasks.supervised
from dltrain.commands.predict import run

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024

profile, *words = sys.argv[1:]
before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
profiler = cProfile.Profile()
code = profiler.runcall(run, words) if profile == "yes" else run(words)
found = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "memory": memory("VmHWM") - before}
print(json.dumps(found), file=sys.stderr)
if profile == "yes":
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(16)
sys.exit(code)
"""


def write_csv(path: Path, rows: int, columns: int) -> Path:
    """Rows of numbers with a target column, the same block again and again."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.standard_normal((min(rows, BLOCK), columns)), columns=[f"x{i}" for i in range(columns)])
    frame["y"] = frame.sum(axis=1) + draw.standard_normal(len(frame))
    header, body = frame.to_csv(index=False, float_format="%.5f").encode().split(b"\n", 1)
    with path.open("wb") as file:
        file.write(header + b"\n")
        for _ in range(rows // len(frame)):
            file.write(body)
    return path


def predicted(words: list[str], profile: bool, source: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """What a fresh process took to predict; with `source` and `out` through its standard input and output."""
    command = [sys.executable, "-c", CHILD, "yes" if profile else "no", *words]
    if source is None or out is None:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    else:
        with subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE) as cat, out.open("wb") as file:
            done = subprocess.run(command, stdin=cat.stdout, stdout=file, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    first, _, rest = done.stderr.partition("\n")
    print(rest, end="")
    return json.loads(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the file that is predicted")
    parser.add_argument("--columns", type=int, default=50, help="of numbers")
    parser.add_argument("--profile", action="store_true", help="print where the time goes (and takes more of it)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = write_csv(folder / "train.csv", BLOCK, options.columns)
        big = write_csv(folder / "new.csv", options.rows, options.columns)
        words = ["data=csv", f"data.path={small}", "data.target=y", "epochs=2", "trainer.threads=1", "name=small"]
        subprocess.run(
            [sys.executable, "-m", "dltrain", *words, f"output_root={name}"], check=True, capture_output=True
        )
        print(f"{options.rows:,} rows of {options.columns} numbers, {big.stat().st_size / 2**20:,.0f} MiB; ", end="")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{'':<6}  {'rows/s':>9}  {'seconds':>8}  {'cpu':>8}  {'memory':>9}  target", flush=True)
        outs = {"file": folder / "file.csv", "pipe": folder / "pipe.csv"}
        for kind, out in outs.items():
            piped = kind == "pipe"
            words = [f"run={folder / 'small'}", f"input={'-' if piped else big}", f"out={'-' if piped else out}"]
            found = predicted(words, options.profile, *((big, out) if piped else ()))
            cells = f"{options.rows / found['seconds']:>9,.0f}  {found['seconds']:>8.1f}  {found['cpu']:>8.1f}"
            print(f"{kind:<6}  {cells}  {found['memory'] / 2**20:>5,.0f} MiB  1,024", flush=True)
        digests = {file_digest(out.open("rb"), "sha256").hexdigest() for out in outs.values()}
        assert len(digests) == 1, "a file and a pipe gave different predictions"


if __name__ == "__main__":
    main()

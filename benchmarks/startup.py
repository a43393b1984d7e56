"""How long a command line takes before anything happens: CPU and wall seconds, medians of fresh processes.

    python benchmarks/startup.py [--rounds 5]

First come commands that never import torch: help, lists, the composed config, and two mistakes in one (exit code 2).
Then a training run on digits, from Enter to its first line, to where its first step begins (all is read, built and
published), and to its end after one epoch. `python` and `torch alone`, which builds one optimizer, are the floor.

How to read: `cpu` is user and system time of the process and what it waited for, the robust number; `wall` also
has what other processes took from us. Files are in the page cache after the first, uncounted, round. The target is what
the project has set itself. Nothing is asserted; the exit code is 0.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DLTRAIN = (sys.executable, "-m", "dltrain")
COMMANDS = {  # what is measured: the words, the exit code, and the target in seconds of CPU time
    "python": ((sys.executable, "-c", "pass"), 0, None),
    "--help": ((*DLTRAIN, "--help"), 0, 0.15),
    "list models": ((*DLTRAIN, "list", "models"), 0, 0.15),
    "--cfg job": ((*DLTRAIN, "--cfg", "job"), 0, 0.40),
    "a wrong setting": ((*DLTRAIN, "model=mlpp", "epochs=x"), 2, 0.40),
    "torch alone": ((sys.executable, "-c", "import torch; torch.optim.AdamW([torch.zeros(1)])"), 0, None),
}
RUN = (*DLTRAIN, "epochs=1", "trainer.threads=1")  # digits: scikit-learn carries the rows


def timed(words: tuple[str, ...], code: int) -> tuple[float, float]:
    """(CPU, wall) seconds of a process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, f"{' '.join(words)}: exit {done.returncode}\n{done.stderr}"
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def run_timed(folder: Path) -> dict[str, tuple[float, float]]:
    """(CPU, wall) seconds from Enter to a training run's first line, to its first step, and to its end."""
    phases = folder / "phases"
    phases.unlink(missing_ok=True)
    words = (*RUN, f"output_root={folder}", "fresh=true")
    found: dict[str, tuple[float, float]] = {}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "DLTRAIN_PHASES": str(phases)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found["to the first line"] = cpu(process.pid), time.perf_counter() - start
        while process.poll() is None and not (phases.is_file() and "train\n" in phases.read_text()):
            time.sleep(0.002)
        found["to the first step"] = cpu(process.pid), time.perf_counter() - start
        output = process.stdout.read().decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, output
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return found | {"to the end": (used, time.perf_counter() - start)}


def cpu(pid: int) -> float:
    """CPU seconds of a process so far; NaN where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes a command")
    rounds = parser.parse_args().rounds
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            found = {name: timed(words, code) for name, (words, code, _) in COMMANDS.items()}
            found |= run_timed(Path(folder))
            for name, pair in found.items() if turn else ():
                times.setdefault(name, []).append(pair)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; median of {rounds} processes, (min-max)")
    print(f"{'':<18}  {'cpu s':<18}  {'target':<6}  wall s")
    for name, pairs in times.items():
        cells = [
            f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})" for found in zip(*pairs, strict=True)
        ]
        target = COMMANDS[name][2] if name in COMMANDS else None
        print(f"{name:<18}  {cells[0]:<18}  {'' if target is None else f'{target:.2f}':<6}  {cells[1]}")


if __name__ == "__main__":
    main()

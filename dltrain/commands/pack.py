"""Pack a finished run into one archive, without data: another machine can predict, evaluate and train with it."""

import gzip
import shlex
import tarfile
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from dltrain.commands import check_out, parse, written
from dltrain.errors import must
from dltrain.run import Run, find

# of use to none but who goes on with this run, here: what loggers keep names this machine and its servers
LEFT_OUT = ("checkpoints", "run.lock", "mlflow.txt", "wandb")


@dataclass
class Options:
    """What `dltrain pack` takes."""

    run: str  # a folder, the beginning of a run's name, last or best
    out: str | None = None  # a .tar.gz; left out: named as the run
    output_root: str = "outputs"  # where runs are looked for


def run(words: list[str]) -> int:
    """Write the archive, in which is one folder, the run's; the same run gives the same bytes."""
    options = parse(words, Options)
    found = find(options.run, options.output_root)
    folder = found.bundle.parent
    out = options.out or f"{folder.name}.tar.gz"
    must(out == "-" or out.endswith((".tar.gz", ".tgz")), "out", "a .tar.gz", out)
    check_out(out)
    started = _started(found)
    files = [path for path in sorted(folder.rglob("*")) if _packed(path, folder)]
    with (
        written(out, binary=True) as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in files:
            name = f"{folder.name}/{path.relative_to(folder)}"
            archive.add(path, name, recursive=False, filter=partial(_anonymous, started))
    if out != "-":
        unpack = shlex.join(["tar", "-xzf", Path(out).name])
        print(f"wrote {out} ({len(files):,} files); elsewhere: {unpack} and run={folder.name}")
    return 0


def _packed(path: Path, folder: Path) -> bool:
    """Whether a file belongs into the archive: what is hidden is half written, and a link leads elsewhere."""
    parts = path.relative_to(folder).parts
    return path.is_file() and not path.is_symlink() and parts[0] not in LEFT_OUT and not parts[-1].startswith(".")


def _started(run: Run) -> int:
    """When the run was started, in seconds as files have it; 0 if nobody knows."""
    try:
        return max(0, int(datetime.fromisoformat(run.read("environment.json")["started"]).timestamp()))
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def _anonymous(started: int, info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who packed it and when: it is as old as the run, by which runs are listed."""
    info.uid = info.gid = 0
    info.mtime = started
    info.uname = info.gname = ""
    info.mode = 0o644
    return info

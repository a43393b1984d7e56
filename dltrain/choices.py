"""What can be chosen: folders of YAML files, their groups and options. Only names and comments are read: it is fast."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from dltrain.errors import ConfigError

HERE = Path(__file__).resolve().parent
SEVERAL = ("regularizer", "logger")  # groups of which several options may be chosen


def configs_dir() -> Path:
    """The shipped configs: inside the package in a wheel, beside it in a clone or an editable install."""
    for folder in (HERE / "configs", HERE.parent / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs in {HERE} or {HERE.parent}: dltrain is not completely installed")


def user_dirs() -> list[Path]:
    """The user's own: `$DLTRAIN_CONFIGS` (several are separated as in PATH), else `./configs` if there is one.

    Raises ConfigError for a folder that is not there and for a file that bears a shipped name but differs.
    """
    shipped = configs_dir().resolve()
    named = [Path(name) for name in os.environ.get("DLTRAIN_CONFIGS", "").split(os.pathsep) if name]
    for folder in named:
        if not folder.is_dir():
            raise ConfigError(f"DLTRAIN_CONFIGS must be a folder, got {folder}")
    folders = [folder for folder in named or [Path("configs")] if folder.is_dir() and folder.resolve() != shipped]
    clashes = [
        f"{file} is also shipped; rename it"
        for folder in folders
        for file in sorted(folder.rglob("*.yaml"))
        if (twin := shipped / file.relative_to(folder)).is_file() and twin.read_bytes() != file.read_bytes()
    ]
    if clashes:
        raise ConfigError("\n".join(clashes))
    return folders


def groups() -> list[str]:
    """The groups: those of the shipped defaults list in its order, then the others by name."""
    text = (configs_dir() / "config.yaml").read_text(encoding="utf-8")
    listed = re.findall(r"^  - (?:optional )?(\w+):", text, re.MULTILINE)
    found = {path.name for folder in (configs_dir(), *user_dirs()) for path in folder.iterdir() if path.is_dir()}
    return [*listed, *sorted(name for name in found - {"hydra", *listed} if options(name))]


def plural(group: str) -> str:
    """The word for several of a group."""
    return group if group == "data" else f"{group}es" if group.endswith("s") else f"{group}s"


def defaults() -> dict[str, str]:
    """The option that each group has when nothing is chosen."""
    text = (configs_dir() / "config.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (?:optional )?(\w+): ([^\s#]+)", text, re.MULTILINE))


def options(group: str) -> dict[str, Path]:
    """The options of a group by name; a file that begins with `_` is a part of others, not a choice."""
    files = [file for folder in (configs_dir(), *user_dirs()) for file in (folder / group).glob("*.yaml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem) if not file.stem.startswith("_")}


def comments(file: Path) -> Iterator[str]:
    """The comment lines at the head of a YAML file."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            return
        yield line.lstrip("# ").rstrip()


def describe(file: Path) -> str:
    """What an option is: the first comment line of its file, else the class it names."""
    for line in comments(file):
        if line and not line.startswith("@package"):
            return line
    target = re.search(r"^_target_: *(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return target[1] if target else ""


def package(file: Path, group: str) -> str:
    """Where an option's settings go: what its `# @package` says, else the group itself; the root is ''."""
    for line in comments(file):
        if line.startswith("@package"):
            name = line.split()[1]
            return {"_global_": "", "_group_": group}.get(name, name)
    return group

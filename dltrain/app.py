"""`train` as a Hydra application: flags, one run, `--cfg`, and `-m` for a sweep."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain import compose
from dltrain.errors import ConfigError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

FLAGS = {  # Hydra's own words, and whether a value follows
    "--cfg": True,
    "--config-dir": True,
    "--hydra-help": False,
    "--info": True,
    "--multirun": False,
    "--package": True,
    "--resolve": False,
    "--run": False,
    "--shell-completion": False,
}
SHORT = {"-c": "--cfg", "-cd": "--config-dir", "-i": "--info", "-m": "--multirun", "-p": "--package", "-r": "--run"}
SHORT |= {"-sc": "--shell-completion"}


def train(words: list[str]) -> int:
    """Train what the words say; returns the exit code, raises what the user got wrong."""
    flags, words = split(words)
    if folder := flags.pop("--config-dir", None):
        _add_configs(folder)
    if "--hydra-help" in flags or "--info" in flags or flags.get("--cfg") in ("all", "hydra"):
        return hydra_main(flags, words, lambda cfg: None)
    if "--multirun" in flags:
        return sweep(words)
    cfg = compose.composed(words)
    if "--cfg" in flags:
        compose.checked(cfg, compose.chosen(cfg.hydra), incomplete=True)
        print(_yaml(cfg, flags), end="")
        return 0
    if cfg.hydra.mode is not None and cfg.hydra.mode.name == "MULTIRUN":
        return sweep(words)
    config = compose.checked(cfg, compose.chosen(cfg.hydra))
    if (how := config["choices"]["sweep"]) != "grid":
        raise ConfigError(f"sweep={how} needs -m: it goes through what is swept over")
    from dltrain.commands.train import train as train_run

    return train_run(config, words)


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split Hydra's flags, with their values, from the settings; raises ConfigError for any other flag."""
    flags: dict[str, str] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if not word.startswith("-"):
            rest.append(word)
        elif name not in FLAGS:
            raise ConfigError(_not_a_flag(word, left))
        elif not FLAGS[name] or equals:
            flags[name] = value
        elif left:
            flags[name] = left.pop(0)
        else:
            raise ConfigError(f"{word} must be followed by a value")
    if "--cfg" in flags and "--multirun" in flags:
        raise ConfigError("--cfg must be given without --multirun: it shows one config")
    if flags.get("--cfg", "job") not in ("job", "hydra", "all"):
        raise ConfigError(f"--cfg must be job, hydra or all, got {flags['--cfg']}")
    return flags, rest


def _not_a_flag(word: str, left: list[str]) -> str:
    """The sentence about `--epochs 5`, which is written epochs=5 here."""
    from dltrain.checks import ROOT

    name, equals, value = word.lstrip("-").partition("=")
    name = name.replace("-", "_")
    value = value if equals else left[0] if left and "=" not in left[0] and not left[0].startswith("-") else "..."
    if word.startswith("--") and (name in ROOT or "." in name or compose.options(name)):
        return f"{word} must be written as {name}={value}"
    return f"{word} is not a flag; settings are written as key=value{nearest(word, [*FLAGS, '--help', '--version'])}"


def _add_configs(folder: str) -> None:
    """`--config-dir` is one more folder of the user's own configs, for this process and those it starts."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir must be a folder, got {folder}")
    before = os.environ.get("DLTRAIN_CONFIGS") or ("configs" if Path("configs").is_dir() else "")
    os.environ["DLTRAIN_CONFIGS"] = os.pathsep.join(name for name in (before, str(Path(folder).absolute())) if name)


def _yaml(cfg: "DictConfig", flags: dict[str, str]) -> str:
    """The config of a run as YAML, as `--package` and `--resolve` want it."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        cfg.pop("hydra")
    package = flags.get("--package", "_global_")
    part = cfg if package == "_global_" else OmegaConf.select(cfg, package)
    if part is None:
        raise ConfigError(f"--package must be a part of the config, got {package}{nearest(package, map(str, cfg))}")
    if not OmegaConf.is_config(part):
        return f"{part}\n"
    if "--resolve" in flags:
        OmegaConf.resolve(part)
    return OmegaConf.to_yaml(part)


def hydra_main(flags: dict[str, str], words: list[str], task: Callable[["DictConfig"], Any]) -> int:
    """Hand words to Hydra's own main."""
    tree, rest = compose.literals(words)
    rest += compose.prepare(tree)
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    typed = [text for name, value in flags.items() for text in ((name, value) if FLAGS[name] else (name,))]
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["dltrain", *typed, *rest]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and does not print and exit
    try:
        hydra.main(version_base="1.3", config_path=str(compose.configs_dir()), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(compose.refused(error)) from error
    finally:
        sys.argv = before[0]
        if before[1] is None:
            del os.environ["HYDRA_FULL_ERROR"]
    return 0


def sweep(words: list[str]) -> int:
    """Run the trials of a sweep that have not ended yet; returns 0 if all went well, 75 if it was stopped, else 1."""
    from dltrain.sweeps.search import searched

    with searched(words) as (search, typed):
        hydra_main({"--multirun": ""}, typed, search.trial)
        code = search.summary()
    if search.reports and not search.stopped:
        from dltrain.commands import report

        report.write_sweep(search.folder)
    return code

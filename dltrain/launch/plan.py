"""Who starts whom, and how many processes a run gets."""

import math
import os
import re
from pathlib import Path

from dltrain.errors import ConfigError, must, whole
from dltrain.run import Config

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def slurm() -> None:
    """Take what srun says about its tasks for what torchrun would say."""
    env = os.environ
    step = "SLURM_STEP_ID" in env or env.get("ENVIRONMENT") != "BATCH"  # a batch script has a task number, too
    if "RANK" in env or not step or not all(name in env for name in SLURM.values()) or env["SLURM_NTASKS"] == "1":
        return
    env.update({name: env[theirs] for name, theirs in SLURM.items()})
    env["GROUP_RANK"] = env.get("SLURM_NODEID", "0")
    per_node = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "")))
    env["LOCAL_WORLD_SIZE"] = per_node[0] if per_node else env["WORLD_SIZE"]
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST", "localhost")
    first = re.sub(r"\[(\d+)[^\]]*\].*", r"\1", nodes)  # node[03-07,9] begins with node03
    env.setdefault("MASTER_ADDR", first.split(",")[0])
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000))


def external() -> bool:
    """True if torchrun or SLURM started this process as one of several ranks."""
    slurm()
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def follows() -> bool:
    """True of a rank that another rank leads."""
    return external() and os.environ["RANK"] != "0"


def processes(config: Config) -> int:
    """How many processes a run gets, on all nodes; raises ConfigError for settings that do not fit together."""
    trainer, name = config["trainer"], config["choices"]["trainer"]
    n = int(os.environ["WORLD_SIZE"]) if external() else 1
    if "devices" in trainer:
        n = _several(trainer, n)
    elif n > 1:
        raise ConfigError(f"trainer must be ddp or fsdp where {n} processes were started, got {name}")
    _fit(config, n)
    return n


def _several(trainer: Config, started: int) -> int:
    devices, nodes, endpoint = trainer["devices"], trainer["nodes"], trainer["rdzv_endpoint"]
    must(devices == "auto" or whole(devices, 1), "trainer.devices", "a whole number of at least 1, or auto", devices)
    must(whole(nodes, 1), "trainer.nodes", "a whole number of at least 1", nodes)
    must(
        whole(trainer["max_restarts"], 0),
        "trainer.max_restarts",
        "a whole number of at least 0",
        trainer["max_restarts"],
    )
    backends = ("auto", "gloo", "nccl")
    must(trainer["backend"] in backends, "trainer.backend", f"one of {', '.join(backends)}", trainer["backend"])
    if external():
        if devices not in ("auto", int(os.environ.get("LOCAL_WORLD_SIZE", started))):
            raise ConfigError(f"trainer.devices must be auto where processes were started already, got {devices}")
        return started
    gpus = visible_gpus() if trainer["device"] in ("auto", "cuda") else 0
    if devices != "auto" and 0 < gpus < devices:
        raise ConfigError(f"trainer.devices must be at most the {gpus} GPUs of this machine, got {devices}")
    if trainer["backend"] == "nccl" and not gpus:
        raise ConfigError("trainer.backend must be gloo or auto without a GPU, got nccl")
    if nodes > 1 and not endpoint:
        raise ConfigError(
            "trainer.rdzv_endpoint must be the host:port of the first of several nodes, got null;"
            " type the same one on every node"
        )
    port = re.fullmatch(r"[^:\s]+:(\d{1,5})", str(endpoint))
    if endpoint is not None and not (port and 0 < int(port[1]) < 2**16):
        raise ConfigError(f"trainer.rdzv_endpoint must be written as host:port, got {endpoint}")
    return nodes * (devices if devices != "auto" else gpus or 2)


def visible_gpus() -> int:
    """How many GPUs there are, without importing torch where there are none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def _fit(config: Config, n: int) -> None:
    """Raise ConfigError if the shards cannot be spread over n processes, or a batch over the shards."""
    shards, batch = config["shards"] or n, config["batch_size"]
    if shards % n:
        near = [n * k for k in (shards // n, shards // n + 1) if k]
        fitting = f" (shards={' or '.join(map(str, near))} would do)"
        if "hash" in config:  # it is a run's
            where = " on one process" if shards == 1 else ""
            both = math.lcm(shards, n)
            fitting = f" (recorded when this run started{where}); start with shards={both} to train on either"
        raise ConfigError(f"shards must be a multiple of the {n} processes, got {shards}{fitting}")
    if config["exact"] and n & (n - 1):
        raise ConfigError(
            f"exact=true must have a power of two of processes, got {n};"
            f" {2 ** (n.bit_length() - 1)} or {2 ** n.bit_length()} would do"
        )
    if isinstance(batch, int) and batch < shards:
        raise ConfigError(f"batch_size must be at least the {shards} shards, one row each, got {batch}")

"""Which runs can go together, by their configs alone: torch is not imported."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dltrain.settings import Transfer, own_settings

Config = Mapping[str, Any]

MOST = 256  # runs that are open at a time: each holds a lock and a file
MODELS = ("Linear", "MLP", "ResMLP", "CNN")
TASKS = ("Supervised", "Autoencoder", "VAE", "Diffusion", "Contrastive", "Clustering")  # of one player
OPTIMIZERS = {  # whose step is elementwise, and what of their numbers their formula branches on
    **dict.fromkeys(("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax"), ()),
    "NAdam": ("betas", "momentum_decay"),
    "RAdam": ("betas",),
}
REGULARIZERS = ("L1", "L2", "ElasticNet", "MaxNorm", "Activity", "Noise", "Mixup", "Augment", "EarlyStopping")
ANY = ("Noise", "Mixup", "Augment", "EarlyStopping")  # each member has its own: their numbers may be 0 or not
NUMBERS = (  # settings that may differ, if they are numbers: of their groups each, or these
    *("model.dropout", "loss.label_smoothing", "task.noise", "task.beta", "task.attraction", "task.temperature"),
    *("task.corruption", "task.drop"),
)
FREE = ("name", "output_root", "fresh", "seed", "sample_every", "hash", "format")  # settings that may differ


def groups(configs: Sequence[Config]) -> list[list[int]]:
    """The numbers of the configs, those together that can go together, in the order of their first."""
    found: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        key = json.dumps(alike(config), sort_keys=True) if fits(config) else f"alone {number}"
        found.setdefault(key, []).append(number)
    return [numbers[k : k + MOST] for numbers in found.values() for k in range(0, len(numbers), MOST)]


def fits(config: Config) -> bool:
    """Whether a run is of a kind that can go together with others."""
    trainer, model, transfer = config["trainer"], config["model"], Transfer.of(config["model"])
    task, optimizer = config["task"]["_target_"], config["optimizer"]["_target_"]
    return (
        _named(trainer, "dltrain.distributed", ("Single",))
        and not (trainer.get("compile") or trainer.get("activation_checkpointing"))
        and not (config["exact"] or config["trust"] or transfer.freeze or transfer.layer_decay)
        and config["precision"] == "float32"
        and config["shards"] in (None, 1)
        and all(_named(part, "dltrain.models", MODELS) for part in (model, config["task"].get("decoder", model)))
        and _named(config["activation"], "torch.nn", ())
        and task.startswith("dltrain.tasks.")
        and task.rpartition(".")[2] in TASKS
        and optimizer.startswith("torch.optim.")
        and optimizer.rpartition(".")[2] in OPTIMIZERS
        and all(_named(part, "dltrain.regularizers", REGULARIZERS) for part in config["regularizer"].values())
    )


def _named(part: Config, home: str, names: Sequence[str]) -> bool:
    module, _, name = str(part["_target_"]).rpartition(".")
    return (module == home or module.startswith(f"{home}.")) and (not names or name in names)


def alike(config: Config) -> dict[str, Any]:
    """What runs that go together have in common: the config without what may differ, and which numbers are zero."""
    kept = {key: value for key, value in config.items() if key not in FREE}
    kept["model"] = own_settings(config["model"]) | Transfer.of(config["model"]).chosen()
    kept["data"] = {**config["data"], "split": {**(config["data"].get("split") or {}), "seed": None}}
    optimizer = dict(config["optimizer"])
    fixed = OPTIMIZERS[optimizer["_target_"].rpartition(".")[2]]
    kept["optimizer"] = {key: value if key in fixed else sign(value) for key, value in optimizer.items()}
    kept["regularizer"] = {
        name: {key: _free(part, value) for key, value in part.items()} for name, part in config["regularizer"].items()
    }
    for where in NUMBERS:
        group, _, key = where.partition(".")
        if key in kept[group]:
            kept[group] = {**kept[group], key: sign(kept[group][key])}
    return kept


def _free(part: Config, value: Any) -> Any:
    own = str(part["_target_"]).rpartition(".")[2] in ANY
    return "a number" if own and sign(value) != value else sign(value)


def sign(value: Any) -> Any:
    """A number as no more than whether it is zero: programs branch on that; what is none as it is."""
    if isinstance(value, list):
        return [sign(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "zero" if value == 0 else "a number"
    return value

"""What to type next when a network is not well."""

from collections.abc import Callable, Mapping
from typing import Any

WORDS = {
    "vanishing": ("activation=relu", "model.norm=batch", "model=resmlp"),
    "saturated": ("activation=relu", "model.norm=batch", "model=resmlp"),
    "exploding": ("clip_norm=1", "optimizer.lr=", "model.norm=batch"),
    "dead": ("activation=leaky_relu", "optimizer.lr=", "model.norm=batch"),
}


def advice(ailment: str, config: Mapping[str, Any], takes: Callable[[str], bool]) -> str:
    """An ailment (`kind: what was seen`), and the words that may help and that this config has not got yet.

    `takes` says whether the network has a setting or takes a part of that name.
    """
    words = []
    for word in WORDS.get(ailment.partition(":")[0], ()):
        setting, _, value = word.partition("=")
        group, _, name = setting.partition(".")
        now = config["choices"].get(setting) if setting in config["choices"] else config.get(setting)
        if name:
            now = config[group].get(name)
        if word == "optimizer.lr=":
            words += [f"{word}{now / 10:g}"] if isinstance(now, float) else []
        elif str(now) != value and (setting == "clip_norm" or takes(name or setting)):
            words.append(word)
    first = ", ".join(words[:-1])
    return ailment + (f"; try {first + ' or ' * bool(first)}{words[-1]}" if words else "")

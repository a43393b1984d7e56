"""Normalisation between layers, by its name in a config."""

from torch import nn

from dltrain.models.checks import check

BATCH = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)


def normalise(norm: str | None, channels: int, rank: int = 0) -> dict[str, nn.Module]:
    """`{"norm": module}` over (batch, channels, *rank spatial dimensions), or an empty dict for null."""
    check(norm in (None, "batch", "layer"), "norm", "null, batch or layer", norm)
    if norm is None:
        return {}
    if norm == "batch":
        return {"norm": BATCH[rank](channels)}
    # one group over channels and space is layer normalisation for channels-first maps
    return {"norm": nn.GroupNorm(1, channels) if rank else nn.LayerNorm(channels)}

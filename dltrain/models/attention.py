"""Attention, and the block of a transformer: of an encoder, of a decoder, and of one that reads an encoder's memory."""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.errors import ConfigError


class Cache:
    """Keys and values of the steps that every attention has seen, so that the next step costs one step.

    One cache serves a whole network. The keys and values of a memory are computed once.
    """

    def __init__(self) -> None:
        self.seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # (batch, heads, steps, width of a head)

    def extend(self, layer: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values behind those that the layer has seen; all of them."""
        if layer in self.seen:
            before = self.seen[layer]
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        self.seen[layer] = keys, values
        return keys, values

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of the batch, in this order; a row may be taken twice."""
        self.seen = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.seen.items()}


class Attention(nn.Module):
    """Every step looks at the steps of its sequence, or of a memory; https://arxiv.org/abs/1706.03762.

    (batch, steps, width) to the same. `causal` hides later steps. `keys_padding_mask` (batch, keys) is true where there
    is nothing to look at. With a `cache`, x holds the steps that come next, and the mask still covers all keys.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.heads must divide model.width, got {heads} and {width}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # the softmax would cancel a bias
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        causal: bool = False,
        keys_padding_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        queries = self.split(self.query(x))
        if memory is not None and cache is not None and self in cache.seen:
            keys, values = cache.seen[self]
        else:
            source = x if memory is None else memory
            keys, values = self.split(self.key(source)), self.split(self.value(source))
            if cache is not None:
                keys, values = cache.extend(self, keys, values)
        whole = causal and keys_padding_mask is None and queries.shape[2] == keys.shape[2]  # torch has a kernel for it
        mask = None if whole else visible(queries.shape[2], keys.shape[2], causal, keys_padding_mask, x.device)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=whole)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(batch, steps, width) to (batch, heads, steps, width of a head)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def visible(n_queries: int, n_keys: int, causal: bool, padding: Tensor | None, device: torch.device) -> Tensor | None:
    """True where a query may look, to be broadcast to (batch, heads, queries, keys); None if everywhere.

    The last query stands at the last key.
    """
    mask = None
    if causal and n_queries > 1:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)
    if padding is None:
        return mask
    there = ~padding[:, None, None, :]
    return there if mask is None else mask & there


class Block(nn.Module):
    """Attention, attention to a memory if `cross`, and a feed-forward network, each beside a shortcut.

    (batch, steps, width) to the same. `norm_first` normalises what enters each (https://arxiv.org/abs/2002.04745: no
    warm-up needed; the network normalises once more at its end), otherwise what leaves it
    (https://arxiv.org/abs/1706.03762). `hidden` is the width inside the feed-forward network.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        activation: Callable[[], nn.Module],
        hidden: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention, self.attention_norm = Attention(width, heads), nn.LayerNorm(width)
        self.cross = Attention(width, heads) if cross else None
        self.cross_norm = nn.LayerNorm(width) if cross else nn.Identity()
        layers = {"linear": nn.Linear(width, hidden), "activation": activation(), "dropout": nn.Dropout(dropout)}
        self.feedforward = nn.Sequential(OrderedDict(layers | {"out": nn.Linear(hidden, width)}))
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        causal: bool = False,
        keys_padding_mask: Tensor | None = None,
        memory_padding_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x = self.beside(x, self.attention_norm, lambda y: self.attention(y, None, causal, keys_padding_mask, cache))
        if self.cross is not None:
            cross = self.cross
            x = self.beside(x, self.cross_norm, lambda y: cross(y, memory, False, memory_padding_mask, cache))
        return self.beside(x, self.feedforward_norm, self.feedforward)

    def beside(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        """The part's answer added to x, with the norm before the part or after the sum."""
        if self.norm_first:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))

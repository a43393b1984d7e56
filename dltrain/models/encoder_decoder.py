"""Transformer that reads one sequence and tells another."""

from collections.abc import Callable

from torch import Tensor, nn

from dltrain.models.attention import Block, Cache
from dltrain.models.checks import count, dropout_rate, flag
from dltrain.models.init import initialise
from dltrain.models.tokens import PADDING, Tokens, check_tokens, steps_seen


class EncoderDecoder(nn.Module):
    """An encoder that sees all of the source, and a decoder that sees it and the tokens told so far.

    (batch, n_source) and (batch, n_target) of tokens to logits (batch, n_target, vocabulary) of the token that comes
    next; https://arxiv.org/abs/1706.03762. Both sides and the last affine map share one embedding. With a `cache` the
    target's tokens are those that come after what it has seen, and the source is encoded once.
    """

    reads = "pairs"

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        vocabulary: int | None = None,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        feedforward: int | None = None,
        positions: str = "sinusoidal",
        norm_first: bool = True,
        dropout: float = 0.1,
        init: str = "default",
    ) -> None:
        super().__init__()
        check_tokens("encoder_decoder", "pairs", vocabulary, shape_out)
        assert vocabulary is not None
        width, rate = count("width", width), dropout_rate(dropout)
        hidden = 4 * width if feedforward is None else count("feedforward", feedforward)
        options = (width, count("heads", heads), activation, hidden, rate, flag("norm_first", norm_first))
        count("depth", depth)
        self.tokens = Tokens(vocabulary, width, positions, max(shape_in[0], shape_out[0]))
        self.dropout = nn.Dropout(rate)
        self.encoder = nn.ModuleList(Block(*options) for _ in range(depth))
        self.decoder = nn.ModuleList(Block(*options, cross=True) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.decoder_norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        initialise(self, init)

    def cache(self) -> Cache:
        """What remembers the source and what was told, to be handed to every call of one sequence."""
        return Cache()

    def forward(self, source: Tensor, target: Tensor, cache: Cache | None = None) -> Tensor:
        hidden = source == PADDING
        memory = self._encoded(source, hidden, cache)
        x = self.dropout(self.tokens(target, steps_seen(cache, self.decoder)))
        for block in self.decoder:
            x = block(x, memory, causal=True, memory_padding_mask=hidden, cache=cache)
        return self.tokens.guesses(self.decoder_norm(x))

    def _encoded(self, source: Tensor, hidden: Tensor, cache: Cache | None) -> Tensor:
        """(batch, n_source, width), computed once for a cache."""
        if cache is not None and self in cache.seen:
            return cache.seen[self][0]
        x = self.dropout(self.tokens(source))
        for block in self.encoder:
            x = block(x, keys_padding_mask=hidden)
        x = self.encoder_norm(x)
        if cache is not None:
            cache.seen[self] = x, hidden
        return x

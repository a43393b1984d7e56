"""Transformer decoder: guesses each next token."""

from collections.abc import Callable

from torch import Tensor, nn

from dltrain.models.attention import Block, Cache
from dltrain.models.checks import count, dropout_rate, flag
from dltrain.models.init import initialise
from dltrain.models.tokens import Tokens, check_tokens, steps_seen


class GPT(nn.Module):
    """Blocks in which every token looks at itself and those before it.

    (batch, length) of tokens to logits (batch, length, vocabulary) of the token that comes next; fewer tokens will do.
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf. The last
    affine map is the embedding's. With a `cache` the tokens are those that come after what it has seen.
    """

    reads = "tokens"

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        activation: Callable[[], nn.Module] = nn.ReLU,
        vocabulary: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        feedforward: int | None = None,
        positions: str = "sinusoidal",
        norm_first: bool = True,
        dropout: float = 0.1,
        init: str = "default",
    ) -> None:
        super().__init__()
        check_tokens("gpt", "text", vocabulary, shape_out)
        assert vocabulary is not None
        width, rate = count("width", width), dropout_rate(dropout)
        hidden = 4 * width if feedforward is None else count("feedforward", feedforward)
        self.tokens = Tokens(vocabulary, width, positions, shape_in[0])
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.ModuleList(
            Block(width, count("heads", heads), activation, hidden, rate, flag("norm_first", norm_first))
            for _ in range(count("depth", depth))
        )
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        initialise(self, init)

    def cache(self) -> Cache:
        """What remembers tokens, to be handed to every call of one sequence."""
        return Cache()

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        x = self.dropout(self.tokens(tokens, steps_seen(cache, self.blocks)))
        for block in self.blocks:
            x = block(x, causal=True, cache=cache)
        return self.tokens.guesses(self.norm(x))

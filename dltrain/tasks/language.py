"""Tell each token of a text from those before it."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dltrain.errors import ConfigError, must, real, whole
from dltrain.tasks.task import Columns, Move, Task
from dltrain.tasks.tokens import summed, tally

WINDOWS = 64  # that are told at a time


class Language(Task):
    """The next token, by the mean loss of tokens.

    Predicts what a line costs: its tokens, bits per token and per character (the line break behind it is one), and the
    share of tokens that the network would have guessed.
    """

    reads = "tokens"
    measures: Mapping[str, str] = {
        "bits_per_token": "min",
        "bits_per_character": "min",
        "perplexity": "min",
        "accuracy": "max",
    }

    def __init__(self, data: Any, model: Callable, loss: Callable) -> None:
        super().__init__()
        self.loss = loss()
        self.tokenizer, (self.length,), self.widens = data.tokenizer, data.shape_in, data.vocabulary
        self.network: Any = model(data.shape_in, (self.length, data.vocabulary))
        self.characters: Tensor  # that each token stands for
        self.register_buffer("characters", torch.tensor(self.tokenizer.lengths()), persistent=False)

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        yield "network", *summed(self.loss, self.network(batch["features"]), batch["target"])

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, 4): the loss of a row in nats, its tokens, those guessed right, its characters.

        Of rows without a target each token is the target of the one before it. Rows may be several windows long.
        """
        features = batch["features"]
        behind = torch.cat([features[:, 1:], torch.zeros_like(features[:, :1])], 1)
        pairs = zip(
            features.reshape(-1, self.length).split(WINDOWS),
            batch.get("target", behind).reshape(-1, self.length).split(WINDOWS),
            strict=True,
        )
        told = torch.cat([self._told(self.network(window), target) for window, target in pairs])
        return told.view(len(features), -1, told.shape[1]).sum(1)

    def assess(self, batch: Mapping[str, Tensor]) -> tuple[list[Move], Tensor]:
        logits, target = self.network(batch["features"]), batch["target"]
        return [("network", *summed(self.loss, logits, target))], self._told(logits, target)

    def _told(self, logits: Tensor, target: Tensor) -> Tensor:
        return torch.cat([tally(logits, target), self.characters[target].sum(1, keepdim=True)], 1)

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        loss, tokens, right, characters = predictions.double().sum(0).tolist()
        if not tokens or not math.isfinite(loss):
            return {}
        found = {"bits_per_token": loss / tokens / math.log(2), "accuracy": right / tokens}
        found |= {"bits_per_character": loss / characters / math.log(2)} if characters else {}
        return found | ({"perplexity": math.exp(loss / tokens)} if loss / tokens < 700 else {})  # e^710 is no number

    def columns(self, predictions: Tensor) -> Columns:
        loss, tokens, right, characters = predictions.double().unbind(1)
        bits = loss / math.log(2)
        return {
            "tokens": tokens.long().numpy(),
            "bits_per_token": (bits / tokens).numpy(),
            "bits_per_character": (bits / characters).numpy(),
            "accuracy": (right / tokens).numpy(),
        }

    @torch.no_grad()
    def sample(
        self,
        n: int,
        prompt: str | None = None,
        length: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> list[str]:
        """New texts of `length` tokens behind the prompt, drawn by torch's generator.

        A temperature below 1 prefers the likelier tokens, 0 takes the likeliest; `top_k` draws from the likeliest so
        many. Without a prompt texts begin as a line does. Raises ConfigError for a prompt of unknown characters.
        """
        must(whole(length, 1), "length", "a whole number of at least 1", length)
        must(real(temperature) and temperature >= 0, "temperature", "at least 0", temperature)
        must(top_k is None or whole(top_k, 1), "top_k", "a whole number of at least 1, or null", top_k)
        begin = self._begin(prompt)
        tokens = torch.tensor([begin] * n, device=self.characters.device)
        cache, seen, unread = self.network.cache(), 0, tokens[:, -self.length :]
        for _ in range(length):
            if seen + unread.shape[1] > self.length:  # there is no place behind: go on from half of what there is
                cache, seen, unread = self.network.cache(), 0, tokens[:, -max(1, self.length // 2) :]
            logits = self.network(unread, cache)[:, -1].float()
            seen, unread = seen + unread.shape[1], draw(logits, self.tokenizer.special, temperature, top_k)
            tokens = torch.cat([tokens, unread], 1)
        return [self.tokenizer.decode(row) for row in tokens[:, 0 if prompt else len(begin) :].tolist()]

    def _begin(self, prompt: str | None) -> list[int]:
        """The tokens that a text goes on from."""
        if not prompt:  # a line break, or what the text has most of
            return self.tokenizer.encode("\n")[-1:] if not self.tokenizer.unknown("\n") else [self.tokenizer.special]
        if unknown := self.tokenizer.unknown(prompt):
            listed = " ".join(repr(letter) for letter in unknown)
            raise ConfigError(f"prompt must be of characters of the training text, got {prompt!r} with {listed}")
        found: list[int] = self.tokenizer.encode(prompt)
        return found


def draw(logits: Tensor, special: int, temperature: float, top_k: int | None) -> Tensor:
    """(batch, vocabulary) to a token of text for each row, (batch, 1)."""
    logits[:, :special] = -torch.inf
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(1), 1)

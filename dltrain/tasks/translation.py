"""Tell one text from another."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dltrain.errors import must, real, whole
from dltrain.tasks.task import Columns, Move, Task
from dltrain.tasks.tokens import search, summed, tally

SCORES = 3  # numbers of a prediction before its tokens


class Translation(Task):
    """The next token of the target from the source and the target's tokens before it, by their mean loss.

    Predicts the text that it tells by itself, keeping the `beam` likeliest tellings at each token; with 1 that is
    greedy. A `length_penalty` above 0 lets longer ones win (dltrain.tasks.tokens.search). The exact match of a metric
    is of such texts, the accuracy of single tokens is after the right ones.
    """

    reads = "pairs"
    measures: Mapping[str, str] = {"token_accuracy": "max", "exact_match": "max"}

    def __init__(self, data: Any, model: Callable, loss: Callable, beam: int = 1, length_penalty: float = 0.0) -> None:
        super().__init__()
        self.loss = loss()
        must(real(length_penalty) and length_penalty >= 0, "task.length_penalty", "at least 0", length_penalty)
        self.length_penalty = float(length_penalty)
        must(whole(beam, 1), "task.beam", "a whole number of at least 1", beam)
        self.tokenizer, self.beam, self.steps = data.tokenizer, beam, data.n_target - 1
        self.widens = beam * data.vocabulary
        self.network: Any = model(data.shape_in, (self.steps, data.vocabulary))

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        yield "network", *summed(self.loss, *self._guesses(batch))

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, 3 + steps): the loss in nats, tokens and those guessed right, all 0 without a target; then the tokens
        that are told.
        """
        told = self._told(batch["features"])
        scores = tally(*self._guesses(batch)) if "target" in batch else torch.zeros_like(told[:, :SCORES])
        return torch.cat([scores, told], 1)

    def assess(self, batch: Mapping[str, Tensor]) -> tuple[list[Move], Tensor]:
        logits, target = self._guesses(batch)
        predictions = torch.cat([tally(logits, target), self._told(batch["features"])], 1)
        return [("network", *summed(self.loss, logits, target))], predictions

    def _guesses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (batch, steps, vocabulary) after the right tokens, and the tokens that come next (batch, steps)."""
        target = batch["target"]
        return self.network(batch["features"], target[:, :-1]), target[:, 1:]

    @torch.no_grad()
    def _told(self, source: Tensor) -> Tensor:
        """(batch, steps) of tokens that the network tells by itself."""
        rows, cache = source.repeat_interleave(self.beam, 0), self.network.cache()

        def step(tokens: Tensor, parents: Tensor) -> Tensor:
            if self.beam > 1:
                cache.take(parents)
            logits: Tensor = self.network(rows, tokens, cache)[:, -1]
            return logits

        begin = torch.full((len(source),), self.tokenizer.begin, device=source.device)
        return search(step, begin, self.tokenizer.end, self.steps, self.beam, self.length_penalty).float()

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        tokens, right = predictions[:, 1:SCORES].double().sum(0).tolist()
        exact = (predictions[:, SCORES:].long() == rows["target"][:, 1:]).all(1)
        return {"token_accuracy": right / tokens, "exact_match": float(exact.double().mean())}

    def columns(self, predictions: Tensor) -> Columns:
        return {"prediction": [self.tokenizer.decode(row) for row in predictions[:, SCORES:].long().tolist()]}

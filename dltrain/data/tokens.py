"""Text as tokens: characters, or pieces that byte-pair encoding learns from the training part.

Tokens 0 to 3 stand for nothing (padding), for what training has not met, and for where a text begins and ends.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dltrain.data.target import Target
from dltrain.errors import ConfigError, must, nearest, whole

PADDING, UNKNOWN, BEGIN, END = range(4)
SPECIAL = 4  # tokens that are no text
FILE = "tokenizer.json"


class Special:
    """Tokens that are no text, the same in every vocabulary."""

    begin, end, special = BEGIN, END, SPECIAL


class Characters(Special):
    """A token for every character of the training part, the most frequent first."""

    kind = "characters"

    def __init__(self, letters: str) -> None:
        if not isinstance(letters, str) or len(set(letters)) != len(letters):
            raise ValueError("letters must be different characters")
        self.letters = letters
        self.ids = {letter: number for number, letter in enumerate(letters, SPECIAL)}

    @classmethod
    def fit(cls, texts: Sequence[str], size: int) -> "Characters":
        """All characters of the texts, whatever size is asked for."""
        counts = Counter(letter for text in texts for letter in text)
        return cls("".join(sorted(counts, key=lambda letter: (-counts[letter], letter))))

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return SPECIAL + len(self.letters)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [self.ids.get(letter, UNKNOWN) for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; those that are no text are left out."""
        return "".join(self.letters[token - SPECIAL] for token in tokens if SPECIAL <= token < self.size)

    def unknown(self, text: str) -> list[str]:
        """Characters that no token stands for."""
        return [letter for letter in dict.fromkeys(text) if letter not in self.ids]

    def lengths(self) -> list[int]:
        """How many characters each token stands for."""
        return [0, 1, 0, 0] + [1] * len(self.letters)

    def state(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"letters": self.letters}


class Pieces(Special):
    """Byte-pair encoding of UTF-8 (https://arxiv.org/abs/1508.07909): every text has tokens, whatever its characters.

    Pieces do not cross words, as GPT-2 cuts them. Wraps what the `tokenizers` library learns.
    """

    kind = "bpe"

    def __init__(self, learnt: Any) -> None:
        from tokenizers import Tokenizer

        self.learnt = Tokenizer.from_str(json.dumps(learnt))

    @classmethod
    def fit(cls, texts: Sequence[str], size: int) -> "Pieces":
        """As many pieces as fill `size` tokens, if the texts have so many."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        alphabet = pre_tokenizers.ByteLevel.alphabet()
        least = SPECIAL + len(alphabet)
        must(whole(size, least), "data.vocabulary", f"at least {least} with data.tokens=bpe (every byte is one)", size)
        learnt = Tokenizer(models.BPE())
        learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learnt.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size - SPECIAL, initial_alphabet=alphabet, show_progress=False)
        learnt.train_from_iterator(texts, trainer)
        return cls(json.loads(learnt.to_str()))

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return SPECIAL + int(self.learnt.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [SPECIAL + number for number in self.learnt.encode(text).ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; those that are no text are left out, bytes that make no character become U+FFFD."""
        text: str = self.learnt.decode([token - SPECIAL for token in tokens if SPECIAL <= token < self.size])
        return text

    def unknown(self, text: str) -> list[str]:
        """Characters that no token stands for: none."""
        return []

    def lengths(self) -> list[int]:
        """How many characters begin in each token."""
        letters = byte_letters()
        numbers: dict[str, int] = self.learnt.get_vocab()
        words = sorted(numbers, key=numbers.__getitem__)
        return [0] * SPECIAL + [sum(letters[letter] & 0xC0 != 0x80 for letter in word) for word in words]

    def state(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"learnt": json.loads(self.learnt.to_str())}


Tokenizer = Characters | Pieces
KINDS: dict[str, type[Characters] | type[Pieces]] = {kind.kind: kind for kind in (Characters, Pieces)}


def byte_letters() -> dict[str, int]:
    """The byte that each letter of GPT-2's alphabet stands for: those that print as themselves, the others from 256."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def kind_of(tokens: Any) -> type[Characters] | type[Pieces]:
    """The tokenizer of a word; raises ConfigError."""
    if tokens not in KINDS:
        raise ConfigError(f"data.tokens must be {' or '.join(KINDS)}, got {tokens}{nearest(str(tokens), KINDS)}")
    return KINDS[tokens]


def padded(tokens: Sequence[int], length: int) -> list[int]:
    """The tokens and as much padding as makes `length`."""
    return [*tokens, *[PADDING] * (length - len(tokens))]


class TokenPreparation:
    """What a network of tokens and its task must know of the data: the tokenizer and how long rows are.

    A subclass says how the rows of a new file become tokens.
    """

    gives = "tokens"  # what networks and tasks must read

    def __init__(
        self, tokenizer: Tokenizer, shape_in: tuple[int, ...], target: Target, reading: dict[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.shape_in, self.target, self.reading = tokenizer, shape_in, target, reading or {}
        self.id_columns: list[str] = []

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.tokenizer.size

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the tokenizer into a folder; gives the rest as what JSON can hold."""
        state = {"tokens": self.tokenizer.kind, **self.tokenizer.state()}
        (Path(folder) / FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        return {
            "_target_": f"{type(self).__module__}.{type(self).__name__}",
            "format": 1,
            "shape_in": list(self.shape_in),
            "target": self.target.to_json(),
            "reading": self.reading,
        }

    @classmethod
    def load(cls, folder: Path, state: dict[str, Any]) -> "TokenPreparation":
        """What `save` wrote; executes nothing of the folder's."""
        written = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        tokenizer = KINDS[written.pop("tokens")](**written)
        return cls(tokenizer, tuple(state["shape_in"]), Target.from_json(state["target"]), dict(state["reading"]))

    share, shared = save, load  # other processes of this machine are told all of it

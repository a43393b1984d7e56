"""Tokens: text and pairs become rows, and networks of tokens compute what torch's own modules compute."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import pre_tokenizers
from torch import Tensor, nn

from dltrain.data import stored
from dltrain.data.pairs import Pairs
from dltrain.data.text import Text
from dltrain.data.tokens import BEGIN, END, PADDING, SPECIAL, UNKNOWN, Characters, Pieces, byte_letters
from dltrain.errors import ConfigError, DataError
from dltrain.models.attention import Attention, Block
from dltrain.models.encoder_decoder import EncoderDecoder
from dltrain.models.gpt import GPT
from dltrain.tasks.tokens import nats, search

STORY = "the cat sat on the mat.\nthe dog ate the hat; naïve 犬 ran off.\n" * 30
POSITIONS = ["sinusoidal", "learned"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def text(folder: Path, content: str = STORY, **settings: Any) -> Text:
    (folder / "book.txt").write_text(content, encoding="utf-8")
    return Text(str(folder / "book.txt"), **settings)


def pairs(folder: Path, lines: str = "", **settings: Any) -> Pairs:
    rows = "".join(f"{word},{word[::-1]}\n" for word in map("".join, itertools.permutations("abcd")))
    (folder / "pairs.csv").write_text("a,b\n" + rows + lines, encoding="utf-8")
    return Pairs(str(folder / "pairs.csv"), **({"source": "a", "target": "b"} | settings))


# Tokenizers


def test_characters_are_numbered_by_how_often_they_are() -> None:
    tokenizer = Characters.fit(["banana", "bax"], 1000)
    assert tokenizer.letters == "abnx"
    assert tokenizer.encode("bay") == [SPECIAL + 1, SPECIAL, UNKNOWN]
    assert tokenizer.decode([BEGIN, SPECIAL + 1, SPECIAL, UNKNOWN, END, PADDING]) == "ba"
    assert tokenizer.unknown("yay") == ["y"]
    assert len(tokenizer.lengths()) == tokenizer.size == SPECIAL + 4


def test_pieces_are_learnt_and_tell_every_text() -> None:
    tokenizer = Pieces.fit([STORY], 280)
    assert tokenizer.size == 280
    for line in (STORY, "", "ünknown 🐈‍⬛ \t\r\n  <end> <padding>", "".join(map(chr, range(1, 600)))):
        assert tokenizer.decode(tokenizer.encode(line)) == line
        assert all(token >= SPECIAL for token in tokenizer.encode(line))
        assert sum(tokenizer.lengths()[token] for token in tokenizer.encode(line)) == len(line)
    assert len(tokenizer.encode(STORY)) < 0.6 * len(STORY)


def test_the_first_merge_is_the_most_frequent_pair() -> None:
    tokenizer = Pieces.fit(["low low lower newest newest newest widest west"], SPECIAL + 257)
    words = ["low", "low", "lower", "newest", "newest", "newest", "widest", "west"]
    counts = Counter(pair for word in words for pair in itertools.pairwise(word))
    most = max(counts.values())
    merged = [word for word in tokenizer.learnt.get_vocab() if len(word) == 2]
    assert len(merged) == 1
    assert counts[merged[0][0], merged[0][1]] == most


def test_the_letters_of_bytes_are_those_of_the_library() -> None:
    assert set(byte_letters()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_letters().values()) == list(range(256))
    tokenizer = Pieces.fit(["a"], 260)
    for byte in (65, 32, 0xC3, 0xA9):
        letter = next(letter for letter, number in byte_letters().items() if number == byte)
        assert tokenizer.learnt.token_to_id(letter) is not None
    assert tokenizer.decode(tokenizer.encode("é")) == "é"


# Text


@pytest.mark.parametrize("tokens", ["characters", "bpe"])
def test_every_token_of_a_part_is_told_once_and_no_window_crosses(tokens: str, tmp_path: Path) -> None:
    content = "".join(chr(0x4E00 + number) for number in range(1000)) + STORY  # each character once, then a story
    data = text(tmp_path, content, tokens=tokens, length=16).load()
    n_valid = n_test = round(0.1 * len(content))
    bounds = [0, len(content) - n_valid - n_test, len(content) - n_test, len(content)]
    tokenizer = data.preparation.tokenizer
    for rows, (start, end) in zip((data.train, data.valid, data.test), itertools.pairwise(bounds), strict=True):
        expected = tokenizer.encode(content[start:end])
        assert rows["target"][rows["target"] != PADDING].tolist() == expected[1:]
        assert rows["features"][rows["target"] != PADDING].tolist() == expected[:-1]
        assert rows["features"].shape == rows["target"].shape == (len(rows["row"]), 16)
        inner = rows["target"][:, 1:] != PADDING
        assert torch.equal(rows["features"][:, 1:][inner], rows["target"][:, :-1][inner])
    assert data.description["splits"]["train"] == len(data.train["row"])


def test_training_windows_overlap_by_the_stride(tmp_path: Path) -> None:
    data = text(tmp_path, length=16, stride=5).load()
    tokens = data.preparation.tokenizer.encode(STORY[: len(STORY) - 2 * round(0.1 * len(STORY))])
    assert [row.tolist() for row in data.train["features"][:3]] == [tokens[k : k + 16] for k in (0, 5, 10)]
    last = data.train["target"][-1]
    assert last[last != PADDING].tolist()[-1] == tokens[-1]
    assert len(data.valid["row"]) == -(-(round(0.1 * len(STORY)) - 1) // 16)


@pytest.mark.parametrize("tokens", ["characters", "bpe"])
def test_tokens_are_learnt_from_the_training_part_alone(tokens: str, tmp_path: Path) -> None:
    found = []
    for tail in ("z" * 400, "qu" * 200):
        data = text(tmp_path, STORY + tail, tokens=tokens, vocabulary=300).load()
        data.preparation.save(tmp_path)
        found.append((tmp_path / "tokenizer.json").read_bytes())
    assert found[0] == found[1]
    assert bool(data.warnings) == (tokens == "characters")
    assert "not in the training part: 'q' 'u'" in "".join(data.warnings) or tokens == "bpe"


@pytest.mark.parametrize("tokens", ["characters", "bpe"])
def test_a_preparation_is_restored_and_shared(tokens: str, tmp_path: Path) -> None:
    data = text(tmp_path, tokens=tokens, length=16).load()
    frame = pd.DataFrame({"text": ["the cat", "", "x" * 40]})
    state = json.loads(json.dumps(data.preparation.save(tmp_path)))
    (tmp_path / "rows").mkdir()
    stored.store(data, tmp_path / "rows")
    mapped = stored.mapped(tmp_path / "rows")
    assert torch.equal(mapped.train["target"], data.train["target"])
    for again in (type(data.preparation).load(tmp_path, state), mapped.preparation):
        assert again.vocabulary == data.preparation.vocabulary
        assert again.shape_in == (16,)
        assert torch.equal(again.features(frame, "frame"), data.preparation.features(frame, "frame"))


def test_a_line_stands_between_two_line_breaks(tmp_path: Path) -> None:
    preparation = text(tmp_path, length=16).load().preparation
    frame = pd.DataFrame({"text": ["the cat sat on the mat.", ""]})
    features, targets = preparation.features(frame, "frame"), preparation.targets(frame, "frame")
    assert features.shape == targets.shape == (2, 32)
    assert preparation.tokenizer.decode(features[0].tolist()) == "\nthe cat sat on the mat.\n"
    assert preparation.tokenizer.decode(targets[0].tolist()) == "the cat sat on the mat.\n"
    assert preparation.tokenizer.decode(targets[1].tolist()) == "\n"


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        ("", {}, "book.txt: the file is empty"),
        (" \n \n", {"length": 2}, "book.txt: the text is empty"),
        ("short", {}, "book.txt: a text of 5 characters is too short for a window of 128"),
        (
            STORY[:150],
            {},
            "book.txt: its training part of 120 tokens is too short for a window of 128 and the token after it; "
            "set data.length",
        ),
        (STORY, {"tokens": "words"}, "data.tokens must be characters or bpe, got words (bpe, characters)"),
        (
            STORY,
            {"tokens": "characers"},
            "data.tokens must be characters or bpe, got characers; did you mean characters?",
        ),
        (STORY, {"length": 0}, "data.length must be a whole number of at least 1, got 0"),
        (STORY, {"stride": 200}, "data.stride must be a whole number from 1 to data.length=128, or null, got 200"),
        (
            STORY,
            {"tokens": "bpe", "vocabulary": 99},
            "data.vocabulary must be at least 260 with data.tokens=bpe (every byte is one), got 99",
        ),
        (STORY, {"encoding": "ascii"}, "book.txt: the file is not ascii (data.encoding)"),
        (STORY, {"split": {"valid": 0.0}}, "data.split.valid must leave at least one row for validation, got 0"),
    ],
)
def test_bad_text_is_one_sentence(content: str, settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match="^" + re.escape(sentence)) as error:
        text(tmp_path, content, **settings).load()
    assert "\n" not in str(error.value)


def test_a_missing_text_and_a_folder_are_one_sentence(tmp_path: Path) -> None:
    text(tmp_path)
    with pytest.raises(DataError, match=r"bok\.txt: no such file; did you mean book\.txt\?"):
        Text(str(tmp_path / "bok.txt")).load()
    with pytest.raises(DataError, match=r"is a folder; data\.path must be a file"):
        Text(str(tmp_path)).load()


# Pairs


def test_pairs_have_ends_and_padding(tmp_path: Path) -> None:
    data = pairs(tmp_path, "none,NA\n").load()
    rows = pd.read_csv(tmp_path / "pairs.csv", keep_default_na=False)
    decode = data.preparation.tokenizer.decode
    seen: list[int] = []
    for split in (data.train, data.valid, data.test):
        assert split["features"].shape[1] == 4
        assert split["target"].shape[1] == 6
        for source, target, row in zip(split["features"], split["target"], split["row"].tolist(), strict=True):
            word = rows["b"][row]
            if row < 24:
                assert decode(source.tolist()) == rows["a"][row]
                assert decode(target.tolist()) == word
            assert target[0] == BEGIN
            assert target[len(word) + 1] == END
            assert target[len(word) + 2 :].tolist() == [PADDING] * (4 - len(word))
        seen += split["row"].tolist()
    assert sorted(seen) == list(range(25))
    other = pairs(tmp_path, "none,NA\n", split={"seed": 1}).load()
    assert other.train["row"].tolist() != data.train["row"].tolist()


@pytest.mark.parametrize("tokens", ["characters", "bpe"])
def test_pairs_are_restored(tokens: str, tmp_path: Path) -> None:
    preparation = pairs(tmp_path, tokens=tokens).load().preparation
    again = type(preparation).load(tmp_path, json.loads(json.dumps(preparation.save(tmp_path))))
    frame = next(again.read(str(tmp_path / "pairs.csv")))
    assert again.n_target == preparation.n_target
    assert torch.equal(again.features(frame, "f"), preparation.features(frame, "f"))
    assert torch.equal(again.targets(frame, "f"), preparation.targets(frame, "f"))


@pytest.mark.parametrize(
    ("lines", "settings", "sentence"),
    [
        ("ab,\n", {}, "pairs.csv row 25, column b: expected text on both sides of a pair, got ''"),
        (",ab\n", {}, "pairs.csv row 25, column a: expected text on both sides of a pair, got ''"),
        ("ab,  \n", {}, "pairs.csv row 25, column b: expected text on both sides of a pair, got ''"),
        ("", {"source": "c"}, "data.source must be a column of pairs.csv, got c"),
        ("", {"target": "a"}, "data.target must be another column than data.source, got a"),
        ("", {"tokens": 3}, "data.tokens must be characters or bpe, got 3"),
    ],
)
def test_bad_pairs_are_one_sentence(lines: str, settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match="^" + re.escape(sentence)) as error:
        pairs(tmp_path, lines, **settings).load()
    assert "\n" not in str(error.value)


def test_a_longer_source_than_any_known_is_one_sentence(tmp_path: Path) -> None:
    preparation = pairs(tmp_path).load().preparation
    with pytest.raises(DataError, match=r"^new\.csv row 8, column a: expected at most 4 tokens, got 5$"):
        preparation.features(pd.DataFrame({"a": ["ab", "abcde"]}), "new.csv", 6)


# Networks


def gpt(**settings: Any) -> GPT:
    torch.manual_seed(0)
    return GPT((12,), (12, 20), nn.GELU, 20, **({"width": 16, "depth": 2, "dropout": 0.0} | settings))


def encoder_decoder(**settings: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder((9,), (7, 20), nn.ReLU, 20, **({"width": 16, "depth": 2, "dropout": 0.0} | settings))


def some_tokens(*shape: int, padded: int = 0) -> Tensor:
    tokens = torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(1))
    for row in range(shape[0]):
        tokens[row, shape[1] - row * padded :] = PADDING
    return tokens


def copy(ours: Block, theirs: nn.Module) -> None:
    """Our weights into torch's layer; the bias of its keys is any, because the softmax cancels it."""

    def attention(mine: Attention, other: Any) -> None:
        with torch.no_grad():
            other.in_proj_weight.copy_(torch.cat([mine.query.weight, mine.key.weight, mine.value.weight]))
            other.in_proj_bias.copy_(torch.cat([mine.query.bias, torch.randn_like(mine.query.bias), mine.value.bias]))
        other.out_proj.load_state_dict(mine.out.state_dict())

    layer: Any = theirs
    attention(ours.attention, layer.self_attn)
    norms = [ours.attention_norm, ours.feedforward_norm]
    if ours.cross is not None:
        attention(ours.cross, layer.multihead_attn)
        norms.insert(1, ours.cross_norm)
    for number, norm in enumerate(norms, 1):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        getattr(layer, f"norm{number}").load_state_dict(norm.state_dict())
    layer.linear1.load_state_dict(ours.feedforward.linear.state_dict())
    layer.linear2.load_state_dict(ours.feedforward.out.state_dict())


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_gpt_is_torchs_encoder_with_a_causal_mask(positions: str, norm_first: bool) -> None:
    ours = gpt(positions=positions, norm_first=norm_first)
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=norm_first)
    last = nn.LayerNorm(16) if norm_first else None
    theirs = nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=False)
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        copy(mine, other)
    tokens = some_tokens(5, 12)
    mask = nn.Transformer.generate_square_subsequent_mask(12)
    expected = theirs(ours.tokens(tokens), mask, is_causal=True) @ ours.tokens.weight.T
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_decoder_is_torchs_transformer(norm_first: bool) -> None:
    ours = encoder_decoder(norm_first=norm_first)
    layers = [
        kind(16, 4, 64, 0.0, batch_first=True, norm_first=norm_first)
        for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    ]
    last = [nn.LayerNorm(16) if norm_first else None for _ in range(2)]  # post-norm blocks need no other
    encoder = nn.TransformerEncoder(layers[0], 2, last[0], enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(layers[1], 2, last[1])
    theirs = nn.Transformer(16, 4, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    for mine, other in zip(
        [*ours.encoder, *ours.decoder], [*theirs.encoder.layers, *theirs.decoder.layers], strict=True
    ):
        copy(mine, other)
    source, target = some_tokens(4, 9, padded=2), some_tokens(4, 7)
    hidden = source == PADDING
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.bool)
    told = theirs(
        ours.tokens(source),
        ours.tokens(target),
        tgt_mask=mask,
        src_key_padding_mask=hidden,
        memory_key_padding_mask=hidden,
    )
    torch.testing.assert_close(ours(source, target), told @ ours.tokens.weight.T, rtol=1e-5, atol=1e-5)


def test_a_later_token_changes_nothing_before_it() -> None:
    model, both = gpt(), encoder_decoder()
    tokens, source, target = some_tokens(3, 12), some_tokens(3, 9), some_tokens(3, 7)
    for place in range(7):
        changed, other = tokens.clone(), target.clone()
        changed[:, place] = changed[:, place] % 19 + 1
        other[:, place] = other[:, place] % 19 + 1
        for before, after in ((model(tokens), model(changed)), (both(source, target), both(source, other))):
            assert torch.equal(before[:, :place], after[:, :place])
            assert not torch.isclose(before[:, place:], after[:, place:]).all(2).any()
    changed = source.clone()
    changed[:, -1] = changed[:, -1] % 19 + 1
    assert not torch.isclose(both(source, target), both(changed, target)).all(2).any()  # the source is all there


def test_padding_of_the_source_changes_nothing() -> None:
    model, source, target = encoder_decoder(), some_tokens(3, 5), some_tokens(3, 7)
    padded = torch.cat([source, torch.zeros(3, 4, dtype=torch.long)], 1)
    torch.testing.assert_close(model(source, target), model(padded, target), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_cache_changes_no_logits(positions: str) -> None:
    model, tokens = gpt(positions=positions).eval(), some_tokens(3, 12)
    cache = model.cache()
    parts = [model(piece, cache) for piece in tokens.split([5, 1, 1, 1, 1, 1, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-5, atol=1e-5)
    both, source, target = encoder_decoder(positions=positions).eval(), some_tokens(4, 9, padded=2), some_tokens(4, 7)
    cache, calls = both.cache(), []
    both.encoder[0].register_forward_hook(lambda *_: calls.append(1))
    parts = [both(source, piece, cache) for piece in target.split(1, 1)]
    assert len(calls) == 1, "the source is read once"
    torch.testing.assert_close(torch.cat(parts, 1), both(source, target), rtol=1e-5, atol=1e-5)


def test_the_embedding_is_the_head_and_everything_learns() -> None:
    model = gpt(width=256, depth=1)
    assert sum(p.shape == (20, 256) for p in model.parameters()) == 1
    vectors = model.tokens(some_tokens(64, 12)) - model.tokens.positions.embedding
    assert 0.9 < vectors.std() < 1.1
    for name, parameter in model.named_parameters():
        assert torch.autograd.grad(model(some_tokens(2, 12)).square().sum(), parameter)[0].abs().sum() > 0, name


@pytest.mark.parametrize("model", [GPT, EncoderDecoder])
def test_networks_of_tokens_refuse_numbers(model: type[nn.Module]) -> None:
    data = {"GPT": "text", "EncoderDecoder": "pairs"}[model.__name__]
    with pytest.raises(ConfigError, match=f"must read tokens, got numbers; use data={data}"):
        model((12,), (12, 20))
    with pytest.raises(ConfigError, match="must guess one of the 20 tokens at each step, got outputs of shape"):
        model((12,), (3,), vocabulary=20)
    with pytest.raises(ConfigError, match=r"model\.heads must divide model\.width"):
        model((12,), (12, 20), vocabulary=20, width=10)


# Search


def test_a_wide_beam_finds_the_likeliest_and_a_narrow_one_is_greedy() -> None:
    torch.manual_seed(2)
    steps, vocabulary = 4, 5
    table = torch.randn(steps, vocabulary, vocabulary)  # logits by place and by the token before

    def run(beam: int) -> list[int]:
        place = iter(range(steps))
        begin = torch.full((2,), BEGIN)
        found = search(lambda tokens, _: table[next(place)][tokens[:, 0]], begin, END, steps, beam)
        assert torch.equal(found[0], found[1])
        return found[0].tolist()

    def chance(sequence: tuple[int, ...]) -> float:
        total, before = 0.0, BEGIN
        for place, token in enumerate(sequence):
            total += float(table[place][before].log_softmax(0)[token])
            if token == END:
                return total
            before = token
        return total

    def cut(sequence: tuple[int, ...]) -> list[int]:
        stop = sequence.index(END) + 1 if END in sequence else steps
        return [*sequence[:stop], *[PADDING] * (steps - stop)]

    best = max(itertools.product(range(1, vocabulary), repeat=steps), key=chance)
    assert run(4**steps) == cut(best)
    greedy, before = [], BEGIN
    for place in range(steps):
        logits = table[place][before].clone()
        logits[PADDING] = -torch.inf
        before = int(logits.argmax()) if before != END else PADDING
        greedy.append(before)
        if before == PADDING:
            before = END
    assert run(1) == greedy
    assert run(1) != run(4**steps), "or this test shows nothing"


def test_a_length_penalty_is_gnmts() -> None:
    """A beam that keeps everything finds what has the best score of all sequences, by equation 14."""
    steps, vocabulary = 3, 4
    lengths: dict[float, int] = {}
    for penalty, seed in itertools.product([0.0, 0.6, 1.0, 3.0], range(12)):
        torch.manual_seed(seed)
        table = torch.randn(steps, vocabulary, vocabulary)
        table[:, :, END] += 1.0  # or all are as long as they can be

        def score(sequence: tuple[int, ...], table: Tensor = table, penalty: float = penalty) -> float:
            stop = sequence.index(END) + 1 if END in sequence else steps
            before = (BEGIN, *sequence)
            told = [float(table[k][before[k]].log_softmax(0)[sequence[k]]) for k in range(stop)]
            return sum(told) / ((5 + stop) ** penalty / 6**penalty)

        place = iter(range(steps))
        begin = torch.full((2,), BEGIN)
        beam = search(lambda t, _, p=place, w=table: w[next(p)][t[:, 0]], begin, END, steps, 4**steps, penalty)
        best = max(itertools.product(range(1, vocabulary), repeat=steps), key=score)
        stop = best.index(END) + 1 if END in best else steps
        assert beam[0].tolist() == beam[1].tolist() == [*best[:stop], *[PADDING] * (steps - stop)]
        lengths[penalty] = lengths.get(penalty, 0) + stop
    totals = [*lengths.values()]
    assert totals == sorted(totals)
    assert totals[-1] > totals[0], "longer ones win"


def test_the_loss_counts_no_padding() -> None:
    logits, target = torch.randn(3, 4, 20), some_tokens(3, 4, padded=1)
    expected = nn.functional.cross_entropy(logits[target != 0], target[target != 0], reduction="sum")
    torch.testing.assert_close(nats(logits, target).sum(), expected)
    assert torch.equal(nats(logits, target) == 0, target == 0)

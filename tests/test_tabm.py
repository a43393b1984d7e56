"""TabM against its formulas and the authors' package, and what it is for: better than one perceptron."""

import math

import pytest
import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models.numbers import AffineEmbedding, PeriodicEmbedding, PiecewiseLinearEmbedding
from dltrain.models.tabm import TabM
from dltrain.regularizers import matrices

EMBEDDINGS = [None, "periodic", "piecewise_linear"]
SMALL = {"hidden": [16, 16, 12], "members": 5, "embedding_width": 4, "bins": 6, "dropout": 0.0}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def shaken(model: TabM) -> TabM:
    """The model with weights of which none is one or zero."""
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
@pytest.mark.parametrize("mini", [False, True])
def test_each_member_is_a_perceptron_of_its_own(mini: bool, embeddings: str | None) -> None:
    model = shaken(TabM((7,), (3,), nn.Tanh, mini=mini, embeddings=embeddings, **SMALL))
    x = torch.randn(9, 7)
    answers = []
    for member in range(5):
        h = x if model.embedding is None else model.embedding(x).flatten(1)
        for block in model.blocks:
            weight, bias = block.linear.weight, block.linear.bias
            if hasattr(block, "scale_in"):
                weight = weight * block.scale_in.weight.view(5, -1)[member]
            if hasattr(block, "scale_out"):
                weight = weight * block.scale_out.weight.view(5, -1)[member, :, None]
                bias = block.scale_out.bias.view(5, -1)[member]
            h = torch.tanh(h @ weight.T + bias)
        heads, biases = model.head.weight.view(5, 3, 12), model.head.bias.view(5, 3)
        answers.append(h @ heads[member].T + biases[member])
    expected = torch.stack(answers, 1)
    torch.testing.assert_close(model(x, each=True), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), expected.mean(1), rtol=1e-5, atol=1e-5)
    assert [hasattr(block, "scale_in") for block in model.blocks] == [True, not mini, not mini]


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
@pytest.mark.parametrize("mini", [False, True])
def test_copied_weights_equal_the_authors_package(mini: bool, embeddings: str | None) -> None:
    tabm = pytest.importorskip("tabm", reason="pip install tabm")
    numbers = pytest.importorskip("rtdl_num_embeddings")
    model = shaken(TabM((7,), (3,), mini=mini, embeddings=embeddings, **SMALL | {"hidden": [16, 16, 16]}))
    embedding = model.embedding
    theirs = None
    if isinstance(embedding, PeriodicEmbedding):
        theirs = numbers.PeriodicEmbeddings(7, 4, lite=False)
        pairs = [(theirs.periodic.weight, embedding.frequency), (theirs.linear.weight, embedding.weight)]
        copy([*pairs, (theirs.linear.bias, embedding.bias)])
    elif isinstance(embedding, PiecewiseLinearEmbedding):
        edges = torch.cat([embedding.left, (embedding.left + embedding.size)[-1:]])
        theirs = numbers.PiecewiseLinearEmbeddings([edges] * 7, 4, activation=False, version="B")
        pairs = [(theirs.linear0.weight, embedding.affine.weight), (theirs.linear0.bias, embedding.affine.bias)]
        copy([*pairs, (theirs.linear.weight, embedding.weight)])
    kind = "tabm-mini" if mini else "tabm"
    sizes = {"n_blocks": 3, "d_block": 16, "k": 5, "dropout": 0.0}
    reference = tabm.TabM.make(n_num_features=7, d_out=3, arch_type=kind, num_embeddings=theirs, **sizes)
    for ours, block in zip(model.blocks, reference.backbone.blocks, strict=True):
        copy([(block[0].weight, ours.linear.weight)])
        if mini:
            copy([(block[0].bias, ours.linear.bias)])
        else:
            copy([(block[0].r, ours.scale_in.weight), (block[0].s, ours.scale_out.weight)])
            copy([(block[0].bias, ours.scale_out.bias)])
    if mini:
        copy([(reference.backbone.affine.weight, model.blocks[0].scale_in.weight)])
    copy([(reference.output.weight, model.head.weight.view(5, 3, 16).transpose(1, 2))])
    copy([(reference.output.bias, model.head.bias)])
    x = torch.randn(9, 7)
    torch.testing.assert_close(model(x, each=True), reference(x), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())


def copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for theirs, ours in pairs:
        theirs.data.copy_(ours.reshape(theirs.shape))


def test_members_begin_as_the_paper_says() -> None:
    model = TabM((50,), (3,), hidden=[64, 64], members=16)
    first, second = model.blocks
    assert set(first.scale_in.weight.tolist()) == {-1.0, 1.0}
    for scale in (first.scale_out, second.scale_in, second.scale_out):
        assert set(scale.weight.tolist()) == {1.0}
    biases = first.scale_out.bias.view(16, 64)
    assert torch.equal(biases, biases[:1].expand(16, 64))
    assert biases.abs().max() <= 50**-0.5
    assert biases.std() > 0.1 * 50**-0.5
    heads = model.head.weight.view(16, 3, 64)
    assert heads.std(0).min() > 0


def test_an_embedded_number_has_one_first_scale() -> None:
    model = TabM((5,), (1,), embeddings="periodic", embedding_width=4, members=3)
    scales = model.blocks[0].scale_in.weight.view(3, 5, 4)
    assert torch.equal(scales, scales[..., :1].expand(3, 5, 4))
    assert len(scales[..., 0].unique()) == 15


def test_only_shared_weights_heads_and_embeddings_are_matrices() -> None:
    model = TabM((7,), (3,), embeddings="periodic", **SMALL)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {named[id(matrix)].split(".")[-2] for matrix in matrices(model)} == {"embedding", "linear", "head"}


@pytest.mark.parametrize("shape_in", [(7,), (2, 6), (1, 3, 4)])
@pytest.mark.parametrize("embeddings", EMBEDDINGS)
@pytest.mark.parametrize("mini", [False, True])
def test_every_parameter_gets_a_gradient(shape_in: tuple[int, ...], embeddings: str | None, mini: bool) -> None:
    model = TabM(shape_in, (2, 3), nn.SiLU, embeddings=embeddings, mini=mini, **SMALL)
    output = model(torch.randn(32, *shape_in))
    assert output.shape == (32, 2, 3)
    (output * torch.randn(output.shape)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
def test_rows_do_not_touch(embeddings: str | None) -> None:
    model = TabM((7,), (3,), embeddings=embeddings, **SMALL)
    x = torch.randn(6, 7)
    torch.testing.assert_close(model(x)[2:4], model(x[2:4]), rtol=1e-5, atol=1e-6)


# Embeddings of numbers.


def test_periodic_is_its_formula() -> None:
    embedding = PeriodicEmbedding(3, 4, nn.ReLU, scale=0.5, frequencies=6)
    x = torch.randn(5, 3)
    for number in range(3):
        angles = 2 * math.pi * x[:, number, None] * embedding.frequency[number]
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
        expected = torch.relu(waves @ embedding.weight[number] + embedding.bias[number])
        torch.testing.assert_close(embedding(x)[:, number], expected)
    many = PeriodicEmbedding(40, 4, nn.ReLU, scale=0.5).frequency
    assert many.std().item() == pytest.approx(0.5, rel=0.1)
    assert many.abs().max() <= 1.5


def test_piecewise_linear_begins_affine_and_bends_at_the_quantiles() -> None:
    embedding = PiecewiseLinearEmbedding(2, 3, bins=4)
    x = torch.randn(200, 2)
    assert isinstance(embedding.affine, AffineEmbedding)
    assert torch.equal(embedding(x), embedding.affine(x))
    share = embedding.share(torch.tensor([[-9.0, -0.6745], [0.0, 0.3], [0.6745, 9.0]]))
    torch.testing.assert_close(share[1, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(share[0, 1], torch.tensor([1.0, 0.0, 0.0, 0.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(share[1, 1], torch.tensor([1.0, 1.0, 0.3 / 0.6745, 0.0]), rtol=0, atol=1e-4)
    assert share[0, 0, 0] < 0  # outer bins have no end
    assert share[2, 1, 3] > 1
    inside = embedding.share(torch.linspace(-4, 4, 801)[:, None].expand(801, 2))
    assert (inside.diff(dim=0) >= 0).all()


def test_embeddings_fit_what_turns_quickly() -> None:
    x = torch.randn(256, 1)
    target = torch.sign(torch.sin(6 * x))
    errors = {}
    for embeddings in EMBEDDINGS:
        model = TabM((1,), (1,), hidden=[32], members=4, embeddings=embeddings, frequency_scale=1.0, dropout=0.0)
        errors[embeddings] = learn(model, x, target)[-1]
    assert errors["periodic"] < 0.5 * errors[None]
    assert errors["piecewise_linear"] < 0.5 * errors[None]


def learn(model: TabM, x: Tensor, target: Tensor, each: bool = False) -> list[float]:
    """The loss at each of some steps of Adam on all rows: of the mean, or the mean over `each` member."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        output = model(x, each=each)
        loss = (output - (target.unsqueeze(1) if each else target)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("each", [False, True])
def test_a_tabm_learns(each: bool) -> None:
    x = torch.randn(128, 6)
    target = x[:, :1] * x[:, 1:2]
    losses = learn(TabM((6,), (1,), hidden=[32, 32], members=8), x, target, each)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"hidden": []},
            "model.hidden must be a list of whole numbers of at least 1, such as [64, 64], got []",
        ),
        ({"members": 0}, "model.members must be a whole number of at least 1, got 0"),
        ({"mini": "yes"}, "model.mini must be true or false, got yes"),
        ({"embeddings": "plr"}, "model.embeddings must be null, piecewise_linear or periodic, got plr"),
        ({"embedding_width": 0}, "model.embedding_width must be a whole number of at least 1, got 0"),
        ({"frequency_scale": 0}, "model.frequency_scale must be a number above 0, got 0"),
        ({"bins": 1}, "model.bins must be a whole number of at least 2, got 1"),
        ({"dropout": 1}, "model.dropout must be in [0, 1), got 1"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        TabM((4,), (1,), **settings)
    assert str(error.value) == sentence

"""TabM against its formulas and the authors' package, and what it is for: better than one perceptron."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from faults.forks import Server
from runs import launch, predict, working
from torch import Tensor, nn
from torch.nn import functional as F

from dltrain.errors import ConfigError
from dltrain.models.numbers import AffineEmbedding, PeriodicEmbedding, PiecewiseLinearEmbedding, quantile_edges
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
        edges = torch.cat([embedding.left, (embedding.left + embedding.size)[:, -1:]], 1)
        theirs = numbers.PiecewiseLinearEmbeddings([*edges], 4, activation=False, version="B")
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


def odd_rows() -> Tensor:
    """(500, 4): a normal, few values, one value but for a few rows, and one that is always the same."""
    normal = torch.randn(500)
    rare = torch.where(torch.arange(500) < 20, normal, 0.0)
    return torch.stack([normal, torch.arange(500) % 3 * 1.0, rare, torch.full((500,), 2.0)], 1)


def test_bins_are_cut_at_quantiles_of_the_rows() -> None:
    rows = odd_rows()
    edges = quantile_edges(rows, 8)
    assert edges.shape == (4, 9)
    for column, found in zip(rows.T.double().numpy(), edges.numpy(), strict=True):
        expected = np.unique(np.percentile(column, np.linspace(0, 100, 9)).astype(np.float32))
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-6)
        assert (found[len(expected) :] == expected[-1]).all()
    shares = PiecewiseLinearEmbedding(4, 3, 8, rows).share(rows)
    assert shares.isfinite().all()
    assert not shares[:, 3].any()  # nothing to tell by what is always the same
    passed = (shares[:, 0] >= 1).float().mean(0)[:-1]
    torch.testing.assert_close(passed, torch.arange(7, 0, -1) / 8, atol=0.005, rtol=0)  # each holds an eighth


def test_bins_and_shares_equal_the_authors_package() -> None:
    numbers = pytest.importorskip("rtdl_num_embeddings")
    rows = odd_rows()[:, :3]
    bins = numbers.compute_bins(rows, n_bins=8)
    embedding = PiecewiseLinearEmbedding(3, 4, 8, rows)
    there = embedding.size > 0
    for column, theirs in enumerate(bins):
        ours = torch.cat([embedding.left[column, there[column]], rows[:, column].max().view(1)])
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    new = 3 * torch.randn(100, 3)
    expected = numbers.PiecewiseLinearEncoding(bins)(new)
    torch.testing.assert_close(embedding.share(new)[:, there], expected, rtol=1e-3, atol=1e-3)


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


# Whole runs: each member learns by itself, bins come from the training rows, and both travel.

TABLE = ["data=csv", "data.path=rows.csv", "model=tabm", "model.hidden=[16]", "model.members=4", "model.dropout=0"]
STEPS = ["epochs=4", "batch_size=32", "trainer.save_every=1h"]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    with working(tmp_path) as folder:
        draw = np.random.default_rng(0)
        frame = pd.DataFrame({"a": np.exp(2 * draw.normal(size=300)), "b": draw.integers(0, 3, 300)})
        high = np.log(frame["a"]) + frame["b"] - 1 + 0.3 * draw.normal(size=300)
        frame["number"], frame["kind"] = high, np.array(["low", "middle", "high"])[np.digitize(high, [-1, 1])]
        frame["yes"] = np.where(high > 0, "yes", "no")
        frame["w"] = draw.integers(1, 4, 300)
        frame.to_csv("rows.csv", index=False)
        yield folder


OTHERS = {"number", "kind", "yes", "w"}


def words(target: str, *more: str) -> list[str]:
    ignored = ",".join(sorted(OTHERS - {target}))
    return [*TABLE, f"data.target={target}", f"data.ignore=[{ignored}]", *STEPS, *more]


@pytest.mark.parametrize("target", ["number", "kind", "yes"])
@pytest.mark.usefixtures("here")
def test_the_loss_is_the_mean_of_the_members_and_the_prediction_theirs(target: str) -> None:
    run = launch(*words(target))
    x, y = run.data.valid["features"], run.data.valid["target"]
    with torch.no_grad():
        each = run.network(x, each=True)
    losses = {"number": F.mse_loss, "kind": F.cross_entropy, "yes": F.binary_cross_entropy_with_logits}
    expected = torch.stack([losses[target](member, y) for member in each.unbind(1)]).mean()
    assert run.result["valid"]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    links = {"number": lambda o: o, "kind": lambda o: o.softmax(2), "yes": torch.sigmoid}
    found = run.model.outputs(x)
    torch.testing.assert_close(found, run.data.preparation.target.decode(links[target](each).mean(1)))
    loss_of_mean = losses[target](each.mean(1), y).item()
    assert loss_of_mean < expected.item() * 0.99  # the test can tell one from the other


@pytest.mark.usefixtures("here")
def test_each_member_learns_as_if_alone() -> None:
    """One step of gradient descent moves every member's head by its own error over the rows."""
    sgd = ["optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "optimizer.weight_decay=0", "epochs=1"]
    more = words("kind", *sgd, "batch_size=all", "loss.label_smoothing=0.1", "loss.class_weights=[1,2,3]")
    before = launch(*more, "optimizer.lr=1e-12").network
    run = launch(*more)
    x, y = run.data.train["features"], run.data.train["target"]
    total = torch.zeros(())
    for member in before(x, each=True).unbind(1):
        total = total + F.cross_entropy(member, y, torch.tensor([1.0, 2, 3]), label_smoothing=0.1)
    (total / 4).backward()
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(run.weights[name], parameter.detach() - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "more", [["regularizer=mixup"], ["data.weight=w"], ["loss=focal"], ["loss.label_smoothing=0.2"]]
)
@pytest.mark.usefixtures("here")
def test_members_go_with_soft_targets_weights_and_losses(more: list[str]) -> None:
    run = launch(*[word.replace("kind,number,w", "kind,number") for word in words("yes")], *more)
    curve = run.curve("valid/loss")
    assert curve[-1] < curve[0]


@pytest.mark.usefixtures("here")
def test_bins_are_those_of_training_rows_and_travel_with_the_model() -> None:
    run = launch(*words("number", "model.embeddings=piecewise_linear", "model.bins=6"))
    train = run.data.train["features"]
    left, size = run.weights["embedding.left"], run.weights["embedding.size"]
    for column, values in enumerate(train.T.double().numpy()):
        edges = np.unique(np.quantile(values, np.linspace(0, 1, 7)).astype(np.float32))
        real = size[column] > 0
        assert real.sum() == len(edges) - 1
        np.testing.assert_allclose(left[column, real], edges[:-1], rtol=1e-5)
        np.testing.assert_allclose((left + size)[column, real], edges[1:], rtol=1e-5)
    assert (size == 0).any()  # of the column with three values
    known = run.model.outputs(run.data.test["features"])
    again = predict(run, "rows.csv")["prediction"].to_numpy()[run.data.test["row"]]
    np.testing.assert_allclose(again, known[:, 0], rtol=1e-5)


@pytest.mark.parametrize(("trainer", "ranks"), [("ddp", 2), ("fsdp", 2)])
def test_members_and_bins_are_the_same_bits_on_every_trainer(
    trainer: str, ranks: int, here: Path, server: Server
) -> None:
    found = []
    for where, processes in (("single", 1), (trainer, ranks)):
        more = ["model.embeddings=piecewise_linear", "exact=true", "shards=2", "epochs=2", "ema=0.9"]
        more += [f"trainer={where}", "name=run", f"output_root={where}"]
        code, said = server.run(words("kind", *more), here, ranks=processes, seconds=300)
        assert code == 0, said
        result = json.loads((here / where / "run" / "result.json").read_text())
        found.append((result["weights_sha256"], result["valid"], result["test"]))
    assert found[0] == found[1]

"""Networks: shapes, gradients, every setting's effect, and sentences about settings that cannot be."""

from inspect import signature
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from dltrain.build import locate
from dltrain.errors import ConfigError
from dltrain.models.cnn import CNN, halvings
from dltrain.models.linear import Linear
from dltrain.models.mlp import MLP
from dltrain.models.resmlp import ResMLP

CONFIGS = Path(__file__).parent.parent / "configs"
ACTIVATIONS = sorted(path.stem for path in (CONFIGS / "activation").glob("*.yaml"))
FAMILIES = [Linear, MLP, ResMLP, CNN]
SIZES = "a list of whole numbers of at least 1, such as [64, 64]"
STAGES = "auto, a whole number of at least 1, or a list of 4 of them (one for each stage)"
INITS = "default, kaiming, xavier, lecun, orthogonal, normal"
SORTED = "(default, kaiming, lecun, normal, orthogonal, xavier)"
SHAPES = [(7,), (3, 20), (1, 8, 8), (1,), (1, 1, 1), (2, 1, 9)]
MAPS = {"decoder": (2, 8, 8), "unet": (2, 8, 8)}  # families that make a signal or an image, and what they make here


def shipped(group, name):
    """The class that a shipped YAML names, and its settings."""
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
    return locate(node.pop("_target_"), group, group), node


# networks of tokens, and those made by another package, have tests of their own
MODELS = [
    name
    for name in sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
    if getattr(shipped("model", name)[0], "reads", "features") == "features"
    and not hasattr(shipped("model", name)[0], "needs")
]


def having(setting):
    """The networks with a setting, or a part, of that name."""
    return [name for name in MODELS if setting in signature(shipped("model", name)[0]).parameters]


def network(name, shape_in=(1, 8, 8), shape_out=None, **settings):
    kind, defaults = shipped("model", name)
    torch.manual_seed(0)
    return kind(shape_in, shape_out or MAPS.get(name, (3,)), **(defaults | settings))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in MAPS])
@pytest.mark.parametrize("shape_in", SHAPES)
@pytest.mark.parametrize("shape_out", [(1,), (10,), (2, 3)])
def test_a_network_maps_shapes_and_moves_every_parameter(name, shape_in, shape_out):
    model = network(name, shape_in, shape_out)
    output = model(torch.randn(5, *shape_in))
    assert output.shape == (5, *shape_out)
    (output * torch.randn(output.shape)).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    # a row of one place has batch statistics over few values, whose gradient may vanish; elsewhere nothing may be idle
    if shape_in == (1, 8, 8):
        assert [key for key, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_network_and_a_yaml_says_every_default(name):
    kind, settings = shipped("model", name)
    one, two = network(name), network(name)
    torch.manual_seed(0)
    bare = kind((1, 8, 8), MAPS.get(name, (3,)))
    torch.manual_seed(1)
    other = kind((1, 8, 8), MAPS.get(name, (3,)), **settings)
    assert str(one) == str(bare)  # layers and rates, dropout's too
    one, two, bare, other = (model.eval() for model in (one, two, bare, other))
    x = torch.randn(6, 1, 8, 8)
    assert torch.equal(one(x), two(x))
    assert torch.equal(one(x), bare(x))
    assert not torch.equal(one(x), other(x))


@pytest.mark.parametrize("name", having("activation"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_stands_in_every_network(name, activation):
    kind, settings = shipped("activation", activation)
    model = network(name, activation=lambda: kind(**settings))
    assert sum(isinstance(module, kind) for module in model.modules()) >= 2
    assert model(torch.randn(4, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_yaml_says_torchs_defaults(activation):
    kind, settings = shipped("activation", activation)
    x = torch.linspace(-3, 3, 31)
    assert kind.__module__.startswith("torch.nn.")
    assert torch.equal(kind(**settings)(x), kind()(x))


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_deterministic_and_rows_do_not_touch(name):
    model = network(name).eval()
    x = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(model(x)[2:4], model(x[2:4]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", having("dropout"))
def test_dropout_acts_in_training_only(name):
    model = network(name, dropout=0.5, **({"norm": None} if name in having("norm") else {}))
    x = torch.randn(6, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", having("norm"))
@pytest.mark.parametrize(
    ("norm", "kinds"), [(None, ()), ("batch", nn.modules.batchnorm._BatchNorm), ("layer", (nn.LayerNorm, nn.GroupNorm))]
)
def test_norm_chooses_the_normalisation(name, norm, kinds):
    found = [m for m in network(name, norm=norm).modules() if "Norm" in type(m).__name__]
    assert bool(found) == (norm is not None)
    assert all(isinstance(module, kinds) for module in found)


def test_linear_is_one_affine_map():
    model = Linear((2, 3), (4,))
    x = torch.randn(5, 2, 3)
    weight, bias = model.parameters()
    torch.testing.assert_close(model(x), x.reshape(5, 6) @ weight.T + bias)
    assert len(list(Linear((2, 3), (4,), bias=False).parameters())) == 1


def test_mlp_equals_a_sequential_written_by_hand():
    model = MLP((2, 4), (3,), nn.Tanh, [16, 5])
    by_hand = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3))
    for mine, theirs in zip(by_hand.parameters(), model.parameters(), strict=True):
        mine.data.copy_(theirs)
    x = torch.randn(9, 2, 4)
    assert torch.equal(model(x), by_hand(x.flatten(1)))


def test_mlp_without_hidden_layers_is_linear():
    model = MLP((4,), (3,), hidden=[])
    x = torch.randn(9, 4)
    assert torch.equal(model(x), model.head(x))


def test_resmlp_with_zero_blocks_is_its_stem_and_head():
    model = ResMLP((6,), (2,), nn.GELU, width=12, depth=3)
    for parameter in model.blocks.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(9, 6)
    stem = nn.functional.linear(x, model.stem.weight, model.stem.bias)
    assert torch.equal(model(x), model.head(nn.functional.gelu(nn.functional.layer_norm(stem, (12,)))))
    assert len(ResMLP((6,), (2,), depth=0).blocks) == 0


def test_resmlp_is_deep_without_losing_its_gradient():
    model = ResMLP((6,), (1,), width=32, depth=40)
    model(torch.randn(16, 6)).sum().backward()
    first, last = (block.body.out.weight.grad.norm() for block in (model.blocks[0], model.blocks[-1]))
    assert 0.02 < first / last < 50


def test_cnn_on_small_images_is_the_plain_network():
    convs = [m for m in CNN((1, 8, 8), (10,)).modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.dilation[0]) for c in convs] == [
        (1, 32, 3, 1, 1),
        (32, 64, 3, 1, 1),
        (64, 64, 3, 2, 1),
        (64, 128, 3, 1, 1),
    ]
    assert all(c.bias is None for c in convs)


@pytest.mark.parametrize(
    ("side", "stages", "expected"),
    [
        (1, 4, [1, 1, 1, 1]),
        (7, 4, [1, 1, 1, 1]),
        (8, 4, [1, 1, 2, 1]),
        (28, 4, [1, 2, 1, 2]),
        (32, 4, [1, 2, 2, 2]),
        (9999, 4, [1, 2, 2, 2]),
        (9999, 1, [1]),
        (64, 2, [1, 2]),
    ],
)
def test_strides_leave_four_places(side, stages, expected):
    assert halvings(side, stages) == expected


@pytest.mark.parametrize("shape_in", [(1, 64), (3, 5), (2, 1)])
def test_dilations_fit_the_signal_and_reach_across_it(shape_in):
    model = CNN(shape_in, (2,))
    x = torch.randn(1, *shape_in, requires_grad=True)
    model.eval()
    maps = model.stages(x)
    maps[..., maps.shape[-1] // 2].sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert seen.max() - seen.min() + 1 >= 0.8 * shape_in[1]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape_in", [(1, 5), (2, 40), (3, 8, 8), (9,)])
@pytest.mark.parametrize(
    "settings",
    [{"stride": 2}, {"dilation": 2}, {"stride": [2, 1, 2], "dilation": [1, 2, 1]}, {"kernel": 7}, {"kernel": 1}],
)
def test_cnn_keeps_ceil_of_size_over_stride(residual, shape_in, settings):
    model = CNN(shape_in, (2,), channels=[4, 8, 8], residual=residual, **settings)
    maps = model.stages(torch.randn(3, *model.shape_in))
    strides = settings.get("stride", 1)
    if isinstance(strides, int):
        strides = [strides] * 3
    if "stride" in settings:
        for side, left in zip(model.shape_in[1:], maps.shape[2:], strict=True):
            for stride in strides:
                side = -(-side // stride)
            assert left == side
    assert model(torch.randn(3, *shape_in)).shape == (3, 2)


def test_cnn_residual_adds_its_input():
    stage = CNN((4, 6), (1,), channels=[4], residual=True, norm=None).stages[0]
    x = torch.rand(2, 4, 6)
    assert torch.equal(stage(x), torch.relu(x + stage.second(stage.first(x))))
    for parameter in stage.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(stage(x), x)


def test_cnn_forgets_where_a_pattern_stood():
    model = CNN((1, 40), (3,), stride=1, dilation=1, norm=None).eval()
    x = torch.zeros(2, 1, 40)
    x[0, 0, 15:18] = x[1, 0, 22:25] = torch.tensor([1.0, -2.0, 1.0])
    one, two = model(x)
    torch.testing.assert_close(one, two)


def test_cnn_learns_a_pattern_that_no_linear_map_sees():
    torch.manual_seed(0)
    x, y = 0.1 * torch.randn(256, 1, 24), torch.arange(256) % 2
    for row, place in enumerate(torch.randint(0, 20, (256,))):
        x[row, 0, place : place + 3] += torch.tensor([1.0, -1.0, 1.0]) * (1 - 2 * y[row])
    model = CNN((1, 24), (2,), channels=[8, 8])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.97


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("init", ["kaiming", "xavier", "lecun", "orthogonal", "normal"])
def test_init_draws_weights_with_the_variance_it_promises(kind, init):
    torch.manual_seed(0)
    model = kind((1, 12, 12), (40,), init=init)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        n_out, n_in = layer.weight.flatten(1).shape
        field = layer.weight[0, 0].numel() if layer.weight.ndim == 4 else 1
        expected = {
            "kaiming": 2 / n_in,
            "lecun": 1 / n_in,
            "xavier": 2 / (n_in + n_out * field),
            "orthogonal": 1 / max(n_in, n_out),
            "normal": 0.02**2,
        }[init]
        assert layer.weight.square().mean().item() == pytest.approx(expected, rel=0.25)
        assert layer.bias is None or not layer.bias.any()


def test_init_default_is_torchs_draw():
    torch.manual_seed(3)
    expected = nn.Linear(4, 3)
    torch.manual_seed(3)
    assert torch.equal(Linear((4,), (3,)).head.weight, expected.weight)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (MLP, {"hidden": 256}, f"model.hidden must be {SIZES}, got 256"),
        (MLP, {"hidden": [256, 0]}, f"model.hidden must be {SIZES}, got [256, 0]"),
        (MLP, {"hidden": [True]}, f"model.hidden must be {SIZES}, got [true]"),
        (MLP, {"dropout": 2}, "model.dropout must be in [0, 1), got 2"),
        (MLP, {"dropout": 1.0}, "model.dropout must be in [0, 1), got 1.0"),
        (MLP, {"dropout": None}, "model.dropout must be in [0, 1), got null"),
        (MLP, {"norm": "group"}, "model.norm must be null, batch or layer, got group"),
        (MLP, {"init": "xaver"}, f"model.init must be one of {INITS}, got xaver; did you mean xavier? {SORTED}"),
        (Linear, {"bias": 1}, "model.bias must be true or false, got 1"),
        (ResMLP, {"width": 0}, "model.width must be a whole number of at least 1, got 0"),
        (ResMLP, {"depth": -1}, "model.depth must be a whole number of at least 0, got -1"),
        (ResMLP, {"norm": True}, "model.norm must be null, batch or layer, got true"),
        (CNN, {"kernel": 4}, "model.kernel must be an odd whole number of at least 1, got 4"),
        (CNN, {"kernel": [3]}, "model.kernel must be an odd whole number of at least 1, got [3]"),
        (CNN, {"channels": []}, f"model.channels must be {SIZES}, got []"),
        (CNN, {"stride": 0}, f"model.stride must be {STAGES}, got 0"),
        (CNN, {"stride": [1, 2]}, f"model.stride must be {STAGES}, got [1, 2]"),
        (CNN, {"dilation": "all"}, f"model.dilation must be {STAGES}, got all"),
        (CNN, {"residual": "yes"}, "model.residual must be true or false, got yes"),
        (CNN, {"dropout": -0.1}, "model.dropout must be in [0, 1), got -0.1"),
        (CNN, {"norm": "none"}, "model.norm must be null, batch or layer, got none"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(kind, settings, sentence):
    with pytest.raises(ConfigError) as error:
        kind((1, 8, 8), (3,), **settings)
    assert str(error.value) == sentence


@pytest.mark.parametrize("shape_in", [(), (1, 2, 3, 4)])
def test_cnn_says_which_rows_it_reads(shape_in):
    with pytest.raises(ConfigError) as error:
        CNN(shape_in, (2,))
    assert str(error.value) == (
        "model=cnn must read rows of shape (n,), (channels, length) or (channels, height, width), "
        f"got {shape_in}; set data.shape or use model=mlp"
    )

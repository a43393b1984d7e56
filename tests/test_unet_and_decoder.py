"""unet and decoder: every size comes out as it shall, time and classes are told, and both learn."""

import pytest
import torch
from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.models.decoder import Decoder
from dltrain.models.unet import UNet, group_norm

SMALL = {"channels": [4, 8, 8]}
SPACES = [(8, 8), (7, 7), (5, 9), (1, 1), (2, 3), (16,), (7,), (1,), (13,)]
ODD = "model.kernel must be an odd whole number of at least 1, got 2"
SIZES = "model.channels must be a list of whole numbers of at least 1, such as [64, 64]"
SPACE = "model=unet must make (channels, length) or (channels, height, width) of the size that it reads, got"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def idle(model: nn.Module, output: Tensor) -> list[str]:
    """The parameters that no gradient reaches."""
    (output * torch.randn(output.shape)).sum().backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


# U-Net.


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("channels", [[8], [4, 8], [4, 8, 8, 12]])
def test_a_unet_keeps_every_size(space: tuple[int, ...], channels: list[int]) -> None:
    model = UNet((2, *space), (3, *space), channels=channels)
    output = model(torch.randn(4, 2, *space))
    assert output.shape == (4, 3, *space)
    assert output.std() > 0.01
    assert [p for p in model.parameters() if not p.isfinite().all()] == []
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_table_row_is_a_signal_of_one_channel() -> None:
    torch.manual_seed(1)
    table = UNet((9,), (9,), **SMALL)
    torch.manual_seed(1)
    signal = UNet((1, 9), (1, 9), **SMALL)
    x = torch.randn(4, 9)
    assert torch.equal(table(x), signal(x[:, None])[:, 0])


@pytest.mark.parametrize("shape", [(9,), (2, 12), (1, 8, 8)])
@pytest.mark.parametrize(("time", "conditions"), [(False, 0), (True, 0), (False, 3), (True, 3)])
def test_every_parameter_of_a_unet_gets_a_gradient(shape: tuple[int, ...], time: bool, conditions: int) -> None:
    model = UNet(shape, shape, nn.SiLU, time=time, conditions=conditions, **SMALL)
    told = {"time": torch.arange(6)} if time else {}
    told |= {"condition": torch.arange(6) % 4} if conditions else {}
    output = model(torch.randn(6, *shape), **told)
    assert output.shape == (6, *shape)
    assert idle(model, output) == []


def test_a_unet_that_is_told_nothing_has_nothing_to_hear_with() -> None:
    names = [name for name, _ in UNet((1, 8, 8), (1, 8, 8)).named_parameters()]
    assert not [name for name in names if "context" in name or "told" in name]


def test_time_and_class_change_what_a_unet_says() -> None:
    model = UNet((1, 8), (1, 8), nn.SiLU, time=True, conditions=3, **SMALL).eval()
    x = torch.randn(1, 1, 8).expand(5, 1, 8)
    times = model(x, torch.tensor([0, 1, 2, 500, 999]))
    classes = model(x, torch.full((5,), 7), torch.tensor([0, 1, 2, 3, 0]))
    for one in range(5):
        for other in range(one):
            assert not torch.allclose(times[one], times[other], atol=1e-5)
            assert torch.allclose(classes[one], classes[other], atol=1e-5) == ((one, other) == (4, 0))
    torch.testing.assert_close(model(x, torch.full((5,), 7.0))[3], classes[3])  # no class is the one after the last


def test_rows_of_a_unet_do_not_touch() -> None:
    model = UNet((2, 7, 7), (1, 7, 7), time=True, **SMALL)
    x, time = torch.randn(6, 2, 7, 7), torch.rand(6) * 100
    torch.testing.assert_close(model(x, time)[2:4], model(x[2:4], time[2:4]), rtol=1e-5, atol=1e-6)


def test_the_finest_map_is_handed_across() -> None:
    model = UNet((1, 16), (1, 16), channels=[8, 8, 8]).eval()
    x = torch.randn(1, 1, 16)
    nn.init.zeros_(model.middle.second.conv.weight)
    for block in model.up:  # what comes from below is cut off
        block.first.conv.weight.data[:, :8] = 0
        block.shortcut.weight.data[:, :8] = 0
    seen = model(x)
    for parameter in model.smaller.parameters():
        nn.init.zeros_(parameter)
    assert not torch.allclose(seen, model(2 * x), atol=1e-3)


def test_a_unet_learns_to_take_noise_away() -> None:
    clean = torch.sin(torch.arange(16) * 0.8 + torch.rand(128, 1, 1) * 6)
    x = clean + 0.5 * torch.randn(clean.shape)
    model = UNet((1, 16), (1, 16), nn.SiLU, **SMALL)
    losses = learn(model, x, clean)
    assert losses[-1] < 0.1 < 0.25 < losses[0]  # 0.25 is the noise itself


def test_a_unet_learns_what_a_class_says() -> None:
    labels = torch.arange(64) % 3
    target = labels.view(-1, 1, 1) - torch.ones(64, 1, 8)
    model = UNet((1, 8), (1, 8), nn.SiLU, conditions=3, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(torch.randn(64, 1, 8), condition=labels) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def learn(model: nn.Module, x: Tensor, target: Tensor, steps: int = 60) -> list[float]:
    """The loss at each of some steps of Adam on all rows."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 12, 32, 64])
def test_no_group_of_a_norm_is_a_single_channel_of_several(channels: int) -> None:
    norm = group_norm(channels)
    assert norm.num_groups <= 8
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4


# Decoder.


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("channels", [[8], [8, 4], [8, 6, 4, 4, 4]])
@pytest.mark.parametrize("shape_in", [(5,), (2, 3)])
def test_a_decoder_makes_every_size(space: tuple[int, ...], channels: list[int], shape_in: tuple[int, ...]) -> None:
    model = Decoder(shape_in, (3, *space), channels=channels)
    assert model(torch.randn(4, *shape_in)).shape == (4, 3, *space)


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("shape_out", [(2, 12), (1, 8, 8), (3, 5, 7)])
def test_every_parameter_of_a_decoder_gets_a_gradient(norm: str | None, shape_out: tuple[int, ...]) -> None:
    model = Decoder((6,), shape_out, nn.SiLU, norm=norm)
    assert idle(model, model(torch.randn(8, 6))) == []


def test_a_decoder_doubles_its_sides() -> None:
    model = Decoder((6,), (1, 28, 20), channels=[8, 8, 8])
    assert model.stem(torch.randn(2, 6)).shape == (2, 8, 7, 5)
    assert [stage.larger.size for stage in model.stages] == [(14, 10), (28, 20)]


def test_rows_of_a_decoder_do_not_touch() -> None:
    model = Decoder((6,), (1, 9)).eval()
    x = torch.randn(6, 6)
    torch.testing.assert_close(model(x)[2:4], model(x[2:4]), rtol=1e-5, atol=1e-6)


def test_a_decoder_learns_to_draw() -> None:
    x = torch.rand(64, 2)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    pictures = torch.exp(-20 * ((rows - x[:, 0, None, None]) ** 2 + (columns - x[:, 1, None, None]) ** 2))[:, None]
    losses = learn(Decoder((2,), (1, 8, 8), channels=[16, 8], norm=None), x, pictures, 80)
    assert losses[-1] < 0.3 * pictures.var()


@pytest.mark.parametrize(
    ("kind", "shapes", "settings", "sentence"),
    [
        (UNet, ((2, 8), (2, 9)), {}, f"{SPACE} (2, 9) from (2, 8); use model=cnn or model=mlp"),
        (UNet, ((30,), (1,)), {}, f"{SPACE} (1,) from (30,); use model=cnn or model=mlp"),
        (UNet, ((1, 8, 8), (10,)), {}, f"{SPACE} (10,) from (1, 8, 8); use model=cnn or model=mlp"),
        (UNet, ((1, 2, 3, 4), (1, 2, 3, 4)), {}, f"{SPACE} (1, 2, 3, 4) from (1, 2, 3, 4); use model=cnn or model=mlp"),
        (UNet, ((9,), (9,)), {"kernel": 2}, ODD),
        (UNet, ((9,), (9,)), {"channels": []}, f"{SIZES}, got []"),
        (UNet, ((9,), (9,)), {"dropout": -1}, "model.dropout must be in [0, 1), got -1"),
        (Decoder, ((4,), (2, 8)), {"kernel": 2}, ODD),
        (Decoder, ((4,), (2, 8)), {"channels": 8}, f"{SIZES}, got 8"),
        (Decoder, ((4,), (2, 8)), {"norm": "group"}, "model.norm must be null, batch or layer, got group"),
        (
            Decoder,
            ((4,), (10,)),
            {},
            "model=decoder must make (channels, length) or (channels, height, width), got (10,); use model=mlp",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(kind: type[nn.Module], shapes: tuple, settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        kind(*shapes, **settings)
    assert str(error.value) == sentence

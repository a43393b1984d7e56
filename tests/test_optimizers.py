"""Optimizers: every shipped YAML steps as torch's own class does, and Muon as its two halves alone."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from dltrain.build import locate
from dltrain.models.cnn import CNN
from dltrain.models.linear import Linear
from dltrain.models.mlp import MLP
from dltrain.optimizers import Muon

FOLDER = Path(__file__).parent.parent / "configs" / "optimizer"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OWN_DEFAULTS = {"sgd": {"lr": 0.01, "momentum": 0.9}, "rmsprop": {"lr": 0.001}}  # elsewhere torch's are shipped


def shipped(name):
    """The class that a shipped YAML names, and its settings."""
    node = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    return locate(node.pop("_target_"), "optimizer", "optimizer"), node


def network(seed=0, kind=MLP, shape_in=(6,), **settings):
    torch.manual_seed(seed)
    small = {"MLP": {"hidden": [16, 12, 8]}, "CNN": {"dropout": 0.0}}
    return kind(shape_in, (3,), **(settings or small.get(kind.__name__, {})))


def step(model, optimizer, count=1, seed=0, shape_in=(6,)):
    """Steps on random rows, the same for the same seed; returns the losses."""
    draw = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(count):
        x, y = torch.randn(32, *shape_in, generator=draw), torch.randint(0, 3, (32,), generator=draw)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "muon"])
def test_a_yaml_steps_as_torchs_own_class(name):
    kind, settings = shipped(name)
    assert kind.__module__.startswith("torch.optim")
    one, two = network(), network()
    start = [p.detach().clone() for p in one.parameters()]
    step(one, kind(one.named_parameters(), **settings), 5)
    step(two, getattr(torch.optim, kind.__name__)(two.parameters(), **OWN_DEFAULTS.get(name, {})), 5)
    for mine, theirs, before in zip(one.parameters(), two.parameters(), start, strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, before)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_optimizer_learns_with_its_defaults(name):
    kind, settings = shipped(name)
    model = network()
    optimizer = kind(model.named_parameters(), **settings)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    seen = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.97 * seen[0]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_state_saved_in_the_middle_continues_exactly(name):
    kind, settings = shipped(name)
    whole, first, second = network(), network(), network(seed=9)
    running = kind(whole.named_parameters(), **settings)
    step(whole, running, 3)
    step(whole, running, 4, seed=1)

    saved = kind(first.named_parameters(), **settings)
    step(first, saved, 3)
    loaded = kind(second.named_parameters(), **settings)
    second.load_state_dict(first.state_dict())
    loaded.load_state_dict(saved.state_dict())
    step(second, loaded, 4, seed=1)
    for expected, found in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, found)
    # a checkpoint finds the name of a state by its number
    names = [name for group in loaded.state_dict()["param_groups"] for name in group["param_names"]]
    assert names == [name for name, _ in second.named_parameters()]


def halves(model):
    """Names of the parameters that Muon treats as hidden, and the rest."""
    groups = Muon(model.named_parameters()).param_groups
    return [
        {name for group in groups if group["hidden"] is hidden for name in group["param_names"]}
        for hidden in (True, False)
    ]


@pytest.mark.parametrize(("kind", "shape_in"), [(MLP, (6,)), (CNN, (1, 8, 8))])
def test_muon_is_torchs_muon_on_hidden_matrices_and_adamw_elsewhere(kind, shape_in):
    _, settings = shipped("muon")
    ours, theirs = network(kind=kind, shape_in=shape_in), network(kind=kind, shape_in=shape_in)
    hidden, rest = halves(ours)
    step(ours, Muon(ours.named_parameters(), **settings), 5, shape_in=shape_in)

    parameters = dict(theirs.named_parameters())
    flat = {name: nn.Parameter(parameters[name].detach().flatten(1)) for name in hidden}
    common = {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
    muon = torch.optim.Muon(list(flat.values()), **common, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([parameters[name] for name in rest], **common)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        x, y = torch.randn(32, *shape_in, generator=draw), torch.randint(0, 3, (32,), generator=draw)
        theirs.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        for name, matrix in flat.items():
            matrix.grad = parameters[name].grad.flatten(1)
        muon.step()
        adamw.step()
        for name, matrix in flat.items():
            parameters[name].data.copy_(matrix.detach().view_as(parameters[name]))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, parameters[name]), name


def test_muon_leaves_first_and_last_matrix_biases_norms_and_embeddings_to_adamw():
    hidden, rest = halves(network(hidden=[16, 12, 8], norm="layer"))
    assert hidden == {"blocks.1.linear.weight", "blocks.2.linear.weight"}
    assert {"blocks.0.linear.weight", "head.weight", "blocks.1.linear.bias", "blocks.1.norm.weight"} <= rest
    tokens = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "embedding": nn.Embedding(5, 4), "mix": nn.Linear(4, 4), "out": nn.Linear(4, 2)}
    )
    assert halves(tokens)[0] == {"mix.weight"}
    hidden, _ = halves(network(kind=CNN, shape_in=(1, 8, 8)))
    assert hidden == {f"stages.{i}.conv.weight" for i in (1, 2, 3)}
    assert halves(network(kind=Linear))[0] == set()


def test_muon_keeps_its_state_in_the_shapes_of_the_parameters():
    model = network(kind=CNN, shape_in=(1, 8, 8))
    optimizer = Muon(model.named_parameters())
    step(model, optimizer, 1, shape_in=(1, 8, 8))
    assert set(optimizer.state) == set(model.parameters())
    for parameter, state in optimizer.state.items():
        assert {tuple(v.shape) for key, v in state.items() if key != "step"} == {tuple(parameter.shape)}


def test_muon_follows_a_scheduler_and_takes_parameters_without_names():
    model = network()
    optimizer = Muon(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    step(model, optimizer)
    scheduler.step()
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_muon_skips_parameters_without_gradient_and_runs_a_closure():
    model = network()
    optimizer = Muon(model.named_parameters())
    start = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))

    def closure():
        loss = model(torch.ones(4, 6)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert not any(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"momentum": -0.1}, {"betas": [1.5, 0.9]}, {"adjust_lr_fn": "other"}]
)
def test_muon_refuses_what_torch_refuses(settings):
    with pytest.raises(ValueError, match=r"(?i)learning rate|momentum|beta"):
        Muon(network().named_parameters(), **settings)

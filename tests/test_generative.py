"""vae, gan and diffusion against the formulas of their papers, written here once more."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from runs import launch, working
from test_train import built
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from dltrain.course import alone
from dltrain.data.target import Target
from dltrain.errors import ConfigError
from dltrain.models.mlp import MLP
from dltrain.models.unet import UNet
from dltrain.tasks.diffusion import SCHEDULES, Denoiser, Diffusion
from dltrain.tasks.gan import GAN, distance
from dltrain.tasks.vae import VAE
from dltrain.train import Training

NONE, CLASSES = Target("none", ()), Target("classes", ("kind",), ("a", "b", "c"), (1, 1, 1))
DIGITS = ["data=digits", "data.rows=200", "epochs=1", "trainer.threads=1", "model.hidden=[16]"]
STEPS = [2, 10, 100, 1000]


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[None]:
    with working(tmp_path):
        torch.manual_seed(0)
        yield


def network(shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> nn.Module:
    return MLP(shape_in, shape_out, nn.SiLU, hidden=[16])


def of(task: Callable, /, shape: tuple[int, ...] = (3,), target: Target = NONE, **settings: Any) -> Any:
    """A task on rows of a shape."""
    more = {VAE: {"decoder": network}, GAN: {"generator": network}}.get(task, {})
    return task(SimpleNamespace(shape_in=shape, target=target), **{"model": network} | more | settings)


def again(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """What torch draws after a seed, in this order."""
    torch.manual_seed(seed)
    return [torch.randn(shape) for shape in shapes]


def epoch(training: Training) -> None:
    alone(training.epoch())
    training.checkpoints.wait()


# Diffusion.


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_from_a_row_to_noise(name: str, steps: int) -> None:
    kept = SCHEDULES[name](steps)
    assert kept.shape == (steps,)
    assert kept.dtype == torch.float64
    assert kept.min() > 0
    assert kept.max() < 1
    assert kept.diff().max() < 0
    assert kept[-1] < 0.03
    assert steps < 100 or kept[0] > 0.99


def test_the_schedules_of_the_papers() -> None:
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(SCHEDULES["linear"](1000), torch.cumprod(1 - beta, 0))
    f = torch.tensor([math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]).double()
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    torch.testing.assert_close(SCHEDULES["cosine"](1000), torch.cumprod(1 - beta, 0), atol=1e-6, rtol=0)


def test_the_forward_process() -> None:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, equation 4 of DDPM; and so, one step after the other."""
    task = of(Diffusion, steps=20, sampling_steps=20)
    rows, noise, times = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 3, 7, 12, 19])
    abar = task.kept[times][:, None]
    torch.testing.assert_close(task.noised(rows, times, noise), abar.sqrt() * rows + (1 - abar).sqrt() * noise)
    mean, variance = torch.ones(()), torch.zeros(())
    for alpha in torch.cat([task.kept[:1], task.kept[1:] / task.kept[:-1]]):
        mean, variance = alpha.sqrt() * mean, alpha * variance + 1 - alpha
    torch.testing.assert_close(mean, task.kept[-1].sqrt(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(variance, 1 - task.kept[-1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("time", [1, 10, 90])
def test_a_step_with_eta_1_draws_from_the_posterior_of_ddpm(schedule: str, time: int) -> None:
    """Equations 6 and 7 of DDPM: q(x_{t-1} | x_t, x_0), where x_0 is what the noise that is told leaves."""
    task = of(Diffusion, steps=100, schedule=schedule, eta=1.0)
    abar, before = task.kept[time].double(), task.kept[time - 1].double()
    alpha, x, noise = abar / before, torch.randn(4, 3), torch.randn(4, 3)
    start = (x - (1 - abar).sqrt() * noise) / abar.sqrt()
    mean = before.sqrt() * (1 - alpha) / (1 - abar) * start + alpha.sqrt() * (1 - before) / (1 - abar) * x
    variance = (1 - before) / (1 - abar) * (1 - alpha)
    [drawn] = again(1, (4, 3))
    torch.manual_seed(1)
    found = task.step(x, noise, time, time - 1)
    torch.testing.assert_close(found, mean + variance.sqrt() * drawn, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_over_several_times(eta: float) -> None:
    """Equations 12 and 16 of DDIM."""
    task = of(Diffusion, steps=100, eta=eta)
    x, noise, a, b = torch.randn(4, 3), torch.randn(4, 3), task.kept[70], task.kept[30]
    sigma = eta * torch.sqrt((1 - b) / (1 - a)) * torch.sqrt(1 - a / b)
    [drawn] = again(2, (4, 3))
    expected = b.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b - sigma**2).sqrt() * noise + sigma * drawn
    torch.manual_seed(2)
    torch.testing.assert_close(task.step(x, noise, 70, 30), expected)
    torch.testing.assert_close(task.step(x, noise, 70, None), (x - (1 - a).sqrt() * noise) / a.sqrt())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_who_tells_the_noise_of_one_row_makes_that_row(eta: float) -> None:
    task, row = of(Diffusion, eta=eta), torch.tensor([1.0, -2.0, 0.5])

    class Knows(nn.Module):
        def forward(self, rows: Tensor, times: Tensor, condition: Tensor) -> Tensor:
            abar = task.kept[(times[0] * len(task.kept) / 1000).round().long()]
            return (rows - abar.sqrt() * row) / (1 - abar).sqrt()

    task.network = Knows()
    torch.testing.assert_close(task.sample(4), row.expand(4, 3), atol=1e-3, rtol=0)


def test_the_loss_of_diffusion() -> None:
    """The squared error of the noise, each class told or, as often as `drop` says, not."""
    task, rows = of(Diffusion, target=CLASSES, drop=0.5), torch.randn(6, 3)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(3)
    times, untold, noise = torch.randint(1000, (6,)), torch.rand(6) < 0.5, torch.randn(6, 3)
    assert 0 < untold.sum() < 6
    told = task.network(task.noised(rows, times, noise), times, torch.where(untold, 3, target))
    torch.manual_seed(3)
    [(name, total, count)] = task.losses({"features": rows, "target": target})
    assert (name, count) == ("network", 6)
    torch.testing.assert_close(total, 6 * F.mse_loss(told, noise))


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance(guidance: float) -> None:
    """eps = eps(none) + w (eps(class) - eps(none)), https://arxiv.org/abs/2207.12598 with w + 1 for its w."""
    task, rows, label = of(Diffusion, target=CLASSES, guidance=guidance), torch.randn(2, 3), torch.tensor([1, 1])
    times = torch.full_like(label, 400)
    told, free = task.network(rows, times, label), task.network(rows, times, torch.full_like(label, 3))
    torch.testing.assert_close(task._guided(rows, 400, label), free + guidance * (told - free))


def test_the_error_of_a_row_is_its_own() -> None:
    """Whatever stands beside it, and whatever was drawn before."""
    task, rows = of(Diffusion, (3,)), torch.randn(5, 3)
    whole = task.predictions({"features": rows})
    parts = [task.predictions({"features": piece}) for piece in rows.split(2)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_class_that_is_told_changes_samples() -> None:
    task, made = of(Diffusion, target=CLASSES, sampling_steps=3), {}
    for label in (None, 0, 2):
        torch.manual_seed(0)
        made[label] = task.sample(4, label=label)
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[None])


def test_a_network_made_for_times_is_told_them_itself() -> None:
    def unet(shape_in: tuple, shape_out: tuple, time: bool = False, conditions: int = 0) -> nn.Module:
        return UNet(shape_in, shape_out, channels=[4, 8], time=time, conditions=conditions)

    task = of(Diffusion, (1, 8, 8), CLASSES, model=unet, sampling_steps=2)
    assert type(task.network) is UNet
    assert task.network.context.time is not None
    assert task.network.context.embedding.num_embeddings == 4
    assert task.sample(2, label=1).shape == (2, 1, 8, 8)
    assert type(of(Diffusion, (1, 8, 8), CLASSES).network) is Denoiser
    small = "model.channels=[4,8]"
    assert type(built("data=digits", "model=unet", small, "task=diffusion").task.network) is UNet
    assert type(built("data=digits", "model=cnn", "task=diffusion").task.network) is Denoiser


@pytest.mark.parametrize("time", [0, 300, 999])
def test_the_velocity(time: int) -> None:
    """https://arxiv.org/abs/2202.00512, appendix D: v = a noise - s x, from which x = a z - s v, noise = s z + a v."""
    task, rows, noise = of(Diffusion, tells="velocity"), torch.randn(4, 3), torch.randn(4, 3)
    times, a, s = torch.full((4,), time), task.kept[time].sqrt(), (1 - task.kept[time]).sqrt()
    z, v = task.noised(rows, times, noise), task.velocity_of(rows, times, noise)
    torch.testing.assert_close(v, a * noise - s * rows)
    torch.testing.assert_close(a * z - s * v, rows)
    torch.testing.assert_close(task._noise(z, times, v), noise)

    class Knows(nn.Module):
        def forward(self, rows: Tensor, times: Tensor, condition: Tensor) -> Tensor:
            return v

    task.network = Knows()
    torch.testing.assert_close(task._guided(z, time, times), noise)
    torch.testing.assert_close(task.step(z, noise, time, None), a * z - s * v, atol=1e-2, rtol=0)


def test_the_loss_of_a_velocity() -> None:
    task, rows = of(Diffusion, tells="velocity"), torch.randn(6, 3)
    torch.manual_seed(3)
    times, _, noise = torch.randint(1000, (6,)), torch.rand(6), torch.randn(6, 3)
    angle = task.kept[times].sqrt().acos()[:, None]  # on the circle from a row to the noise
    told = task.network(angle.cos() * rows + angle.sin() * noise, times, torch.zeros(6, dtype=torch.long))
    torch.manual_seed(3)
    [(_, total, _)] = task.losses({"features": rows, "target": torch.zeros(6, 0)})
    torch.testing.assert_close(total, 6 * F.mse_loss(told, angle.cos() * noise - angle.sin() * rows), rtol=1e-4, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_who_tells_the_velocity_of_one_row_makes_that_row(eta: float) -> None:
    task, row = of(Diffusion, eta=eta, tells="velocity"), torch.tensor([1.0, -2.0, 0.5])

    class Knows(nn.Module):
        def forward(self, rows: Tensor, times: Tensor, condition: Tensor) -> Tensor:
            abar = task.kept[(times[0] * len(task.kept) / 1000).round().long()]
            return (abar.sqrt() * rows - row) / (1 - abar).sqrt()

    task.network = Knows()
    torch.testing.assert_close(task.sample(4), row.expand(4, 3), atol=1e-3, rtol=0)


SKEWED = Target("classes", ("kind",), ("a", "b", "c"), (10, 0, 30))


def test_samples_are_of_classes_as_frequent_as_among_training_rows() -> None:
    task, seen = of(Diffusion, target=SKEWED, sampling_steps=2), []

    class Looks(nn.Module):
        def forward(self, rows: Tensor, times: Tensor, condition: Tensor) -> Tensor:
            seen.append(condition)
            return rows

    task.network = Looks()
    task.sample(4000)
    task.sample(5, label=1)
    assert torch.equal(seen[0], seen[1])
    counts = seen[0].bincount(minlength=3)
    assert counts[1] == 0
    assert counts[2] / 4000 == pytest.approx(0.75, abs=0.03)
    assert seen[2].tolist() == [1] * 5


def test_what_a_network_tells_is_chosen_by_a_word() -> None:
    runs = [launch(*DIGITS, "task=diffusion", f"task.tells={word}") for word in ("noise", "velocity")]
    losses = [run.result["valid"]["loss"] for run in runs]
    assert losses[0] != losses[1]
    assert not torch.equal(*(torch.tensor(run.model.sample(2).to_numpy()) for run in runs))
    shipped = launch(*DIGITS, "task=diffusion")
    assert shipped.result["valid"]["loss"] == losses[1]


# The variational autoencoder.


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_bound_of_a_vae(beta: float) -> None:
    task, rows = of(VAE, (2, 3), code=4, beta=beta), torch.randn(5, 2, 3)
    with torch.no_grad():
        task.network.log_std.fill_(0.3)
    mean, log_variance = task.network.encoder(rows).unbind(1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    [drawn] = again(5, (5, 4))
    told = task.network.decoder(posterior.mean + posterior.stddev * drawn)
    likely = Normal(told, math.exp(0.3)).log_prob(rows).sum()
    apart = kl_divergence(posterior, Normal(torch.zeros(5, 4), torch.ones(5, 4))).sum()
    torch.manual_seed(5)
    [(name, total, count)] = task.losses({"features": rows})
    assert (name, count) == ("network", 5)
    torch.testing.assert_close(total, -likely + beta * apart)


def test_what_a_vae_predicts_is_not_drawn() -> None:
    task, rows = of(VAE, code=2), {"features": torch.randn(5, 3)}
    found = task.predictions(rows)
    assert torch.equal(found, task.predictions(rows))
    mean, _ = task.network.encoder(rows["features"]).unbind(1)
    torch.testing.assert_close(found[:, :2], mean)
    torch.testing.assert_close(found[:, 2], (task.network.decoder(mean) - rows["features"]).square().mean(1))
    assert list(task.columns(found.detach())) == ["code_1", "code_2", "error"]


# Two players.


def moves_of(task: GAN, rows: Tensor, seed: int = 7) -> list[tuple[str, Tensor, Any]]:
    torch.manual_seed(seed)
    return list(task.losses({"features": rows}))


@pytest.mark.parametrize("moves", [1, 3])
def test_the_losses_of_a_gan_are_cross_entropies(moves: int) -> None:
    task, rows = of(GAN, discriminator_steps=moves, noise=2), torch.randn(6, 3)
    drawn = again(7, *[(6, 2)] * (moves + 1))
    found = moves_of(task, rows)
    assert [name for name, _, _ in found] == ["discriminator"] * moves + ["generator"]
    ones, zeros = torch.ones(6, 1), torch.zeros(6, 1)
    cross = F.binary_cross_entropy_with_logits
    real = task.discriminator(rows)
    for (_, total, count), noise in zip(found, drawn, strict=True):
        fake, both = task.discriminator(task.generator(noise)), count == 6
        assert both
        expected = cross(real, ones) + cross(fake, zeros) if noise is not drawn[-1] else cross(fake, ones)
        torch.testing.assert_close(total, 6 * expected)


@pytest.mark.parametrize("target", [CLASSES, Target("binary", ("kind",), ("no", "yes"), (1, 1))])
def test_both_players_are_told_the_class(target: Target) -> None:
    """The generator as further numbers of what it reads, the discriminator by which of its outputs counts."""
    task, rows, n = of(GAN, target=target, noise=2), torch.randn(4, 3), len(target.classes)
    label = torch.tensor([1, 0, 1, n - 1])
    drawn = again(7, (4, 2), (4, 2))
    torch.manual_seed(7)
    read = label if n > 2 else label[:, None].float()
    [(_, judged, _), (_, fooled, _)] = task.losses({"features": rows, "target": read})
    fake, other = (task.generator(torch.cat([noise, F.one_hot(label, n)], 1)) for noise in drawn)
    real, made, then = (task.discriminator(x)[range(4), label] for x in (rows, fake, other))
    ones, cross = torch.ones(4), F.binary_cross_entropy_with_logits
    torch.testing.assert_close(judged, 4 * (cross(real, ones) + cross(made, 0 * ones)))
    torch.testing.assert_close(fooled, 4 * cross(then, ones))
    found = task.predictions({"features": rows})
    torch.testing.assert_close(found[:, 0], task.discriminator(rows).max(1).values.sigmoid())


def test_a_gan_makes_rows_of_a_class() -> None:
    task, seen = of(GAN, target=SKEWED, noise=2), []
    task.generator.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 2:].argmax(1)))
    task.sample(4000)
    assert task.sample(5, label=1).shape == (5, 3)
    assert (seen[0].bincount(minlength=3) / 4000).tolist() == pytest.approx([0.25, 0, 0.75], abs=0.03)
    assert seen[1].tolist() == [1] * 5


@pytest.mark.parametrize("kind", ["nonsaturating", "wasserstein"])
def test_a_gan_that_was_told_classes_is_asked_for_one(kind: str) -> None:
    run = launch(*DIGITS, "task=gan", f"task.kind={kind}")
    one, other = (run.model.sample(3, label=label).to_numpy() for label in (1, 7))
    assert one.shape == (3, 64)
    assert (one != other).any()
    test = run.data.test["features"]
    assert len(run.model.predict(run.data.preparation.restored(test))["realness"]) == len(test)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_the_losses_of_a_wasserstein_gan(shape: tuple[int, ...]) -> None:
    """The critic's gradient is pushed to norm 1 between pairs of rows, by autograd a row at a time."""
    task, rows = of(GAN, shape, kind="wasserstein", noise=2, penalty=3.0), torch.randn(6, *shape)
    torch.manual_seed(7)
    first, share, second = torch.randn(6, 2), torch.rand(6, *[1] * len(shape)), torch.randn(6, 2)
    fake, penalty = task.generator(first), torch.zeros(())
    for row, made, part in zip(rows, fake.detach(), share, strict=True):
        between = (part * row + (1 - part) * made).requires_grad_()
        task.discriminator(between[None]).sum().backward()
        penalty += 3 * (between.grad.norm() - 1) ** 2
    [(_, critic, _), (_, generator, _)] = moves_of(task, rows)
    gap = task.discriminator(fake).sum() - task.discriminator(rows).sum()
    torch.testing.assert_close(critic, gap + penalty)
    torch.testing.assert_close(generator, -task.discriminator(task.generator(second)).sum())
    task.eval()
    torch.testing.assert_close(moves_of(task, rows)[0][1], gap)


def test_the_penalty_has_a_gradient() -> None:
    task, rows = of(GAN, kind="wasserstein"), torch.randn(6, 3)
    task._steepness(rows, torch.randn(6, 3), torch.zeros(6, 0)).backward()
    assert all(p.grad.any() for name, p in task.discriminator.named_parameters() if name.endswith("weight"))


def test_the_discriminator_moves_as_often_as_it_is_told() -> None:
    training = built(*DIGITS, "task=gan", "task.discriminator_steps=3")
    counts = dict.fromkeys(training.players, 0)
    for name, player in training.players.items():

        def count(*_: Any, name: str = name) -> None:
            counts[name] += 1

        player.optimizer.register_step_post_hook(count)
    epoch(training)
    steps = len(training.bounds)
    assert counts == {"discriminator": 3 * steps, "generator": steps}


def test_a_player_has_settings_of_its_own() -> None:
    own = "task.players.{}.optimizer.{}={}".format
    words = [own("generator", "lr", 1e-12), own("discriminator", "weight_decay", 0.5), "optimizer.lr=0.02"]
    words += ["scheduler=step", "scheduler.step_size=1", "+task.players.discriminator.scheduler.gamma=0.5"]
    training = built(*DIGITS, "task=gan", *words)
    groups = {name: player.optimizer.param_groups[0] for name, player in training.players.items()}
    assert {name: group["lr"] for name, group in groups.items()} == {"generator": 1e-12, "discriminator": 0.02}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {"generator": 0.01, "discriminator": 0.5}
    before = {name: value.clone() for name, value in training.task.state_dict().items()}
    epoch(training)
    assert [groups[name]["lr"] for name in training.players] == [0.01, pytest.approx(1e-13)]
    for name, value in training.task.state_dict().items():
        assert (
            (value - before[name]).abs().max() < 1e-9 if name.startswith("generator.") else value.ne(before[name]).any()
        )


def test_a_setting_that_the_optimizer_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer\.momentum must be a setting of AdamW"):
        built(*DIGITS, "task=gan", "task.players.generator.optimizer.momentum=0.5")


def test_the_distance_of_samples() -> None:
    rows = torch.randn(500, 2)
    assert distance(rows.flip(0), rows) == 0
    assert distance(rows + torch.tensor([3.0, 4.0]), rows) == pytest.approx(5 / math.sqrt(2), rel=0.1)


# All of them.


@pytest.mark.parametrize("task", ["vae", "gan", "diffusion", "contrastive", "autoencoder"])
def test_every_evaluation_meets_the_same_noise(task: str) -> None:
    training = built(*DIGITS, f"task={task}")
    first = training.evaluate(training.valid_rows)
    torch.manual_seed(123)
    assert training.evaluate(training.valid_rows) == first


@pytest.mark.parametrize("task", ["vae", "gan", "diffusion"])
def test_every_parameter_gets_a_gradient(task: str) -> None:
    training = built(*DIGITS, f"task={task}")
    epoch(training)
    for player in training.players.values():
        assert [name for name, p in player.network.named_parameters() if p not in player.optimizer.state] == []


def test_the_bound_gets_better_on_rows_that_are_held_out() -> None:
    run = launch(*DIGITS, "task=vae", "epochs=5", "optimizer.lr=0.01")
    curve = run.curve("valid/loss")
    assert curve[-1] < curve[0]
    assert run.result["test"]["loss"] < curve[0]


REFUSED = [
    (VAE, {"code": 0}, "task.code must be a whole number of at least 1, got 0"),
    (VAE, {"beta": -1}, "task.beta must be at least 0, got -1"),
    (GAN, {"noise": 0.5}, "task.noise must be a whole number of at least 1, got 0.5"),
    (GAN, {"kind": "hinge"}, "task.kind must be nonsaturating or wasserstein, got hinge"),
    (GAN, {"discriminator_steps": 0}, "task.discriminator_steps must be a whole number of at least 1, got 0"),
    (GAN, {"penalty": -1}, "task.penalty must be at least 0, got -1"),
    (Diffusion, {"steps": 1}, "task.steps must be a whole number of at least 2, got 1"),
    (Diffusion, {"tells": "rows"}, "task.tells must be noise or velocity, got rows"),
    (Diffusion, {"schedule": "square"}, "task.schedule must be one of linear, cosine, sigmoid, got square"),
    (Diffusion, {"schedule": []}, "task.schedule must be one of linear, cosine, sigmoid, got []"),
    (Diffusion, {"drop": 1.5}, "task.drop must be from 0 to 1, got 1.5"),
    (Diffusion, {"guidance": "much"}, "task.guidance must be a number, got much"),
    (Diffusion, {"steps": 10}, "task.sampling_steps must be a whole number from 1 to 10, got 50"),
    (Diffusion, {"eta": 2}, "task.eta must be from 0 to 1, got 2"),
]


@pytest.mark.parametrize(("kind", "settings", "sentence"), REFUSED)
def test_a_setting_that_is_refused(kind: Callable, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of(kind, **settings)
    assert str(caught.value) == sentence


MIXTURE = ["data=csv", "data.path=mixture.csv", "data.target=null", "model.hidden=[128,128]", "batch_size=256"]
MIXTURE += ["trainer.threads=1", "trainer.save_every=1h", "ema=0.99"]
DENOISE = ["task=diffusion", "task.steps=200", "optimizer.lr=0.003", "scheduler=cosine", "epochs=120"]
PLAY = ["task=gan", "task.kind=wasserstein", "task.penalty=1", "task.discriminator_steps=3", "optimizer.lr=0.001"]
PLAY += ["optimizer.betas=[0.5,0.9]", "task.generator.hidden=[128,128]", "task.noise=4", "epochs=100"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [DENOISE, PLAY], ids=["diffusion", "gan"])
def test_a_mixture_of_eight(words: list[str]) -> None:
    """Of 1000 samples half lie within four deviations of a centre, and every centre has some of them."""
    torch.manual_seed(0)
    turn = torch.arange(8) * math.pi / 4
    centres = torch.stack([turn.cos(), turn.sin()], 1)
    rows = centres[torch.randint(8, (4000,))] + 0.05 * torch.randn(4000, 2)
    pd.DataFrame(rows.numpy(), columns=["x", "y"]).to_csv("mixture.csv", index=False)
    run = launch(*MIXTURE, *words, "evaluate_every=20")
    apart, nearest = torch.cdist(torch.tensor(run.model.sample(1000).to_numpy(), dtype=torch.float32), centres).min(1)
    counts = nearest[apart < 0.2].bincount(minlength=8)
    print(f"{counts.tolist()} of 1000 near the centres")
    assert counts.sum() > 500
    assert counts.min() > 20

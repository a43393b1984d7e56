"""How the weights of a network begin."""

from collections.abc import Callable

from torch import Tensor, nn

from dltrain.models.checks import one_of


def lecun(weight: Tensor) -> Tensor:
    """Normal with variance 1 / fan_in, what selu needs to keep its variance; https://arxiv.org/abs/1706.02515."""
    return nn.init.kaiming_normal_(weight, nonlinearity="linear")


def kaiming(weight: Tensor) -> Tensor:
    """Normal with variance 2 / fan_in, for relu and its relatives; https://arxiv.org/abs/1502.01852."""
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def normal(weight: Tensor) -> Tensor:
    """Normal with standard deviation 0.02, as GPT-2 begins."""
    return nn.init.normal_(weight, std=0.02)


INITS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "default": None,  # torch's own: uniform within 1 / sqrt(fan_in)
    "kaiming": kaiming,
    "xavier": nn.init.xavier_uniform_,
    "lecun": lecun,
    "orthogonal": nn.init.orthogonal_,
    "normal": normal,
}


def initialise(network: nn.Module, init: str) -> None:
    """Draw the weights of every affine map, convolution and gate anew, biases zero; `default` leaves torch's draw."""
    draw = INITS[one_of("init", init, INITS)]
    if draw is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.RNNBase):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 1:
                    nn.init.zeros_(parameter)
                    continue
                rows = module.hidden_size if isinstance(module, nn.RNNBase) else len(parameter)
                for matrix in parameter.detach().split(rows):  # of a recurrent layer, each gate's
                    draw(matrix)

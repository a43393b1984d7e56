"""Networks of timm, for weights on disk."""

import importlib
import re
from math import prod
from typing import Any

from torch import Tensor, nn

from dltrain.errors import ConfigError, nearest
from dltrain.models.checks import dropout_rate

NAME = re.compile(r"[A-Za-z0-9_.]+")  # without a colon: `hf-hub:...` would be downloaded


class Pretrained(nn.Module):
    """A network of timm (https://github.com/huggingface/pytorch-image-models), with the tensors' names that timm has.

    (batch, channels, height, width) to (batch, *shape_out). Its weights are random until `model.weights` or
    `model.from_run` says what they are: nothing is downloaded. Raises ConfigError if timm is not installed.
    """

    needs = "timm"  # the package that it is made with
    pretrained = True  # made to begin with weights

    def __init__(
        self, shape_in: tuple[int, ...], shape_out: tuple[int, ...], name: str = "resnet18", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if len(shape_in) != 3:
            raise ConfigError(
                f"model=pretrained must read rows of shape (channels, height, width), got {tuple(shape_in)}; "
                "set data.shape or use model=mlp"
            )
        rate = dropout_rate(dropout)
        timm = self._timm()
        if not isinstance(name, str) or not NAME.fullmatch(name) or not timm.is_model(name):
            raise ConfigError(
                f"model.name must be a network of timm, got {name}{nearest(str(name), timm.list_models())}"
            )
        self.network = timm.create_model(
            name, pretrained=False, in_chans=shape_in[0], num_classes=prod(shape_out), drop_rate=rate
        )
        last = self.network.get_classifier()
        self.heads = [key for key, module in self.named_modules() if module is last]
        self.shape_out = tuple(shape_out)

    def _timm(self) -> Any:
        try:
            return importlib.import_module(self.needs)
        except ModuleNotFoundError as error:
            if error.name != self.needs:
                raise
            raise ConfigError(
                f"model=pretrained must have {self.needs} installed, got none; "
                f"pip install {self.needs} (which brings torchvision)"
            ) from None

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.network(features)
        return output if len(self.shape_out) == 1 else output.unflatten(1, self.shape_out)

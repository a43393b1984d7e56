"""One number for each of several programs that run as one, where a program expects one number."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]


class Disagree(ValueError):
    """A program asks about numbers what is true of some and not of others: as one it cannot go on."""


class Varied(float):
    """Numbers (members,) as one: arithmetic is of each, and what is asked must be true of all, or of none.

    As a plain float it is not a number, so that nothing goes on with it unnoticed.
    """

    each: np.ndarray

    def __new__(cls, each: np.ndarray) -> "Varied":
        made = super().__new__(cls, "nan")
        made.each = each
        return made

    @staticmethod
    def of(values: Sequence[float]) -> float:
        """One number where all are equal."""
        return values[0] if all(value == values[0] for value in values) else Varied(np.array(values, np.float64))

    def __bool__(self) -> bool:
        return _agreed(self.each != 0)

    def __neg__(self) -> "Varied":
        return Varied(-self.each)

    __hash__ = float.__hash__


def _agreed(answers: np.ndarray) -> bool:
    if answers.all() or not answers.any():
        return bool(answers.all())
    raise Disagree("what is asked is true of some members only")


def _each(verb: Function, turned: bool, asks: bool) -> Function:
    def of_each(self: Varied, other: Any) -> Any:
        if isinstance(other, Tensor) or not isinstance(other, int | float):
            return NotImplemented
        value = other.each if isinstance(other, Varied) else other
        with np.errstate(all="ignore"):
            found = verb(value, self.each) if turned else verb(self.each, value)
        return _agreed(found) if asks else Varied(found)

    return of_each


for word in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Varied, f"__{word}__", _each(getattr(operator, word), False, False))
    setattr(Varied, f"__r{word}__", _each(getattr(operator, word), True, False))
for word in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Varied, f"__{word}__", _each(getattr(operator, word), False, True))


class Numbers(TorchFunctionMode):
    """Within, torch's functions take a Varied: as a tensor (members, 1) that goes with tensors (members, n)."""

    def __torch_function__(self, func: Function, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if any(type(value) is Varied for value in (*args, *given.values())):
            return self.varied(func, args, given)
        return func(*args, **given)

    def tensor(self, numbers: Varied, like: Tensor) -> Tensor:
        """The numbers, to go with a tensor."""
        return torch.from_numpy(numbers.each).to(like.device, like.dtype).unsqueeze(1)

    def varied(self, func: Function, args: tuple, given: dict[str, Any]) -> Any:
        """Call a function that was given numbers."""
        like = next(value for value in (*args, *given.values()) if isinstance(value, Tensor))
        for word in ("alpha", "value"):  # of which torch takes one number alone
            if type(given.get(word)) is Varied:
                by, (own, *others) = self.tensor(given[word], like), args
                match func.__name__:
                    case "add" | "add_":
                        return func(own, others[0] * by)
                    case "addcmul" | "addcmul_":
                        return getattr(own, func.__name__.replace("cmul", ""))(others[0] * others[1] * by)
                    case "addcdiv" | "addcdiv_":
                        return getattr(own, func.__name__.replace("cdiv", ""))(others[0] / others[1] * by)
        return func(
            *(self.tensor(value, like) if type(value) is Varied else value for value in args),
            **{key: self.tensor(value, like) if type(value) is Varied else value for key, value in given.items()},
        )

"""Rows: where they come from, how they are split, and everything learnt from the training rows."""

from typing import TYPE_CHECKING, Any

from dltrain.data.rows import Data, Rows

if TYPE_CHECKING:
    from dltrain.data.preparation import Preparation
    from dltrain.data.target import Target

__all__ = ["Data", "Preparation", "Rows", "Target"]


def __getattr__(name: str) -> Any:
    """`Preparation` and `Target` import pandas and torch: only when they are asked for."""
    if name == "Preparation":
        from dltrain.data.preparation import Preparation

        return Preparation
    if name == "Target":
        from dltrain.data.target import Target

        return Target
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a data source gives: the rows of three splits, and how they were prepared."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from dltrain.data.images import ImagePreparation
    from dltrain.data.preparation import Preparation
    from dltrain.data.series import SeriesPreparation
    from dltrain.data.tokens import TokenPreparation

# The fields of one split, all with the same first dimension: features (rows, *shape_in) float32, or int64 of tokens,
# of which 0 is padding; target (see Target; of tokens (rows, steps) int64);
# row (rows,) int64: the number of the row in its file, from 0; weight (rows,) float32 if data.weight is set.
Rows: TypeAlias = "dict[str, Tensor]"


@dataclass
class Data:
    """Three splits, what was learnt from the first, and what there is to say about them (`data.json`)."""

    train: Rows
    valid: Rows
    test: Rows
    preparation: "Preparation | SeriesPreparation | ImagePreparation | TokenPreparation"
    description: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

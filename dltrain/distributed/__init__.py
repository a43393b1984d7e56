"""Where a run computes: `Single` here, DDP and FSDP in files of their own. The one user of torch.distributed."""

from dltrain.distributed.single import Single

__all__ = ["Single"]

"""Shard a model with PyTorch's FSDP, in the units that accelerate and the Trainer make."""

from __future__ import annotations

import peft
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    BackwardPrefetch,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)


def fsdp1(
    model: nn.Module, layers: nn.ModuleList, mixed: torch.dtype | None, whole: list[nn.Parameter], sync: bool
) -> nn.Module:
    """Apply FULL_SHARD as accelerate does: one unit per decoder layer, the root, and one per adapter."""
    layer = type(layers[0])
    # peft/utils/other.py, fsdp_auto_wrap_policy: trainable leaves are separate units
    leaves_apart = isinstance(model, peft.PeftModel) and not whole

    def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or isinstance(module, layer) or (leaves_apart and _is_trainable_leaf(module))

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        sharding_strategy=ShardingStrategy.FULL_SHARD,
        backward_prefetch=BackwardPrefetch.BACKWARD_PRE,
        mixed_precision=MixedPrecision(param_dtype=mixed, reduce_dtype=mixed, buffer_dtype=mixed) if mixed else None,
        ignored_states=whole,
        sync_module_states=sync,
        use_orig_params=True,  # the default of accelerate launch
        device_id=torch.device("cpu"),
    )


def _is_trainable_leaf(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.requires_grad and not list(module.named_children())


def fsdp2(model: nn.Module, layers: nn.ModuleList, mixed: torch.dtype | None, mesh: DeviceMesh) -> nn.Module:
    """Apply ``fully_shard``: one unit per decoder layer, and the root."""
    policy = MixedPrecisionPolicy(param_dtype=mixed, reduce_dtype=mixed)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    return model

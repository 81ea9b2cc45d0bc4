"""Shard a model with PyTorch's FSDP, in the units that accelerate and the Trainer make."""

from __future__ import annotations

from collections.abc import Sequence

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

from autoconf.jobs.stack import FsdpStrategy

# accelerate/utils/constants.py, FSDP_SHARDING_STRATEGY, by their numbers.
_STRATEGIES = {"full_shard": 1, "shard_grad_op": 2, "hybrid_shard": 4, "hybrid_shard_zero2": 5}


def fsdp1(
    model: nn.Module,
    layers: Sequence[nn.Module],
    mesh: DeviceMesh,
    mixed: torch.dtype | None,
    whole: list[nn.Parameter],
    *,
    strategy: FsdpStrategy,
    sync: bool,
) -> nn.Module:
    """Apply FSDP1 as accelerate does: one unit per decoder layer, the root, and one per adapter.

    Args:
        model: the model.
        layers: its decoder layers, and the blocks of its tower.
        mesh: all GPUs; of a hybrid strategy nodes, and GPUs of a node.
        mixed: dtype in which FSDP gathers and reduces, if another than that of parameters.
        whole: parameters that it does not shard.
        strategy: what it shards.
        sync: whether it broadcasts each unit from the first GPU.
    """
    kinds = tuple({type(layer) for layer in layers})
    # peft/utils/other.py, fsdp_auto_wrap_policy: trainable leaves are separate units
    leaves_apart = isinstance(model, peft.PeftModel) and not whole

    def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or isinstance(module, kinds) or (leaves_apart and _is_trainable_leaf(module))

    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        sharding_strategy=ShardingStrategy(_STRATEGIES[strategy]),
        process_group=(mesh.get_group(1), mesh.get_group(0)) if mesh.ndim == 2 else None,
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


def fsdp2(
    model: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh, mixed: torch.dtype | None, *, reshards: bool
) -> nn.Module:
    """Apply ``fully_shard``: one unit per decoder layer or block of a tower, and the root.

    ``reshards`` after the forward pass.
    """
    policy = MixedPrecisionPolicy(param_dtype=mixed, reduce_dtype=mixed)
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshards, mp_policy=policy)
    return model

"""FSDP's sharding strategy, from what launchers and the Trainer say about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoconf.errors import BadInput

# accelerate v1.14.0, utils/dataclasses.py, FullyShardedDataParallelPlugin.__post_init__
_NOT_READ = "FSDP2 does not read fsdp_sharding_strategy, so it shards everything (accelerate v1.14.0)"


def sharding_of(version: int, facts: Mapping[str, Any], assumed: list[str]) -> str:
    """What a job calls its sharding.

    Args:
        version: the version of FSDP.
        facts: ``fsdp_strategy`` of the launcher, ``trainer_strategy`` of the Trainer's argument ``fsdp``, and
            ``reshards``, which is "no" if parameters stay whole after the forward pass.
        assumed: the notes of the reading, to which this adds.

    Raises:
        BadInput: the version of FSDP has no such strategy.

    >>> sharding_of(1, {"fsdp_strategy": "hybrid_shard"}, [])
    'fsdp1_hybrid_shard'
    >>> sharding_of(2, {"reshards": "no"}, [])
    'shard_grad_op'
    """
    launched, trainers = facts.get("fsdp_strategy"), facts.get("trainer_strategy")
    if version == 1:
        if facts.get("reshards") == "no":
            raise BadInput(
                "sharding: fsdp_reshard_after_forward false is a setting of FSDP2, which accelerate refuses with "
                "fsdp_version 1; give --sharding fsdp1_shard_grad_op, which FSDP1 calls SHARD_GRAD_OP"
            )
        strategy = launched or trainers
        return f"fsdp1_{strategy}" if strategy else "fsdp1"
    if trainers not in (None, "shard_grad_op"):
        # transformers 5.23.0, training_args.py: only available with FSDP1
        raise BadInput(
            f"sharding: the Trainer has fsdp {trainers} with FSDP1 alone; give --sharding {trainers} for FSDP2 with "
            f"a mesh of nodes, or --sharding fsdp1_{trainers}"
        )
    if facts.get("reshards") == "no" or trainers:
        return "shard_grad_op"
    if launched:
        assumed.append(f"sharding = fsdp2 ({_NOT_READ})")
    return "fsdp2"

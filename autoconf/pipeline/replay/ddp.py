"""The memory of DistributedDataParallel, whose C++ code does not run on fake tensors.

Its buckets are a second copy of the gradients. With ``find_unused_parameters=False`` they are one block until the first
backward pass has shown the order of the gradients, and blocks of 25 MiB from the next forward pass on.
"""

from __future__ import annotations

import sys

import peft
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _broadcast_coalesced, _compute_bucket_assignment_by_size  # as DDP's Python code does

from autoconf.pipeline.tracing.model_setup import Rank

# torch/nn/parallel/distributed.py: broadcast_bucket_size; torch/csrc/distributed/c10d/reducer.hpp:
# kDefaultFirstBucketBytes and kDefaultBucketBytesCap.
BROADCAST, FIRST_BUCKET, BUCKET = 250 * 2**20, 2**20, 25 * 2**20


def finds_unused(rank: Rank) -> bool:
    """Whether DDP looks for unused parameters: transformers/trainer.py, Trainer._build_accelerator_args.

    The Trainer turns it off for a model that is checkpointed, but not if PEFT wraps the model.
    """
    return rank.job.stack.gradient_checkpointing == "none" or isinstance(rank.model, peft.PeftModel)


def wrapped(rank: Rank) -> list[torch.Tensor]:
    """Broadcast a model's tensors, and make the buckets of its gradients: DistributedDataParallel.__init__.

    The broadcast copies them into buffers of 250 MiB: torch/distributed/utils.py, _sync_params_and_buffers.
    """
    states = [tensor.detach() for tensor in (*rank.model.parameters(), *rank.model.buffers())]
    assert dist.group.WORLD is not None  # inside ``rank_of``
    _broadcast_coalesced(dist.group.WORLD, states, BROADCAST, 0)
    limits = [FIRST_BUCKET, BUCKET] if finds_unused(rank) else [sys.maxsize]
    return buckets(rank.trainable, limits)[::-1]


class Reducer:
    """DDP's reducer: it makes its buckets anew, in the order in which gradients arrived.

    reducer.cpp, push_rebuilt_params and rebuild_buckets: at the first forward pass after gradients were reduced. The
    old buckets are freed before the new ones are made.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._arrived: list[nn.Parameter] = []
        self._reduces = False
        rebuilds = rank.job.gpus > 1 and not rank.job.shards and not finds_unused(rank)
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived.append) for p in rank.trainable if rebuilds]

    def before_forward(self, reduces: bool) -> None:
        """Prepare for a micro-batch.

        Args:
            reduces: whether its gradients are reduced, which those of the last micro-batch of an update are.
        """
        if self._hooks and self._reduces:
            self._rank.buckets = []
            self._rank.buckets = buckets(self._arrived, [FIRST_BUCKET, BUCKET])
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
        self._arrived.clear()
        self._reduces = reduces


def buckets(parameters: list[nn.Parameter], limits: list[int]) -> list[torch.Tensor]:
    """Make buckets of gradients: reducer.cpp, compute_bucket_assignment_by_size and initialize_buckets.

    Args:
        parameters: trainable parameters in the order of assignment.
        limits: bytes of the first buckets; the last one is that of all others.
    """
    groups, _ = _compute_bucket_assignment_by_size([*parameters], limits, [False] * len(parameters))
    made = []
    for group in groups:
        elements = sum(parameters[index].numel() for index in group)
        made.append(torch.empty(elements, dtype=parameters[group[0]].dtype))
    return made

"""Record the allocations of a fine-tuning job on one GPU, at full depth and in the order of the training code.

The real code runs on fake tensors, as for peaks: loading the model, then some updates with accumulation, clipping and
the optimizer, of which the first creates its states. In addition to sizes, the order is recorded: every
allocation and release, the current stream, and the module and the op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from autoconf.jobs.stack import Loading
from autoconf.memory.replay import Program
from autoconf.pipeline.replay.ddp import Reducer
from autoconf.pipeline.replay.loading import loader
from autoconf.pipeline.replay.optimizers import FOREACH, optimizer_of
from autoconf.pipeline.replay.program_recorder import ProgramRecorder
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import Rank, TrainingSetup
from autoconf.pipeline.tracing.recorder import EMBEDDING, LOSS, Part, TraceError, parts

# The first creates the optimizer's states, the second uses them, the third starts with the cache of the second.
UPDATES = 3
# aten/src/ATen/cuda/CUDAContextLight.h and CublasHandlePool.cpp, parseChosenWorkspaceSize: :4096:2:16:8 KiB, and 32 MiB
# on GPUs of compute capability 9; one for the main thread and one for autograd's thread.
CUBLAS_WORKSPACE = {8: (2 * 4096 + 8 * 16) * 1024, 9: 32 * 2**20}


@dataclass(frozen=True)
class Batches:
    """The batches of each GPU.

    Args:
        samples: samples of a micro-batch.
        tokens_per_sample: tokens of each sample.
        accumulation: micro-batches of an update.

    >>> Batches(samples=4, tokens_per_sample=4096).tokens
    16384
    """

    samples: int
    tokens_per_sample: int
    accumulation: int = 1

    @property
    def tokens(self) -> int:
        return self.samples * self.tokens_per_sample


def record(
    job: TrainingSetup,
    batches: Batches,
    *,
    updates: int = UPDATES,
    layers: int | None = None,
    compute_capability: int = 8,
    loading: Loading = "cpu",
    report: Callable[[str], None] = lambda _: None,
) -> Program:
    """Record the allocations and releases of a job on its first GPU.

    Args:
        job: the training setup.
        batches: the batches of each GPU.
        updates: number of optimizer steps.
        layers: depth of a short model; ``None`` for the whole model.
        compute_capability: major compute capability of the GPU: 8 for an A100 or L40S, 9 for an H100.
        loading: how the weights come to the GPU; a model that is quantized to 4 bits is always loaded on it.
        report: a function that is called with progress messages.

    Raises:
        TraceError: bitsandbytes' optimizer and FSDP2 exclude each other.
    """
    check_recordable(job)
    report("building the model")
    recorder = ProgramRecorder(CUBLAS_WORKSPACE[compute_capability])
    with (
        first_rank(job, layers, load=loader(recorder, loading)) as rank,
        mock.patch("torch.optim.adam._get_value", lambda _: 1.0),  # the step count, which fake tensors do not have
    ):
        optimizer = optimizer_of(rank, recorder)
        reducer = Reducer(rank)
        with (
            recorder,
            recorder.resizes(),
            recorder.streams(),
            parts(rank.layers, recorder),
            recorder.modules_of(rank.model),
        ):
            for update in range(updates):
                report(f"step {update + 1} of {updates}")
                recorder.when = f"step {update + 1}"
                _update(rank, optimizer, reducer, batches, recorder)
            return recorder.program


def check_recordable(job: TrainingSetup) -> None:
    """Check that a job can be recorded.

    Raises:
        TraceError: it cannot.
    """
    if job.stack.gradient_checkpointing == "offloaded":
        raise TraceError(
            "gradient_checkpointing 'offloaded' cannot be replayed: tensors return to the GPU in a second pool"
        )
    if job.gpus > 1 and job.stack.sharding == "fsdp2" and job.stack.optim.endswith("bit"):
        # torch/distributed/tensor/_sharding_prop.py: the operator has no sharding strategy.
        raise TraceError(
            f"optim {job.stack.optim!r} and sharding 'fsdp2' cannot be replayed: bitsandbytes' optimizers do not run "
            "on distributed tensors"
        )


def _update(
    rank: Rank, optimizer: torch.optim.Optimizer, reducer: Reducer, batches: Batches, recorder: ProgramRecorder
) -> None:
    """Run one update like transformers' Trainer (transformers/trainer.py, Trainer._run_epoch)."""
    recorder.part = EMBEDDING
    inputs = [
        _batch(batches) for _ in range(batches.accumulation)
    ]  # all batches are fetched before the first one is used
    for index, batch in enumerate(inputs):
        recorder.part = EMBEDDING
        reduces = index + 1 == batches.accumulation
        reducer.before_forward(reduces)
        with rank.gradient_sync(reduces):
            loss = rank.model(input_ids=batch["input_ids"], labels=batch["labels"])["loss"]
            recorder.part = LOSS
            loss.backward()
        recorder.wait_for_all()  # Trainer._run_epoch checks whether the loss is a number
        del loss
    recorder.part = Part("clipping")
    norm = _clip(rank)
    recorder.part = Part("optimizer")
    optimizer.step()
    del norm
    rank.model.zero_grad()


def _clip(rank: Rank) -> torch.Tensor:
    # accelerate/accelerator.py, clip_grad_norm_: FSDP1 has its own.
    if isinstance(rank.model, FullyShardedDataParallel):
        return rank.model.clip_grad_norm_(1.0)
    return nn.utils.clip_grad_norm_(rank.trainable, 1.0, foreach=FOREACH)


def _batch(batches: Batches) -> dict[str, torch.Tensor]:
    ids = torch.zeros((batches.samples, batches.tokens_per_sample), dtype=torch.long)
    return {"input_ids": ids, "labels": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}

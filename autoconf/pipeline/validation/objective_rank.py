"""One GPU's part of a job whose loss is one of TRL's, on fake tensors: the real loss, and the reference model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode

from autoconf.memory.objectives import OF_PAIRS, REFERRING
from autoconf.pipeline.tracing.first_rank import load_at_once
from autoconf.pipeline.tracing.model_setup import (
    DTYPES,
    Rank,
    TrainingSetup,
    build_model,
    materialize,
    run_under_autocast,
)
from autoconf.pipeline.validation import trl_losses


class AllCount(TorchDispatchMode):
    """Give a loss the values that it asks for: fake tensors have none.

    All tokens are those of completions, and all samples of KTO are chosen ones, of which it copies the logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) == "aten._local_scalar_dense.default":
            return args[0].dtype.is_floating_point + 1
        if func is torch.ops.aten.nonzero.default:  # kto_trainer.py: of chosen samples, and then of rejected ones
            self._asked += 1
            return args[0].new_zeros((len(args[0]) * (self._asked % 2), 1), dtype=torch.long)
        if func is torch.ops.aten.scatter_add.default:
            # torch/csrc/autograd/FunctionsManual.cpp, gather_backward: in place, unless tensors are fake.
            return args[0]
        if func is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
            return args[0].new_empty((args[1][0].numel(), *args[0].shape[args[1][0].ndim :]))
        return func(*args, **(kwargs or {}))


@contextmanager
def _as_on_gpus() -> Iterator[None]:
    """Count what kernels hold besides their results.

    aten/src/ATen/native/ReduceOps.cpp, logsumexp_out_impl: a copy of the input, of which it takes the exponential.
    """
    original = torch.logsumexp

    def logsumexp(values: torch.Tensor, dim: int) -> torch.Tensor:
        torch.empty_like(values)
        return original(values, dim)

    with mock.patch.object(torch, "logsumexp", logsumexp), AllCount():
        yield


class ObjectiveRank(Rank):
    """A rank that trains with a loss of TRL, on one GPU or under DDP."""

    def __init__(self, job: TrainingSetup, model: Any, mesh: DeviceMesh | None) -> None:
        super().__init__(job, model, mesh)
        self._reference = None
        if job.stack.objective in REFERRING and job.method == "full":
            self._reference = build_model(job)
            materialize(self._reference)
            self._reference.eval()
            # trl v1.9.0, dpo_trainer.py: accelerate prepares it as it prepares the model.
            if job.stack.mixed_precision != "no":
                run_under_autocast(self._reference, DTYPES["bfloat16"])

    def resident(self) -> list[torch.Tensor]:
        """Tensors that exist before the first micro-batch."""
        others = [] if self._reference is None else [*self._reference.parameters(), *self._reference.buffers()]
        return [*super().resident(), *others]

    def micro_batch(self, samples: int, tokens_per_sample: int, *, reduce: bool) -> None:
        """Run a forward and a backward pass of samples of the data."""
        objective, checkpointing = self.job.stack.objective, self.job.stack.gradient_checkpointing
        kwargs = None if checkpointing == "none" else {"use_reentrant": checkpointing == "reentrant"}
        make = partial(trl_losses.trainer, self.model, self._reference, kwargs)
        rows = samples * (2 if objective in OF_PAIRS else 1)
        ids = torch.zeros((rows, tokens_per_sample), dtype=torch.long)
        with _as_on_gpus(), self.gradient_sync(reduce):
            trl_losses.LOSSES[objective](make, ids)().backward()


load = partial(load_at_once, kind=ObjectiveRank)

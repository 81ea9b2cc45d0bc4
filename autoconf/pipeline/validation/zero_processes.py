"""Run jobs under DeepSpeed in real processes: jobs from standard input, peaks to standard output, in JSON.

Tensors are real and on the CPU, processes communicate through gloo. Only values are made up: kernels of the CPU stand
in for those of CUDA, so gradients are set to zero before each step of the optimizer.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model, materialize
from autoconf.pipeline.tracing.recorder import SAMPLES
from autoconf.pipeline.validation.zero_devices import GPU, PeakRecorder, two_devices

_STEPS = 2  # in the first one there are no states yet, and ZeRO-3 does not prefetch
_MICRO_BATCHES = {False: 1, True: 3}  # by whether gradients accumulate
_OFFLOADED = {
    "none": (),
    "optimizer": ("offload_optimizer",),
    "parameters": ("offload_param",),
    "optimizer_and_parameters": ("offload_optimizer", "offload_param"),
}


def peaks(job: dict[str, Any]) -> dict[str, int]:
    """Peak bytes of this process in forward and backward passes, and in the optimizer's step."""
    import deepspeed

    setup = TrainingSetup(Architecture(**job["architecture"]), job["method"], Stack(**job["stack"]))
    accumulating = _MICRO_BATCHES[setup.stack.gradient_accumulation]
    model, recorder = build_model(setup), PeakRecorder()
    found = {"micro_batch": 0, "step": 0}
    with ExitStack() as stack:
        stack.enter_context(cuda_kernels.on_cuda(model, setup.architecture.experts))
        stack.enter_context(recorder)
        stack.enter_context(recorder.resizes())
        stack.enter_context(recorder.without_copies_of_gloo())
        if setup.stack.offload != "none":
            stack.enter_context(two_devices(recorder))
        with recorder.placing(host=False):
            _materialize(model)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(_groups(model), foreach=True),
            config=_config(setup.stack, job["buckets"], accumulating),
        )
        gc.collect()
        for _ in range(_STEPS):
            recorder.peak = recorder.live
            for micro_batch in range(accumulating):
                _micro_batch(engine, job["tokens"], last=micro_batch == accumulating - 1)
            found["micro_batch"], recorder.peak = recorder.peak, recorder.live
            _zero_gradients(engine)
            engine.step()
            found["step"] = recorder.peak
    engine.destroy()
    return found


def _zero_gradients(engine: Any) -> None:
    for gradients in engine.optimizer.averaged_gradients.values():
        for gradient in gradients or ():
            gradient.zero_()


def _materialize(model: nn.Module) -> None:
    materialize(model)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    # transformers/trainer.py, create_optimizer: parameters with weight decay, then biases and norms.
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [[p for p in trainable if (p.dim() > 1) == decays] for decays in (True, False)]
    return [{"params": group} for group in groups if group]


def _config(stack: Stack, buckets: dict[str, Any], accumulating: int) -> dict[str, Any]:
    if stack.sharding != "zero3":
        buckets = {name: buckets[name] for name in ("reduce_bucket_size", "overlap_comm")}
    return {
        "train_micro_batch_size_per_gpu": SAMPLES,
        "gradient_accumulation_steps": accumulating,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": stack.mixed_precision == "bf16"},
        "zero_allow_untested_optimizer": True,  # as transformers sets it
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": int(stack.sharding.removeprefix("zero")),
            **buckets,
            **{name: {"device": "cpu", "pin_memory": True} for name in _OFFLOADED[stack.offload]},
        },
    }


def _micro_batch(engine: Any, tokens: int, *, last: bool) -> None:
    input_ids = torch.zeros((SAMPLES, tokens), dtype=torch.long, device=GPU)
    _attention_mask = torch.empty_like(input_ids)
    engine.set_gradient_accumulation_boundary(last)
    loss = engine(input_ids=input_ids, labels=torch.zeros_like(input_ids))["loss"]
    engine.backward(loss)


def _be_a_rank(rank: int, jobs: list[dict[str, Any]], gpus: int, folder: str) -> None:
    os.dup2(2, 1)  # libraries print
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(gpus), LOCAL_SIZE=str(gpus))
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", gpus), rank=rank, world_size=gpus)
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    found = []
    for number, job in enumerate(jobs, 1):
        found.append(peaks(job))
        gc.collect()
        print(
            f"{number} of {len(jobs)} jobs on {gpus} processes, rank {rank}: {found[-1]}", file=sys.stderr, flush=True
        )
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _run(jobs: list[dict[str, Any]], gpus: int) -> list[dict[str, int]]:
    """Peaks of jobs that all have this number of processes: of the process that holds most."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_be_a_rank, (jobs, gpus, folder), nprocs=gpus)
        of_ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(gpus)]
    return [{name: max(peak[name] for peak in ranks) for name in ranks[0]} for ranks in zip(*of_ranks, strict=True)]


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    jobs = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        # DeepSpeed compiles an extension; in the usual folder it would wait forever for a lock that a killed run left.
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", folder)
        json.dump(_all_peaks(jobs), sys.stdout)


def _all_peaks(jobs: list[dict[str, Any]]) -> list[dict[str, int]]:
    found: list[dict[str, int]] = [{} for _ in jobs]
    # ZeRO-3 replaces torch.nn.functional.linear for the rest of a process, so it comes last.
    order = sorted(range(len(jobs)), key=lambda index: jobs[index]["stack"]["sharding"])
    for gpus in sorted({job["gpus"] for job in jobs}):
        which = [index for index in order if jobs[index]["gpus"] == gpus]
        for index, peak in zip(which, _run([jobs[index] for index in which], gpus), strict=True):
            found[index] = peak
    return found


if __name__ == "__main__":
    main()

"""The commands of the other queries: each asks about a table of jobs or about one, as ``recommend`` does."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from autoconf.cli.ask import Asking, Writing, answer, given_fields
from autoconf.cli.job_options import query_options
from autoconf.cli.options import exit_codes
from autoconf.cli.replay import replay_one
from autoconf.errors import BadInput
from autoconf.jobs.queries import AVOID_OOM, ESTIMATE, GPU_MODEL, LARGEST_BATCH, LARGEST_SAMPLE
from autoconf.planner.avoid_oom import avoid_oom
from autoconf.planner.estimate import estimate
from autoconf.planner.gpu_choice import cheapest_gpu
from autoconf.planner.max_size import largest_batch, largest_sample
from autoconf.planner.prices import read_prices


@query_options(AVOID_OOM)
def avoid_oom_command(context: typer.Context) -> None:
    """Check a requested number of GPUs, and if it is too small, name the next larger one that fits.

    Each GPU keeps its batch. A request that fits is kept, whatever --max-gpus.
    A table of jobs has the column number_gpus. can_recommend (0 or 1), gpus (per worker), workers and reason are
    appended.

    $ ado-autoconf avoid-oom --model llama-7b --method lora --gpu L40S --seq-len 8192 --per-device-batch-size 6 --gpus 2
    """
    answer(Asking(AVOID_OOM, avoid_oom), context)


@query_options(LARGEST_BATCH)
def largest_batch_command(context: typer.Context) -> None:
    """Find the largest batch that fits on a number of GPUs.

    A table of jobs has the column number_gpus and no batch. can_recommend (0 or 1), per_device_train_batch_size,
    batch_size (over all GPUs) and reason are appended.

    $ ado-autoconf largest-batch --model llama-7b --method lora --gpu L40S --seq-len 8192 --gpus 2
    """
    answer(Asking(LARGEST_BATCH, largest_batch), context)


@query_options(LARGEST_SAMPLE)
def largest_sample_command(context: typer.Context) -> None:
    """Find the longest samples that fit on a number of GPUs at a given batch.

    A table of jobs has the column number_gpus and no tokens_per_sample. can_recommend (0 or 1), tokens_per_sample and
    reason are appended.

    $ ado-autoconf largest-sample --model llama-7b --method lora --gpu L40S --batch 8 --gpus 2
    """
    answer(Asking(LARGEST_SAMPLE, largest_sample), context)


@query_options(GPU_MODEL)
def gpu_model_command(
    context: typer.Context,
    prices: Annotated[
        str | None,
        typer.Option(
            "--prices",
            metavar="FILE",
            show_default=False,
            help="Prices per GPU and hour, YAML lines such as 'H100: 2.5', instead of the package's list.",
        ),
    ] = None,
) -> None:
    """Rank the types of GPU by what the smallest layout that fits costs per hour.

    The cost is the price per GPU and hour times the number of GPUs; how long the job runs is not considered.
    Ties go to fewer GPUs. Types without a price come after those with one, and those that the job does not fit on last.
    A table of jobs has no gpu_model; each job is repeated for each type, with can_recommend (0 or 1), gpu_model, gpus
    (per worker), workers, cost_per_hour, rank (1 is the recommendation) and reason.

    $ ado-autoconf gpu-model --model llama-7b --method lora --seq-len 8192 --batch 16
    """
    with exit_codes():
        known = read_prices(prices)
    answer(Asking(GPU_MODEL, partial(cheapest_gpu, prices=known)), context)


@query_options(ESTIMATE)
def estimate_command(
    context: typer.Context,
    replayed: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Replay PyTorch's allocator on what the job allocates, in minutes; needs the extra \\[build].",
        ),
    ] = False,
    alloc_conf: Annotated[
        str,
        typer.Option(
            "--alloc-conf",
            metavar="TEXT",
            show_default=False,
            help="Settings of the allocator that is replayed, as PYTORCH_CUDA_ALLOC_CONF has them.",
        ),
    ] = "",
    overhead_gib: Annotated[
        float | None,
        typer.Option(
            "--overhead-gib",
            metavar="NUMBER",
            show_default=False,
            help="GiB of the GPU that are not PyTorch's in a replay, such as the CUDA context and NCCL's buffers.",
        ),
    ] = None,
) -> None:
    """Estimate whether a job fits on a number of GPUs, how likely that is, and where the memory goes.

    A table of jobs has the column number_gpus. fits (0 or 1), probability, in GiB the peak, what is needed and its
    parts, what is usable and the headroom, and the reason if there is no estimate are appended.

    With --replay the job's own training code runs on tensors without memory, and PyTorch's allocator is replayed:
    what it reserves, the least capacity that the job runs on, and the module and op that fail if it does not.
    With --output FILE that is drawn over time, too.

    $ ado-autoconf estimate --model llama-7b --method lora --gpu L40S --seq-len 8192 --batch 8 --gpus 2
    """
    asking = Asking(ESTIMATE, estimate)
    if not replayed:
        with exit_codes():
            if alloc_conf or overhead_gib is not None:
                raise BadInput("--alloc-conf and --overhead-gib: for --replay only")
        answer(asking, context)
        return
    with exit_codes():
        if context.params["csv_file"] is not None:
            raise BadInput("--replay: for one job only")
        replay_one(asking, given_fields(asking, context), Writing.of(context), alloc_conf, overhead_gib)

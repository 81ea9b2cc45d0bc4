"""The commands of the other queries; like ``recommend``, each takes a table of jobs or one job."""

from __future__ import annotations

from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from autoconf.cli.ask import CommandQuery, OutputOptions, answered_one, says_no
from autoconf.cli.command_job import answer, job_of
from autoconf.cli.job_options import query_options
from autoconf.cli.options import exit_codes, note, picture_kind
from autoconf.cli.output import output
from autoconf.cli.plots import frontier
from autoconf.cli.plots.memory_bars import settings_of
from autoconf.cli.replay import ReplayOptions, replay_one
from autoconf.errors import BadInput
from autoconf.jobs.queries import AVOID_OOM, ESTIMATE, GPU_MODEL, LARGEST_BATCH, LARGEST_SAMPLE, PLAN, THROUGHPUT
from autoconf.planner.avoid_oom import avoid_oom
from autoconf.planner.estimate import estimate
from autoconf.planner.gpu_choice import cheapest_gpu
from autoconf.planner.max_size import largest_batch, largest_sample
from autoconf.planner.plan import plan
from autoconf.planner.prices import read_prices
from autoconf.planner.throughput import throughput

PricesOption = Annotated[
    str | None,
    typer.Option(
        "--prices",
        metavar="FILE",
        show_default=False,
        help="Prices per GPU and hour, YAML lines such as 'H100: 2.5', instead of the package's list.",
    ),
]

ProviderOption = Annotated[
    str | None,
    typer.Option(
        "--provider",
        metavar="NAME",
        show_default=False,
        help="Use the package's prices of one provider, such as AWS; types that it does not list have no price.",
    ),
]


@query_options(AVOID_OOM)
def avoid_oom_command(context: typer.Context) -> None:
    """Check a requested number of GPUs; if it is too small, recommend the next larger one that fits.

    The batch on each GPU stays the same. A request that fits is confirmed even if it exceeds --max-gpus.
    A table of jobs has the column number_gpus. can_recommend (0 or 1), gpus (per worker), workers and reason are
    appended.

    $ ado-autoconf avoid-oom --model llama-7b --method lora --gpu L40S --seq-len 8192 --per-device-batch-size 6 --gpus 2
    """
    answer(CommandQuery(AVOID_OOM, avoid_oom), context)


@query_options(LARGEST_BATCH)
def largest_batch_command(context: typer.Context) -> None:
    """Find the largest batch that fits on a number of GPUs.

    A table of jobs has the column number_gpus and no batch. can_recommend (0 or 1), per_device_train_batch_size,
    batch_size (over all GPUs) and reason are appended.

    $ ado-autoconf largest-batch --model llama-7b --method lora --gpu L40S --seq-len 8192 --gpus 2
    """
    answer(CommandQuery(LARGEST_BATCH, largest_batch), context)


@query_options(LARGEST_SAMPLE)
def largest_sample_command(context: typer.Context) -> None:
    """Find the longest samples that fit on a number of GPUs at a given batch.

    A table of jobs has the column number_gpus and no tokens_per_sample. can_recommend (0 or 1), tokens_per_sample and
    reason are appended.

    $ ado-autoconf largest-sample --model llama-7b --method lora --gpu L40S --batch 8 --gpus 2
    """
    answer(CommandQuery(LARGEST_SAMPLE, largest_sample), context)


@query_options(GPU_MODEL)
def gpu_model_command(
    context: typer.Context,
    prices: PricesOption = None,
    provider: ProviderOption = None,
) -> None:
    """Rank GPU types by what a run costs on the smallest layout that fits.

    They are ranked by the cost of the run if --dataset-tokens (with --epochs) or --steps is given, or else by the cost
    of a million tokens; where the speed is not known by the price per hour, which a note says. Ties go to fewer GPUs.
    Types without a price come after types with one; types on which the job does not fit come last.
    A table of jobs has no gpu_model; each job is repeated for each type, with can_recommend (0 or 1), gpu_model, gpus
    (per worker), workers, cost_per_hour, tokens_per_second, hours and cost of the run, cost_per_million_tokens, rank (1
    is the recommendation) and reason.

    $ ado-autoconf gpu-model --model llama-7b --method lora --seq-len 8192 --batch 16
    """
    with exit_codes():
        known = read_prices(prices, provider)
    answer(CommandQuery(GPU_MODEL, partial(cheapest_gpu, prices=known)), context)


@query_options(ESTIMATE)
def estimate_command(
    context: typer.Context,
    replayed: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Replay PyTorch's allocator with the allocations of the job, in minutes; needs the extra \\[build].",
        ),
    ] = False,
    alloc_conf: Annotated[
        str,
        typer.Option(
            "--alloc-conf",
            metavar="TEXT",
            show_default=False,
            help="Settings of the replayed allocator, in the format of PYTORCH_CUDA_ALLOC_CONF.",
        ),
    ] = "",
    overhead_gib: Annotated[
        float | None,
        typer.Option(
            "--overhead-gib",
            metavar="NUMBER",
            show_default=False,
            help="GiB of the GPU outside PyTorch in a replay: CUDA context, kernels, NCCL's buffers. Default: measured "
            "for the type and number of GPUs; the output says how.",
        ),
    ] = None,
) -> None:
    """Estimate whether a job fits on a number of GPUs, with which probability, and the memory by part.

    A table of jobs has the column number_gpus. The appended columns are fits (0 or 1), probability, in GiB the peak,
    the needed memory with its parts, the usable memory and the headroom, and the reason if AutoConf cannot estimate.

    With --replay the job's training code runs on tensors without memory, and PyTorch's allocator is replayed. The
    output is the reserved memory, the smallest capacity on which the job runs, and the module and op that fail below
    it, while the job is loaded or in a step.
    With --output FILE the memory is also drawn over time.

    $ ado-autoconf estimate --model llama-7b --method lora --gpu L40S --seq-len 8192 --batch 8 --gpus 2
    """
    command = CommandQuery(ESTIMATE, estimate)
    options = ReplayOptions(alloc_conf, overhead_gib)
    if not replayed:
        with exit_codes():
            if options != ReplayOptions():
                raise BadInput("--alloc-conf and --overhead-gib: for --replay only")
        answer(command, context)
        return
    with exit_codes():
        if context.params["csv_file"] is not None:
            raise BadInput("--replay: for one job only")
        replay_one(command, _job_to_replay(command, context), OutputOptions.of(context), options)


def _job_to_replay(command: CommandQuery, context: typer.Context) -> dict[str, Any]:
    if context.params["explained"]:
        raise BadInput("--replay and --explain exclude each other")
    return job_of(command, context).fields


@query_options(THROUGHPUT)
def throughput_command(context: typer.Context, prices: PricesOption = None, provider: ProviderOption = None) -> None:
    """Estimate how fast a job runs on a number of GPUs, how long a run takes and what it costs.

    The bounds are the 10th and the 90th percentile of measured runs that were held out; a note says where no such runs
    were measured.
    A table of jobs has the column number_gpus, and may have dataset_tokens and epochs, or steps. The appended columns
    are fits (0 or 1), tokens_per_second of all GPUs with its bounds, step_seconds, model_flops_utilization, limit (what
    takes the longest), hours and cost of the run, and the reason if AutoConf cannot estimate.

    $ ado-autoconf throughput --model llama3-8b --method lora --gpu L40S --seq-len 4096 --batch 8 --gpus 4 --steps 1000
    """
    with exit_codes():
        known = read_prices(prices, provider)
    answer(CommandQuery(THROUGHPUT, partial(throughput, prices=known)), context)


@query_options(PLAN)
def plan_command(
    context: typer.Context,
    prices: PricesOption = None,
    provider: ProviderOption = None,
    deadline_hours: Annotated[
        float | None,
        typer.Option(
            "--deadline-hours", metavar="NUMBER", show_default=False, help="The longest that the run may take."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="NUMBER", show_default=False, help="The most that the run may cost."),
    ] = None,
) -> None:
    """List the layouts of a run for which no other layout that fits is both faster and cheaper.

    The first one is the cheapest, the last one the fastest. Considered are all GPU types with a price and all numbers
    of GPUs up to --max-gpus. The run is as long as --dataset-tokens with --epochs, or --steps.
    A table of jobs has no gpu_model; each job is repeated for each layout.
    With --output FILE.png (or .svg, .pdf) the plan of one job is drawn.

    $ ado-autoconf plan --model llama-7b --method lora --seq-len 2048 --batch 32 --dataset-tokens 1000000000
    """
    with exit_codes():
        known = read_prices(prices, provider)
        for name, limit in (("--deadline-hours", deadline_hours), ("--budget", budget)):
            if limit is not None and not 0 < limit < inf:
                raise BadInput(f"{name}: must be a number > 0, got {limit:g}")
        if context.params["saved_job"] is not None:
            raise BadInput("--save-job: a plan has no ado experiment; save the job with throughput or recommend")
    command = CommandQuery(PLAN, partial(plan, prices=known, deadline_hours=deadline_hours, budget=budget))
    if Path(context.params["output_file"] or "").suffix.lower() in (".png", ".svg", ".pdf"):
        with exit_codes():
            _draw_plan(command, context)
        return
    answer(command, context)


def _draw_plan(command: CommandQuery, context: typer.Context) -> None:
    """Write the picture of a plan, if it has a layout."""
    to = OutputOptions.of(context)
    if context.params["csv_file"] is not None or to.as_json or context.params["explained"]:
        raise BadInput(f"{to.file}: a picture is drawn for one job only, without --json and --explain")
    kind = picture_kind(str(to.file))
    job, answers, _ = answered_one(command, job_of(command, context).fields)
    no = says_no(answers, command.query)
    if no:
        note(f"{to.file}: not written: {answers['reason'].iloc[0]}")
    else:
        figure = frontier.picture(answers, [setting for setting in settings_of(job) if setting != "None"])
        with output(to.file) as stream:
            figure.savefig(stream, format=kind)
    to.end(no)

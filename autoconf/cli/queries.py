"""The commands of the other questions: each asks about a table of jobs or about one, as ``recommend`` does."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from autoconf.cli.ask import AsJson, Asking, CsvFile, OutputFile, answer, job_option
from autoconf.cli.options import exit_codes, with_options
from autoconf.jobs.queries import AVOID_OOM, ESTIMATE, GPU_MODEL, LARGEST_BATCH, LARGEST_SAMPLE
from autoconf.planner.avoid_oom import avoid_oom
from autoconf.planner.estimate import estimate
from autoconf.planner.gpu_choice import cheapest_gpu
from autoconf.planner.max_size import largest_batch, largest_sample
from autoconf.planner.prices import read_prices

_AVOID_OOM = Asking(AVOID_OOM, avoid_oom)
_LARGEST_BATCH = Asking(LARGEST_BATCH, largest_batch)
_LARGEST_SAMPLE = Asking(LARGEST_SAMPLE, largest_sample)
_GPU_MODEL = Asking(GPU_MODEL, cheapest_gpu)
_ESTIMATE = Asking(ESTIMATE, estimate)


@with_options(partial(job_option, AVOID_OOM), _AVOID_OOM.options)
def avoid_oom_command(
    context: typer.Context, csv_file: CsvFile = None, output_file: OutputFile = None, as_json: AsJson = False
) -> None:
    """Keep a request for GPUs that fits; else name the next larger one that does, at the same batch of each GPU.

    A table of jobs has the column number_gpus. can_recommend (0 or 1), gpus (per worker), workers and reason are
    appended. A request that fits is kept, whatever --max-gpus.

    $ ado-autoconf avoid-oom --model-name llama-7b --method lora --gpu-model L40S --tokens-per-sample 8192 --per-device-train-batch-size 6 --number-gpus 2
    """  # noqa: E501 - a command is one line
    answer(_AVOID_OOM, context, csv_file, output_file, as_json)


@with_options(partial(job_option, LARGEST_BATCH), _LARGEST_BATCH.options)
def largest_batch_command(
    context: typer.Context, csv_file: CsvFile = None, output_file: OutputFile = None, as_json: AsJson = False
) -> None:
    """Find the largest batch that fits on a number of GPUs.

    A table of jobs has the column number_gpus and no batch. can_recommend (0 or 1), per_device_train_batch_size,
    batch_size (over all GPUs) and reason are appended.

    $ ado-autoconf largest-batch --model-name llama-7b --method lora --gpu-model L40S --tokens-per-sample 8192 --number-gpus 2
    """  # noqa: E501 - a command is one line
    answer(_LARGEST_BATCH, context, csv_file, output_file, as_json)


@with_options(partial(job_option, LARGEST_SAMPLE), _LARGEST_SAMPLE.options)
def largest_sample_command(
    context: typer.Context, csv_file: CsvFile = None, output_file: OutputFile = None, as_json: AsJson = False
) -> None:
    """Find the longest samples that fit on a number of GPUs at a given batch.

    A table of jobs has the column number_gpus and no tokens_per_sample. can_recommend (0 or 1), tokens_per_sample and
    reason are appended.

    $ ado-autoconf largest-sample --model-name llama-7b --method lora --gpu-model L40S --batch-size 8 --number-gpus 2
    """
    answer(_LARGEST_SAMPLE, context, csv_file, output_file, as_json)


@with_options(partial(job_option, GPU_MODEL), _GPU_MODEL.options)
def gpu_model_command(
    context: typer.Context,
    csv_file: CsvFile = None,
    output_file: OutputFile = None,
    as_json: AsJson = False,
    prices: Annotated[
        str | None,
        typer.Option(
            "--prices",
            metavar="FILE",
            show_default=False,
            help="Prices per GPU and hour, YAML lines such as 'H100: 2.5', in place of the package's list.",
        ),
    ] = None,
) -> None:
    """Rank the GPU types by what the smallest layout that fits costs per hour.

    That is price per GPU and hour times GPUs; how long the job takes is not asked. Ties go to fewer GPUs.
    Types without a price come behind those with one, and last come those on which the job does not fit.
    A table of jobs has no gpu_model; each job is repeated for each type, with can_recommend (0 or 1), gpu_model, gpus
    (per worker), workers, cost_per_hour, rank (1 is the recommendation) and reason.

    $ ado-autoconf gpu-model --model-name llama-7b --method lora --tokens-per-sample 8192 --batch-size 16
    """
    with exit_codes():
        known = read_prices(prices)
    answer(Asking(GPU_MODEL, partial(cheapest_gpu, prices=known)), context, csv_file, output_file, as_json)


@with_options(partial(job_option, ESTIMATE), _ESTIMATE.options)
def estimate_command(
    context: typer.Context, csv_file: CsvFile = None, output_file: OutputFile = None, as_json: AsJson = False
) -> None:
    """Say whether a job fits on a number of GPUs, how likely that is, and where each GPU's memory goes.

    A table of jobs has the column number_gpus. fits (0 or 1), probability, in GiB the peak, what is needed and its
    parts, what is usable and the headroom, and the reason where there is no estimate are appended.

    $ ado-autoconf estimate --model-name llama-7b --method lora --gpu-model L40S --tokens-per-sample 8192 --batch-size 8 --number-gpus 2
    """  # noqa: E501 - a command is one line
    answer(_ESTIMATE, context, csv_file, output_file, as_json)

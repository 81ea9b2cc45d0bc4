"""A version whose card has compute capabilities refuses jobs on old GPU types, and suggests a newer type."""

import pytest

from autoconf.pipeline.catalog import gpus
from autoconf.pipeline.release.train import all_settings
from autoconf.planner.alternatives import remedies_of_one
from autoconf.planner.domain import inside
from autoconf.planner.notes import notes_on
from autoconf.planner.search import recommendations
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor

JOB = {"model_name": "qwen2.5-0.5b", "method": "lora", "tokens_per_sample": 512, "batch_size": 8}


@pytest.fixture(scope="module")
def newer() -> Predictor:
    """Version 2.0.0 with the GPU types of later versions."""
    known = registry.load("2.0.0")
    domain = known.domain.model_copy(update={"gpus": gpus(later_aliases=True, after_2_0_0=True)})
    card = known.card.model_copy(update={"domain": domain, "version": "3.0.0"})
    return Predictor(card, known.memory, known._tabular)


def columns(**changes) -> dict:
    return {field: [value] for field, value in {**JOB, **changes}.items()}


@pytest.mark.parametrize("gpu", ["Tesla-T4", "Tesla-V100-SXM2-32GB", "V100 32GB"])
@pytest.mark.parametrize("settings", [{}, {"stack": "trl"}, {"method": "qlora"}])
def test_old_gpu_types_are_refused_with_the_reason_and_a_newer_type(newer, gpu, settings):
    (answer,) = recommendations(newer, columns(gpu_model=gpu, **settings))
    assert (answer.can_recommend, answer.outcome) == (0, "outside_domain")
    assert "has no bfloat16 and no FlashAttention-2, which the job uses and which need 8.0" in answer.reason
    named = answer.reason.rpartition(" is ")[2]
    assert newer.domain.gpus[named].compute_capability >= 8
    (remedy, *_) = [
        one for one in remedies_of_one(newer, columns(gpu_model=gpu, **settings)) if one.field == "gpu_model"
    ]
    assert newer.domain.gpus[remedy.value].compute_capability >= 8


def test_without_bfloat16_flash_attention_is_still_missing(newer):
    job = columns(gpu_model="T4", torch_dtype="float32", mixed_precision="no", adapter_dtype="float32")
    (answer,) = recommendations(newer, job)
    assert "has no FlashAttention-2, which the job uses and which need" in answer.reason


def test_float16_with_pytorchs_attention_runs_on_old_types_unless_queries_are_grouped(newer):
    half = {"torch_dtype": "float16", "mixed_precision": "fp16", "adapter_dtype": "float32", "attention": "sdpa"}
    domain = newer.domain.model_copy(update=all_settings())
    known = Predictor(newer.card.model_copy(update={"domain": domain}), newer.memory, newer._tabular)
    jobs = {"gpu_model": "Tesla-V100-SXM2-32GB", "tokens_per_sample": 64, **half}
    (answer,) = recommendations(known, columns(**jobs, model_name="llama-7b"))
    assert answer.can_recommend == 1
    (grouped,) = recommendations(known, columns(**jobs))
    assert "attention holds scores of models with grouped queries" in grouped.reason
    (flash,) = recommendations(known, columns(**{**jobs, "attention": "flash"}, model_name="llama-7b"))
    assert "has no FlashAttention-2" in flash.reason and "attention sdpa, run there" in flash.reason


def test_eager_attention_is_refused_with_its_reason(newer):
    (answer,) = recommendations(newer, columns(gpu_model="NVIDIA-A100-80GB-PCIe", attention="eager"))
    assert (answer.can_recommend, answer.outcome) == (0, "outside_domain")
    assert "samples x heads x tokens x tokens" in answer.reason


def test_every_newer_type_is_answered(newer):
    names = [name for name, gpu in newer.domain.gpus.items() if gpu.compute_capability >= 8]
    assert newer.domain.gpus.keys() - names == {
        "Tesla-V100-SXM2-32GB", "Tesla-V100-SXM2-16GB", "Tesla-P100-PCIE-16GB", "Tesla-T4", "NVIDIA-TITAN-RTX",
        "NVIDIA-GeForce-RTX-2080-Ti",
    }  # fmt: skip
    placed = inside(newer, {field: values * len(names) for field, values in columns().items()} | {"gpu_model": names})
    assert placed.problems == {}


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("H100", "NVIDIA-H100-80GB-HBM3"), ("h100-80g", "NVIDIA-H100-80GB-HBM3"),
        ("NVIDIA H100", "NVIDIA-H100-80GB-HBM3"),
        ("A100-80GB", "NVIDIA-A100-SXM4-80GB"), ("A100 40GB", "NVIDIA-A100-SXM4-40GB"),
    ],
)  # fmt: skip
def test_names_in_the_files_of_clouds_mean_the_sxm_board_in_every_version_that_has_it(newer, written, taken):
    for predictor in (newer, registry.load("2.0.0")):
        jobs = columns(gpu_model=written)
        (answer,) = recommendations(predictor, jobs)
        assert answer == recommendations(predictor, columns(gpu_model=taken))[0]
        assert answer.can_recommend == 1
        ((note,),) = notes_on(predictor, jobs)
        assert note.startswith(f"gpu_model {written!r} was taken for {taken}, and also fits ")


def test_later_versions_refuse_v100_and_name_both_types(newer):
    (answer,) = recommendations(newer, columns(gpu_model="V100"))
    assert answer.reason == (
        "gpu_model 'V100' fits several GPU types of version 3.0.0; give one of Tesla-V100-SXM2-32GB or "
        "Tesla-V100-SXM2-16GB"
    )


def test_a_card_without_compute_capabilities_is_written_as_before():
    for version in ("1.1.0", "2.0.0"):
        card = registry.card(version)
        assert "compute_capability" not in card.model_dump_json()
    assert "compute_capability" in gpus(after_2_0_0=True)["L40S"].model_dump_json()


def test_answers_for_types_that_are_not_verified_say_why(newer):
    jobs = {field: values * 2 for field, values in columns().items()} | {"gpu_model": ["MI300X", "NVIDIA-A10"]}
    of_amd, of_nvidia = notes_on(newer, jobs)
    assert of_amd[-1].startswith("AMD-Instinct-MI300X is not verified: memory was traced with the kernels of CUDA")
    assert of_nvidia == ()

"""The architecture table matches published parameter counts and the inputs of the traces."""

import re

import pytest

from autoconf.memory.version_1 import FIGURES, read_figures
from autoconf.pipeline.catalog import architectures, gpu_types, gpus, models
from autoconf.predictor import registry
from autoconf.predictor.registry import MODELS

# Published totals: exact where the safetensors index or the model card gives the number, else as the card rounds it.
PUBLISHED = {
    "granite-3.1-2b": 2_533_525_504,
    "granite-20b-v2": 20.07e9,
    "granite-13b-v2": 13.1e9,
    "granite-3-8b": 8.17e9,
    "granite-3.1-3b-a800m-instruct": 3.3e9,
    "granite-3.1-8b-instruct": 8.17e9,
    "granite-34b-code-base": 33.72e9,
    "granite-3b-code-base-128k": 3.48e9,
    "granite-7b-base": 6.74e9,
    "granite-8b-code-base": 8.06e9,
    "granite-8b-japanese": 8.06e9,
    "llama-13b": 13_015_864_320,
    "llama-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "llama3-70b": 70_553_706_496,
    "llama3-8b": 8_030_261_248,
    "llama3.1-405b": 405_853_388_800,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "mistral-123b-v2": 122_610_069_504,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b-instruct-v0.1": 46_702_792_704,
    "allam-1-13b": 13.3e9,
    "granite-3.3-2b": 2_533_539_840,
    "granite-3.3-8b": 8_170_864_640,
    "granite-3.1-1b-a400m": 1_334_628_352,
    "powerlm-3b": 3.5e9,
    "granite-4.0-350m": 352_379_904,
    "granite-4.0-1b": 1_631_750_144,
    "granite-4.0-micro": 3_402_836_480,
    "granite-4.0-h-350m": 340_332_224,
    "granite-4.0-h-1b": 1.46e9,  # its card rounds up to 1.5 B; counted from the published layers
    "granite-4.0-h-micro": 3_191_396_096,
    "granite-4.0-h-tiny": 6.94e9,
    "granite-4.0-h-small": 32_207_337_984,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "tinyllama-1.1b": 1_100_048_384,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": 69e9,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_099_328,
    "gemma-3-12b": 11_765_788_416,
    "gemma-3-27b": 27_009_002_240,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-22b-2409": 22.2e9,
    "mistral-small-24b-2501": 23_572_403_200,
    "mixtral-8x22b-v0.1": 140_620_634_112,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-coder-1.3b": 1_346_471_936,
    "deepseek-coder-6.7b": 6_740_512_768,
    "deepseek-coder-33b": 33.3e9,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "olmoe-1b-7b": 6_919_161_856,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "falcon3-1b": 1_669_408_768,
    "falcon3-3b": 3_227_655_168,
    "falcon3-7b": 7.5e9,
    "falcon3-10b": 10.3e9,
    "yi-6b": 6_061_035_520,
    "yi-9b": 8_829_407_232,
    "yi-34b": 34_388_917_248,
    "starcoder2-3b": 3.03e9,
    "starcoder2-7b": 7.2e9,
    "starcoder2-15b": 16e9,
    "starcoder-15b": 15_517_456_384,
    "santacoder-1.1b": 1.12e9,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    "opt-125m": 125e6,
    "opt-1.3b": 1_315_762_176,
    "opt-2.7b": 2_651_601_920,
    "opt-6.7b": 6_658_482_176,
    "opt-13b": 12_853_483_520,
    "opt-30b": 30e9,
    "opt-66b": 66e9,
    "deepseek-llm-7b": 6.91e9,
    "deepseek-llm-67b": 67.4e9,
    "solar-10.7b": 10_731_524_096,
    "tulu-3-8b": 8_030_326_784,
    "tulu-3-70b": 70.6e9,
    "open-llama-3b": 3_426_473_600,
    "salamandra-2b": 2_253_490_176,
    "salamandra-7b": 7_768_117_248,
    "seed-coder-8b": 8.25e9,
    "eurollm-1.7b": 1.657e9,
    "eurollm-9b": 9.154e9,
    "ministral-8b-2410": 8_019_808_256,
    "olmo-3-7b": 7_298_011_136,
    "glm-4-9b-0414": 9_400_279_040,
    "glm-4.5-air": 106e9,
    "deepseek-v3": 671e9,
    "llama-4-scout": 109e9 - 0.9e9,  # its card includes the vision tower
}


@pytest.mark.parametrize("name", architectures())
def test_the_table_has_the_published_number_of_parameters(name):
    assert architectures()[name].parameters == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", architectures())
def test_transformers_and_peft_build_the_models_of_the_table(name):
    pytest.importorskip("torch", reason="versions are traced with the extra [build], installed on Python 3.11")
    from autoconf.jobs.stack import Stack
    from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model

    architecture = architectures()[name]
    parameters = list(build_model(TrainingSetup(architecture, "lora", Stack())).named_parameters())
    assert sum(p.numel() for _, p in parameters if not p.requires_grad) == architecture.parameters
    adapted = {module.split(".lora_")[0].split(".")[-1] for module, p in parameters if p.requires_grad}
    assert adapted == set(architecture.lora_targets)


def test_the_models_of_1_1_0_have_the_tables_number_of_parameters():
    """The figures match the model that transformers builds."""
    built = {f.model_name: f.parameters for f in read_figures(MODELS / "1.1.0" / FIGURES) if f.method == "full"}
    assert set(built) == set(registry.card("1.1.0").domain.models)
    for name, parameters in built.items():
        assert parameters == pytest.approx(architectures()[name].parameters, rel=1e-6), name


def test_every_entry_names_its_source_and_what_it_assumes():
    for architecture in architectures().values():
        assert architecture.source.startswith("https://"), architecture.name
    for name in ("granite-20b-v2", "granite-13b-v2", "allam-1-13b", "granite-8b-japanese", "mistral-123b-v2"):
        assert architectures()[name].assumption, name


def test_usable_memory_is_a_reading_rounded_down():
    newest = gpus(later_aliases=True, after_2_0_0=True)
    assert len(newest) >= 40
    for name, gpu in gpu_types().items():
        mib = re.findall(r"(\d{4,})(?: with ECC| to \d+)?(?:, \d+ without)? MiB", gpu.source)
        readings = [int(one) / 1024 for one in mib]
        readings += [float(one) for one in re.findall(r"([\d.]+)(?: to [\d.]+)? GiB", gpu.source)]
        if readings and not gpu.unverified:
            assert -0.001 <= min(readings) - newest[name].usable_gib < 0.12, name
    without = {name for name, gpu in gpu_types().items() if not re.search(r"\d{4,}|GiB", gpu.source)}
    assert without == {"NVIDIA-H100-PCIe"}


def test_a_figure_without_a_reading_of_cuda_is_a_fraction_of_what_nvidia_smi_prints_and_says_so():
    fractions = [gpu for gpu in gpu_types().values() if "0.97 of it" in gpu.source]
    assert fractions and all(gpu.unverified for gpu in fractions)
    for gpu in fractions:
        printed = re.match(r"(\d+) MiB", gpu.source)
        assert printed and 0 <= 0.97 * int(printed[1]) / 1024 - gpu.usable_gib < 0.1


def test_later_types_and_readings_are_for_versions_after_2_0_0():
    released, newest = gpus(later_aliases=True), gpus(later_aliases=True, after_2_0_0=True)
    assert {name: gpu.usable_gib for name, gpu in released.items()} == {
        name: gpu.usable_gib for name, gpu in registry.card("2.0.0").domain.gpus.items()
    }
    lower = {name for name, gpu in released.items() if newest[name].usable_gib < gpu.usable_gib}
    assert lower == {
        "NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe", "NVIDIA-A10G", "NVIDIA-L4", "NVIDIA-RTX-A6000",
        "NVIDIA-GeForce-RTX-4090",
    }  # fmt: skip
    assert newest["AMD-Instinct-MI300X"].unverified and newest["AMD-Instinct-MI250X"].unverified


def test_an_alias_means_one_model():
    for entries in (
        models(list(architectures()), later_aliases=True),
        gpus(later_aliases=True),
        gpus(later_aliases=True, after_2_0_0=True),
    ):
        aliases = [alias for name, entry in entries.items() for alias in (name, *entry.aliases)]
        assert len(aliases) == len(set(aliases))


def test_later_aliases_are_for_versions_that_ask_for_them():
    distilled = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert distilled in models(["llama3.1-8b"], later_aliases=True)["llama3.1-8b"].aliases
    assert distilled not in models(["llama3.1-8b"])["llama3.1-8b"].aliases
    assert "NVIDIA L40S" in gpus(later_aliases=True)["L40S"].aliases
    assert gpus()["L40S"].aliases == ["NVIDIA-L40S"]


def test_only_learned_positions_limit_a_sample():
    limited = {a.name: a for a in architectures().values() if a.longest_sample}
    assert {a.family for a in limited.values()} == {"gpt_bigcode", "opt"}
    assert limited["granite-34b-code-base"].longest_sample == 8192
    assert limited["opt-13b"].longest_sample == 2048


def test_the_shipped_domain_is_the_tables():
    """A released version is frozen: a change of names or memory in the tables needs a new version."""
    domain = registry.card("1.1.0").domain
    assert domain.models == models(list(domain.models))
    assert domain.gpus == {name: gpus()[name] for name in domain.gpus}
    assert {name: gpu.usable_gib for name, gpu in domain.gpus.items()} == {
        "NVIDIA-A100-SXM4-80GB": 79.15, "NVIDIA-A100-80GB-PCIe": 79.15, "NVIDIA-H100-PCIe": 79.1, "L40S": 44.4
    }  # fmt: skip

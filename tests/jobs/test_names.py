"""Names are found in any spelling, and an unknown name is never replaced."""

import re

import pytest

from autoconf import Workload, recommend
from autoconf.jobs.names import Names, key
from autoconf.predictor import registry

SPELLINGS = [
    str,
    str.upper,
    str.lower,
    str.title,
    lambda name: name.replace("-", "_"),
    lambda name: name.replace("-", " "),
    lambda name: f" {name.replace('-', ' - ')} ",
]


def spellings(version: str) -> dict[str, dict[str, str]]:
    """Every name and alias of each field of a version's domain -> the name."""
    domain = registry.card(version).domain
    return {
        "model_name": {alias: name for name, model in domain.models.items() for alias in (name, *model.aliases)},
        "method": {method: method for method in domain.methods},
        "gpu_model": {alias: name for name, gpu in domain.gpus.items() for alias in (name, *gpu.aliases)},
    }


def names(version: str, field: str) -> Names:
    found: dict[str, list[str]] = {}
    for alias, name in spellings(version)[field].items():
        found.setdefault(name, []).append(alias)
    return Names(found, families=field == "model_name")


@pytest.mark.long
@pytest.mark.parametrize("field", ["model_name", "method", "gpu_model"])
@pytest.mark.parametrize("version", registry.RELEASED)
def test_every_spelling_refers_to_one_name_of_the_version(version, field):
    known = spellings(version)[field]
    by_key: dict[str, set[str]] = {}
    for alias, name in known.items():
        by_key.setdefault(key(alias), set()).add(name)
        by_key.setdefault(key(alias.rpartition("/")[2]), set()).add(name)
    assert {spelled: found for spelled, found in by_key.items() if len(found) > 1} == {}
    looked_up = names(version, field)
    for alias, name in known.items():
        for spell in SPELLINGS:
            assert looked_up.find(spell(alias)) == name
            assert looked_up.find(spell(alias.rpartition("/")[2])) == name


def test_two_similar_names_are_distinguished_only_by_exact_spelling():
    alike = Names({"phi-4": [], "Phi 4": ["microsoft/phi-4"], "phi-14": []})
    assert (alike.find("phi-4"), alike.find("Phi 4"), alike.find("PHI_4")) == ("phi-4", "Phi 4", None)
    assert alike.known_like("PHI_4") == "phi-4 and Phi 4"


@pytest.mark.parametrize(
    ("field", "written", "named"),
    [
        ("method", "LoRA", "lora"),
        ("method", "FULL", "full"),
        ("gpu_model", "l40s", "L40S"),
        ("gpu_model", "NVIDIA L40S", "L40S"),
        ("gpu_model", "nvidia-a100-80gb-pcie", "NVIDIA-A100-80GB-PCIe"),
        ("gpu_model", "A100-SXM4-80GB", "NVIDIA-A100-SXM4-80GB"),
        ("model_name", "Llama 3.1 8B", "llama3.1-8b"),
        ("model_name", "META-LLAMA/llama-2-7B-HF", "llama-7b"),
        ("model_name", "granite-3.1-8b-base", "granite-3.1-8b-instruct"),
        ("model_name", "granite_3_8b", "granite-3-8b"),
    ],
)
def test_a_name_in_another_spelling_gets_the_same_answer(job, field, written, named):
    found = recommend(Workload.parse(**{**job, field: written}))
    assert found.can_recommend == 1
    assert found == recommend(Workload.parse(**{**job, field: named}))


@pytest.mark.parametrize(
    ("field", "written", "says"),
    [
        ("method", "qlora", "which has full and lora"),
        ("method", "lo", "which has full and lora"),
        *(
            ("gpu_model", other, "which has NVIDIA-A100-SXM4-80GB, NVIDIA-A100-80GB-PCIe, NVIDIA-H100-PCIe and L40S")
            for other in ("NVIDIA A100-SXM4-40GB", "NVIDIA-H100-80GB-HBM3", "L40", "A10G", "NVIDIA", "MI300X", "-")
        ),
        ("model_name", "llama-8b", "which has llama3-8b and llama3.1-8b"),
        ("model_name", "mistral-7b", "which has mistral-7b-v0.1"),
        ("model_name", "mistralai/Mistral-Nemo-Instruct-2407",
         "which has the mistral models mistral-123b-v2 and mistral-7b-v0.1"),
        *(
            ("model_name", other, "which has the llama models llama-13b, llama-7b, llama2-70b, llama3-70b, llama3-8b, "
             "llama3.1-405b, llama3.1-70b and llama3.1-8b")
            for other in ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B", "DeepSeek-R1-Distill-Llama-8B", "llama-71b")
        ),
        *(
            ("model_name", other, "which has granite, llama, mistral, mixtral and allam models only")
            for other in ("Qwen/Qwen2.5-7B", "phi-4", "../../etc/passwd", "ünïcode", "8")
        ),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_names_of_the_domain(job, field, written, says):
    reason = recommend(Workload.parse(**{**job, field: written})).reason
    assert reason == f"{field} {written!r} is not in the domain of version 1.1.0, {says}"


def test_another_organization_is_another_model(job):
    """A fine-tuned model with the same name may have other shapes, so the known model is only suggested."""
    reason = recommend(Workload.parse(**{**job, "model_name": "somebody/llama-7b"})).reason
    assert "It ends like llama-7b: if it has the same shapes, give --model-name llama-7b, or " in reason


@pytest.mark.parametrize("version", registry.RELEASED)
def test_no_model_of_another_size_is_picked_out(version):
    """For every model in an unknown size, the whole family or the list of families is suggested."""
    known = spellings(version)["model_name"]
    for alias in known:
        other = re.sub(r"\d+(\.\d+)?b", "77b", alias.lower())
        if other == alias.lower():
            continue
        listed = names(version, "model_name").known_like(other)
        assert listed.startswith("the ") or listed.endswith(" models only"), (other, listed)

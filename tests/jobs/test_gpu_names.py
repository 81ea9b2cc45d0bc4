"""A GPU name that fits one type is accepted; one that fits several types is refused with the list."""

import pytest

from autoconf.jobs.gpu_names import GpuNames, gpu_words, sold_with
from autoconf.pipeline import catalog
from autoconf.predictor import registry


def names(version: str) -> GpuNames:
    gpus = registry.card(version).domain.gpus
    return GpuNames({name: gpu.usable_gib for name, gpu in gpus.items()}, {n: g.aliases for n, g in gpus.items()})


SPELLINGS = {
    "NVIDIA-GeForce-RTX-4090": [
        "4090", "RTX4090", "rtx 4090", "GeForce RTX 4090", "geforce_rtx_4090", "4090 24GB", "RTX-4090-24G",
        "NVIDIA GeForce RTX 4090 (24 GiB)", "nvidia/RTX-4090",
    ],
    "NVIDIA-GeForce-RTX-3090": ["3090", "RTX3090", "GeForceRTX3090", "RTX 3090 24 GB"],
    "NVIDIA-GeForce-RTX-5090": ["5090", "rtx5090", "5090 32GB"],
    "Tesla-V100-SXM2-32GB": ["V100", "v100-32g", "V100 32 GB", "Tesla V100", "TeslaV100", "nvidia-tesla-v100",
                             "V100-SXM2", "V100 SXM", "V100-32", "32GB V100"],
    "Tesla-T4": ["T4", "t4", "Tesla T4", "nvidia-tesla-t4", "T4 16GB", "NVIDIA T4 GPU"],
    "NVIDIA-L4": ["L4", "NVIDIA L4", "L4 24GB", "nvidia-l4-gpu", "Tesla L4"],
    "L40S": ["L40S", "l40s-48gb", "NVIDIA-L40S", "L40S 48G"],
    "NVIDIA-A10G": ["A10G", "a10g 24gb", "NVIDIA A10G"],
    "NVIDIA-A30": ["A30", "A30 24GB"],
    "NVIDIA-A40": ["A40", "A40-48GB"],
    "NVIDIA-RTX-A6000": ["A6000", "RTX A6000", "rtxa6000", "RTX_A6000_48GB"],
    "NVIDIA-RTX-6000-Ada-Generation": ["RTX 6000 Ada", "RTX6000Ada", "rtx-6000-ada-48gb", "6000 Ada"],
    "NVIDIA-H200": ["H200", "H200 141GB", "nvidia-h200-141gb", "h200 sxm", "H200-SXM5-141GB"],
    "NVIDIA-H20": ["H20", "H20 96GB"],
    "NVIDIA-B200": ["B200", "B200-180GB"],
    "NVIDIA-H100-NVL": ["H100 NVL", "H100NVL", "H100-NVL-94GB", "H100 94GB"],
    "NVIDIA-H100-PCIe": ["H100 PCIe", "H100-PCI-E", "H100 80GB PCIe", "PCIe H100"],
    "NVIDIA-H100-80GB-HBM3": ["H100", "H100 80GB", "h100-80g", "H100 SXM", "H100 SXM5", "H100SXM5", "H100 80GB SXM5",
                              "NVIDIA H100 80GB HBM3", "nvidia_h100_80gb_hbm3"],
    "NVIDIA-A100-SXM4-80GB": ["A100 80GB", "a100-80g", "A100-80", "80GB A100", "A100 (80GB)", "A100 80 GB SXM",
                              "A100_80GB_SXM4", "Tesla A100 80GB", "A100-SXM4-80GB"],
    "NVIDIA-A100-SXM4-40GB": ["A100 40GB", "A100-40G", "A100 SXM4 40 GB"],
    "NVIDIA-A100-80GB-PCIe": ["A100 80GB PCIe", "A100 PCIe 80G", "a100_pcie_80gb", "A100 PCI-E 80GB"],
    "NVIDIA-A100-PCIE-40GB": ["A100 PCIe 40GB", "A100-40GB-PCIe"],
}  # fmt: skip


def test_every_type_of_the_newest_version_has_spellings_here():
    assert set(SPELLINGS) == set(registry.card("2.0.0").domain.gpus)


@pytest.mark.parametrize("gpu", SPELLINGS)
def test_a_name_that_fits_one_type_is_accepted(gpu):
    known = names("2.0.0")
    for written in SPELLINGS[gpu]:
        for spelling in (written, written.upper(), written.lower(), f"  {written} ", written.replace(" ", "-")):
            assert known.find(spelling) == gpu, spelling


@pytest.mark.parametrize("version", registry.RELEASED)
def test_the_names_of_a_version_are_found_as_they_are(version):
    known = names(version)
    for name, gpu in registry.card(version).domain.gpus.items():
        for spelling in (name, *gpu.aliases):
            assert known.find(spelling) == name
        assert known.note(name) == ""


@pytest.mark.parametrize(
    ("version", "written", "open_"),
    [
        ("2.0.0", "A100", ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe", "NVIDIA-A100-SXM4-40GB",
                           "NVIDIA-A100-PCIE-40GB"]),
        ("2.0.0", "nvidia a100 gpu", ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe", "NVIDIA-A100-SXM4-40GB",
                                      "NVIDIA-A100-PCIE-40GB"]),
        ("2.0.0", "A100 SXM", ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-SXM4-40GB"]),
        ("2.0.0", "A100-PCIe", ["NVIDIA-A100-80GB-PCIe", "NVIDIA-A100-PCIE-40GB"]),
        ("2.0.0", "RTX 6000", ["NVIDIA-RTX-A6000", "NVIDIA-RTX-6000-Ada-Generation"]),
        ("2.0.0", "200", ["NVIDIA-H200", "NVIDIA-B200"]),
        ("1.1.0", "A100", ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"]),
        ("1.1.0", "A100-80g", ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"]),
    ],
)  # fmt: skip
def test_a_name_that_fits_several_types_is_refused_with_all_of_them(version, written, open_):
    known = names(version)
    assert known.find(written) is None
    assert known.fitting(written) == open_
    *most, last = open_
    assert known.refusal(written, version).endswith(f"; give one of {', '.join(most)} or {last}")


@pytest.mark.parametrize(
    "written",
    ["L40", "A10", "A4", "H10", "A100X", "V100S", "V100 16GB", "V100-PCIe", "T4G", "GB200", "A100 96GB", "H100 96GB",
     "RTX 4090 Laptop GPU", "4090D", "3090 Ti", "RTX PRO 6000", "Quadro RTX 6000", "RTX 4000 Ada", "GTX 4090",
     "Tesla 4090", "GeForce A100", "8xA100", "2 x L4", "A100-SXM4-80GB-MIG-1g.10gb", "NVIDIA-L4-SHARED", "MI300X",
     "40GB", "24", "30", "NVIDIA", "GPU", "RTX", "-", "4090 4090 48GB", "A100 40GB 80GB", "1" * 5_000, "a1" * 3_000,
     "\N{FULLWIDTH DIGIT FOUR}090"],
)  # fmt: skip
def test_a_name_with_another_meaning_is_refused(written):
    assert names("2.0.0").find(written) is None


def test_a_resolved_name_is_noted_with_the_other_types_that_it_fits():
    known = names("2.0.0")
    assert known.note("4090") == "gpu_model '4090' was taken for NVIDIA-GeForce-RTX-4090"
    assert known.note("H100") == (
        "gpu_model 'H100' was taken for NVIDIA-H100-80GB-HBM3, and also fits NVIDIA-H100-PCIe and NVIDIA-H100-NVL"
    )
    for plain in ("nvidia-l40s", "A100-SXM4-80GB", "H200", "A100"):
        assert known.note(plain) == ""


def test_version_1_1_0_takes_h100_for_its_only_one():
    assert names("1.1.0").note("H100") == "gpu_model 'H100' was taken for NVIDIA-H100-PCIe"


def test_memory_is_as_sold():
    sold = {name: sold_with(gpu.usable_gib) for name, gpu in registry.card("2.0.0").domain.gpus.items()}
    for name, memory in sold.items():
        said = [word for word in gpu_words(name) if word.endswith("gb")]
        assert said in ([], [memory]), name
    assert (sold["L40S"], sold["NVIDIA-H20"], sold["NVIDIA-B200"]) == ("48gb", "96gb", "180gb")


# --- versions after 2.0.0 ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def later() -> GpuNames:
    gpus = catalog.gpus(later_aliases=True, after_2_0_0=True)
    return GpuNames({name: gpu.usable_gib for name, gpu in gpus.items()}, {n: g.aliases for n, g in gpus.items()})


LATER = {
    "NVIDIA-GeForce-RTX-3090": ["3090", "RTX 3090 24GB"],
    "NVIDIA-GeForce-RTX-3090-Ti": ["3090 Ti", "RTX-3090-Ti", "RTX 3090 Ti 24GB"],
    "NVIDIA-GeForce-RTX-4070": ["4070", "RTX 4070 12GB"],
    "NVIDIA-GeForce-RTX-4070-Ti": ["4070 Ti", "rtx_4070_ti"],
    "NVIDIA-GeForce-RTX-4070-Ti-SUPER": ["4070 Ti SUPER", "RTX 4070 Ti Super 16GB"],
    "NVIDIA-GeForce-RTX-4060-Ti-8GB": ["4060 Ti 8GB"],
    "NVIDIA-GeForce-RTX-4060-Ti-16GB": ["RTX 4060 Ti 16 GB"],
    "NVIDIA-A10": ["A10", "A10 24GB"],
    "NVIDIA-L40": ["L40", "L40 48GB"],
    "NVIDIA-GH200-480GB": ["GH200", "NVIDIA GH200 480GB", "GH200 96GB"],
    "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition": ["RTX PRO 6000", "RTX PRO 6000 Blackwell", "RTX PRO 6000 96GB"],
    "Tesla-V100-SXM2-16GB": ["V100 16GB", "V100-16"],
    "Tesla-V100-SXM2-32GB": ["V100 32GB"],
    "AMD-Instinct-MI300X": ["MI300X", "MI300X 192GB"],
}


@pytest.mark.parametrize("gpu", LATER)
def test_names_of_later_types_are_found(later, gpu):
    for written in LATER[gpu]:
        assert later.find(written) == gpu, written


@pytest.mark.parametrize("written", ["V100", "4060 Ti", "A800", "RTX 6000", "H100 96GB", "GB300", "4090 Ti"])
def test_names_that_fit_several_later_types_or_none_are_refused(later, written):
    assert later.find(written) is None


def test_every_later_type_is_found_by_its_own_names(later):
    for name, gpu in catalog.gpus(later_aliases=True, after_2_0_0=True).items():
        for spelling in (name, *gpu.aliases):
            assert later.find(spelling) == name, spelling

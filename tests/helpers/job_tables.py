"""Tables of jobs as text, and one job as options, for tests of the command."""

import csv
import io

COLUMNS = ["model_name", "method", "gpu_model", "tokens_per_sample", "batch_size"]
HEADER = ",".join(COLUMNS)
GOOD = "llama-7b,lora,NVIDIA-A100-80GB-PCIe,8192,16"
ONE_JOB = [
    "--model-name=llama-7b", "--method=lora", "--gpu-model=NVIDIA-A100-80GB-PCIe", "--tokens-per-sample=8192",
    "--batch-size=16",
]  # fmt: skip


def table(*lines: str, header: str = HEADER) -> str:
    return "\n".join([header, *lines, ""])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))

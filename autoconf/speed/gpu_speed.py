"""Published speeds of GPU types, from ``gpus.yaml``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

TABLE = Path(__file__).with_name("gpus.yaml")


class GpuSpeed(BaseModel):
    """Speeds of one GPU type.

    Peaks are in TFLOP/s, bandwidths in GB/s (10^9 bytes); those of links are for one direction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bfloat16: float = Field(gt=0)
    float16: float | None = Field(default=None, gt=0)  # None: as bfloat16
    float32: float = Field(gt=0)
    memory: float = Field(gt=0)
    link: float = Field(gt=0)
    pair: float | None = None
    pcie: float = Field(gt=0)
    source: str
    unverified: str = ""  # figures for which no source was found, or on which sources disagree

    def flops(self, dtype: str) -> float:
        """Peak of a dtype in FLOP/s."""
        peaks = {"float32": self.float32, "float16": self.float16 or self.bfloat16}
        return 1e12 * peaks.get(dtype, self.bfloat16)

    def warning(self, name: str) -> str:
        """A sentence about figures that are not verified; empty text if all are.

        >>> gpu_speeds()["NVIDIA-A30"].warning("NVIDIA-A30")
        'the speed of NVIDIA-A30 is not verified: the bandwidth of the NVLink bridge'
        """
        return f"the speed of {name} is not verified: {self.unverified}" if self.unverified else ""

    def link_bytes(self, gpus: int) -> float:
        """Bandwidth between GPUs of one node in bytes per second."""
        return 1e9 * (self.pair if gpus <= 2 and self.pair else self.link)


@cache
def gpu_speeds() -> dict[str, GpuSpeed]:
    """The speeds by GPU type.

    >>> gpu_speeds()["NVIDIA-A100-SXM4-80GB"].flops("bfloat16") / 1e12
    312.0
    """
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: GpuSpeed.model_validate(figures) for name, figures in table.items()}

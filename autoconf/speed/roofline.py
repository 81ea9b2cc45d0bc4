"""The time of a micro-batch on a GPU by physics: work divided by the speeds that a GPU reaches.

Each of arithmetic, memory, network, launches and offload takes a time of its own. Arithmetic, memory traffic and copies
from and to the host follow each other; the network and the host's launches overlap with them, incompletely. No time
grows with any speed of a GPU, and no time per token grows with the tokens of a micro-batch, so neither does the whole.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from autoconf.speed.gpu_speed import GpuSpeed
from autoconf.speed.work import Layout, Work

# Bandwidth between nodes in one direction, in bytes per second and GPU of a node: one adapter of 200 Gbit/s for each
# GPU. Assumed. All GPUs of a node share what arrives there, so a collective operation has the bandwidth of the node.
BETWEEN_NODES = 25e9
# Share of the bandwidth of PCIe that copies between a GPU and pinned memory reach. Assumed, as no run with offload was
# measured, and so is the bandwidth of a host's memory, which the GPUs of a node share: eight channels of DDR4-3200.
PCIE_REACHED = 0.8
HOST_MEMORY = 200e9


class Constants(BaseModel):
    """Constants of the physics, fitted to measured rows; the defaults are where the fit starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    products: float = Field(default=0.75, description="share of the peak that matrix products reach")
    attention: float = Field(default=0.4, description="share of the peak that FlashAttention reaches")
    memory: float = Field(default=0.8, description="share of the memory bandwidth that is reached")
    link: float = Field(default=0.6, description="share of the bandwidth between GPUs that is reached")
    launch_s: float = Field(default=8e-6, description="seconds of the host for one kernel")
    message_s: float = Field(
        default=100e-6, description="seconds of the host and the network for one collective operation"
    )
    overlap: float = Field(
        default=3.0, description="exponent by which overlapping times add up: 1 not at all, infinity fully"
    )


class Times(NamedTuple):
    """Seconds of one micro-batch on one GPU, by what they are spent on."""

    compute: float
    memory: float
    network: float
    launches: float
    offload: float
    total: float

    @property
    def limit(self) -> str:
        """What takes the longest."""
        shares = {
            "compute": self.compute,
            "memory": self.memory,
            "network": self.network,
            "kernel launches": self.launches,
            "offload": self.offload,
        }
        return max(shares, key=lambda name: shares[name])


class Loads(NamedTuple):
    """Seconds of one micro-batch on one GPU at its published figures, and the numbers of messages and launches.

    With arrays instead of numbers, it is that of several jobs.
    """

    products: float
    attention: float
    memory: float
    network: float
    messages: float
    launches: float
    offload: float


def loads(work: Work, gpu: GpuSpeed, layout: Layout) -> Loads:
    """What a micro-batch takes at the published figures of a GPU.

    Args:
        work: the work of one GPU.
        gpu: its speeds.
        layout: the batch and the GPUs.
    """
    peak, link = gpu.flops(work.dtype), gpu.link_bytes(layout.gpus)
    if layout.nodes > 1:
        link = min(link, BETWEEN_NODES * layout.gpus / layout.nodes)
    return Loads(
        products=work.flops / peak,
        attention=work.attention_flops / peak,
        memory=work.bytes / (gpu.memory * 1e9),
        network=work.sent / link,
        messages=work.messages,
        launches=work.launches,
        offload=work.offloaded / (gpu.pcie * 1e9 * PCIE_REACHED)
        + work.host_bytes * layout.gpus / layout.nodes / HOST_MEMORY,
    )


def times(load: Loads, constants: Constants) -> Times:
    """The time of a micro-batch.

    >>> times(Loads(0.75, 0.0, 0.8, 0.0, 0.0, 0.0, 0.0), Constants()).total
    2.0
    """
    compute = load.products / constants.products + load.attention / constants.attention
    memory = load.memory / constants.memory
    network = load.network / constants.link + load.messages * constants.message_s
    launches = load.launches * constants.launch_s
    power = constants.overlap
    total = ((compute + memory + load.offload) ** power + network**power + launches**power) ** (1 / power)
    return Times(compute, memory, network, launches, load.offload, total)

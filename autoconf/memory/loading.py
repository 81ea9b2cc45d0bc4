"""Memory of each GPU while a job is loaded."""

from __future__ import annotations

from typing import Literal

# cpu: each process loads the weights into the CPU's memory, from where they are moved to the GPU, under FSDP unit by
# unit. gpu: each process loads all weights on its GPU. rank0: only the first process loads weights, and the others
# receive them; accelerate's cpu_ram_efficient_loading.
Loading = Literal["cpu", "gpu", "rank0"]
LOADING = "loading"  # the moment of a recorded program before its first step

"""A process that answers for a long time remembers a bounded number of models under stacks."""

from autoconf import Workload, recommend
from autoconf.memory.model import StackMemory
from autoconf.planner.forget import forget_beyond
from autoconf.predictor import registry


def jobs(count: int) -> list[Workload]:
    """Jobs that differ in the rank of their adapters, and so in their stacks."""
    sizes = {"tokens_per_sample": 4096, "batch_size": 16, "model_version": "2.0.0"}
    return [
        Workload(model_name="llama-7b", method="lora", gpu_model="A100-SXM4-80GB", lora_r=rank, **sizes)
        for rank in range(1, count + 1)
    ]


def test_what_is_forgotten_is_composed_again_with_the_same_answer() -> None:
    before = [recommend(job) for job in jobs(20)]
    memory = registry.load("2.0.0").memory
    held = len(memory)
    assert held >= 20
    most = max(len(one.memory) for one in registry.loaded() if isinstance(one.memory, StackMemory))
    forget_beyond(most)
    assert len(memory) == held
    forget_beyond(most - 1)
    assert len(memory) == 0
    assert [recommend(job) for job in jobs(20)] == before
    assert len(memory) <= held

"""The closed form of the memory of loading, on its own; ``pipeline/test_loading.py`` compares it with recorded jobs."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf.memory.fsdp_loading import EqualUnits, unit_moments
from autoconf.memory.loading import LoadedModel, LoadingMemory, Parameter, loading_memory, undominated

GPUS = np.array([1, 2, 4, 8, 64])


def model(loaded: int = 2, trained: int = 2, packed: bool = False) -> LoadedModel:
    layer = (Parameter(50_000_000, loaded, trained, packed), Parameter(4096, loaded, trained))
    root = Parameter(100_000_000, loaded, trained)
    return LoadedModel((root,), (layer,) * 20, (Parameter(4096, loaded, trained), root))


def peak(strategy: str, loading: str = "cpu", of: LoadedModel | None = None) -> np.ndarray:
    return loading_memory(of or model(), strategy, loading).peak_bytes(GPUS)


def test_more_gpus_never_need_more_to_load() -> None:
    for strategy in ("ddp", "fsdp1", "fsdp2"):
        for loading in ("cpu", "gpu", "rank0"):
            assert (np.diff(peak(strategy, loading)) <= 0).all()


def test_loading_on_the_gpu_needs_at_least_all_weights_whatever_the_number_of_gpus() -> None:
    weights = 2 * (20 * 50_004_096 + 200_004_096)
    for strategy in ("fsdp1", "fsdp2"):
        assert (peak(strategy, "gpu") >= weights).all()
        assert peak(strategy, "cpu")[-1] < weights / 2 and peak(strategy, "rank0")[-1] < weights / 2


def test_fsdp2_of_many_gpus_needs_a_unit_and_fsdp1_two_copies_of_it() -> None:
    root, shards = 2 * 200_004_096, 2 * (20 * 50_004_096 + 200_004_096) / 64
    assert peak("fsdp2")[-1] == pytest.approx(root + shards)
    assert peak("fsdp1")[-1] == pytest.approx(2 * root + shards)


def test_upcast_shards_of_fsdp1_are_there_in_both_dtypes() -> None:
    elements = 20 * 50_004_096 + 200_004_096
    assert peak("fsdp1", of=model(2, 4))[0] == pytest.approx(6 * elements)
    assert peak("fsdp2", of=model(2, 4))[0] < 6 * elements


def test_a_4_bit_model_is_loaded_on_the_gpu_whatever_is_said() -> None:
    assert (peak("fsdp2", "cpu", model(packed=True)) == peak("fsdp2", "gpu", model(packed=True))).all()


def equal_units(loaded: int, trained: int, matrices: int) -> EqualUnits:
    return EqualUnits(
        embedding=Parameter(100_000_000, loaded, trained),
        rest=Parameter(90_000_000, loaded, trained),
        plain=Parameter(40_000_000, loaded, trained),
        packed=Parameter(8_000_000, loaded, loaded, packed=True),
        matrices=matrices,
        adapters=Parameter(3_000_000, 4, 4, adapter=True),
        layers=20,
        buffers=5_000_000,
    )


@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("loading", ["cpu", "gpu"])
@pytest.mark.parametrize(("loaded", "trained", "matrices"), [(2, 2, 0), (2, 4, 0), (4, 4, 0), (2, 2, 5), (2, 4, 5)])
@pytest.mark.parametrize("shard_adapters", [True, False])
def test_equal_layers_decide_at_the_first_or_the_last(
    strategy: str, loading: str, loaded: int, trained: int, matrices: int, shard_adapters: bool
) -> None:
    units = equal_units(loaded, trained, matrices)
    layer = (units.plain, *(units.packed,) * matrices, units.adapters)
    every = LoadedModel((units.embedding,), (layer,) * units.layers, (units.rest,), buffers=units.buffers)
    expected = loading_memory(every, strategy, loading, shard_adapters=shard_adapters).peak_bytes(GPUS)
    waits = loading == "gpu" or matrices > 0
    found = LoadingMemory(undominated(unit_moments(units, strategy, waits=waits, shard_adapters=shard_adapters)))
    assert found.peak_bytes(GPUS) == pytest.approx(expected, rel=1e-12)

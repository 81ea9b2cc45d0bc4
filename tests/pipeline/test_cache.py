"""Profiles on disk are written and read, and models are traced again only if their inputs change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import platformdirs
import pytest
from same_figures import assert_same_figures

from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import HeadWay, LayerWay, ModelProfile, Point, StackMoment, Trainable, Units
from autoconf.memory.store import MOMENTS, ModelsTable, read_models, write_models
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing import cache as trace_cache

WAY = LayerWay("lora", "bfloat16", "no", "float32", True, "none", "all-linear")
HEAD = HeadWay(False, "bfloat16", "no", "chunked")


def figures(name: str, size: float = 1.0) -> ModelProfile:
    """A profile as from a trace, with numbers that float32 can represent."""
    units = Units(10, 20, 30, 4, 5, 6, 7, 8, 9, 10)
    moments = [StackMoment(point, *(size * k for k in range(8))) for point in (Point.KEPT, Point.FORWARD)]
    return ModelProfile(
        name,
        made_of="a digest",
        layers={WAY: np.array(moments), WAY._replace(dropout=False): np.array(moments[:1])},
        heads={HEAD: np.array(moments[1:])},
        units={("lora", "all-linear"): Trainable(units, ((Shape((1, 64), 1), 14), (Shape((9,), 1, True), 2)))},
        problems={("qlora", "default"): "ValueError: no", HEAD._replace(trains=True): "TraceError: neither"},
    )


def assert_same(one: ModelProfile, other: ModelProfile) -> None:
    assert (one.model_name, one.made_of) == (other.model_name, other.made_of)
    assert_same_figures(one, other)


def test_figures_are_read_as_they_were_written(tmp_path):
    models = [figures("one"), figures("two", 3.5)]
    write_models(models, tmp_path)
    for found, expected in zip(read_models(tmp_path), models, strict=True):
        assert_same(found, expected)


def test_a_table_lists_its_profiles_and_the_reasons_for_missing_ones(tmp_path):
    write_models([figures("one"), replace(figures("two"), layers={WAY: figures("two").layers[WAY]})], tmp_path)
    table = ModelsTable.read(tmp_path)
    assert table.models == ["one", "two"]
    assert table.moments("one", WAY._replace(dropout=False)) is not None
    assert table.moments("two", WAY._replace(dropout=False)) is None
    assert table.moments("two", WAY._replace(method="full")) is None
    assert table.trainable("one", "qlora", "default") is None
    assert table.problem("one", ("qlora", "default")) == "ValueError: no"
    assert table.problem("one", ("full", "default")) == ""
    assert set(table.ways("two")) == {WAY, HEAD}


def test_moments_that_a_base_has_are_read_from_it_and_not_written_again(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "version"
    for place in (base, folder):
        place.mkdir()
    one = figures("one")
    more = replace(one, heads={**one.heads, HEAD._replace(trains=True): one.layers[WAY]}, problems={})
    write_models([figures("zero"), one], base)
    write_models([more, figures("two", 3.5)], folder, base)
    for found, expected in zip(read_models(folder), [more, figures("two", 3.5)], strict=True):
        assert_same(found, expected)
    written = pd.read_parquet(folder / MOMENTS)
    assert len(written) == len(more.layers[WAY]) + sum(map(len, {**one.layers, **one.heads}.values()))
    with pytest.raises(ValueError, match=r"moments.parquet continues base/moments.parquet, which is not given"):
        ModelsTable((folder / MOMENTS).read_bytes(), b"{}")


@pytest.mark.parametrize("model", [figures("one"), figures("one", 2.0), replace(figures("one"), layers={})])
def test_a_model_that_does_not_continue_its_base_is_refused(tmp_path, model):
    base, folder = tmp_path / "base", tmp_path / "version"
    for place in (base, folder):
        place.mkdir()
    write_models([figures("one")], base)
    with pytest.raises(ValueError, match="one: has other moments than its base, or no more"):
        write_models([model], folder, base)


def test_a_table_with_other_columns_is_refused(tmp_path):
    write_models([figures("one")], tmp_path)
    pd.read_parquet(tmp_path / MOMENTS).drop(columns="rest").to_parquet(tmp_path / MOMENTS)
    with pytest.raises(ValueError, match=f"{MOMENTS} has the columns way, point, .*, done$"):
        ModelsTable.read(tmp_path)


def test_a_fingerprint_changes_with_the_model_and_with_the_tracer(monkeypatch):
    llama = architectures()["llama-7b"]
    same = llama.model_copy(update={"source": "elsewhere", "aliases": []})
    deeper = llama.model_copy(update={"config": {**llama.config, "num_hidden_layers": 33}})
    adapted = llama.model_copy(update={"lora_targets": ["o_proj"]})
    assert trace_cache.fingerprint(same) == trace_cache.fingerprint(llama)
    assert len({trace_cache.fingerprint(a) for a in (llama, deeper, adapted)}) == 3
    before = trace_cache.fingerprint(llama)
    monkeypatch.setattr(trace_cache, "TRACER", trace_cache.TRACER + 1)
    assert trace_cache.fingerprint(llama) != before


@pytest.fixture
def traced(tmp_path, monkeypatch) -> list[str]:
    """The models that were traced; a real trace takes a minute."""
    tracing = pytest.importorskip("autoconf.pipeline.tracing.trace_model", reason="traces need the extra [build]")
    names: list[str] = []

    def trace(architecture, known):
        names.append(architecture.name)
        if architecture.name == "llama-13b":
            raise KeyboardInterrupt
        return figures(architecture.name, architecture.layers)

    monkeypatch.setattr(tracing, "traced", trace)
    monkeypatch.setattr(trace_cache, "all_ways", lambda *_: [WAY, HEAD])
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    return names


def test_a_model_is_traced_once(traced):
    first, second = trace_cache._cached("llama-7b"), trace_cache._cached("llama-7b")
    assert traced == ["llama-7b"]
    assert_same(first, second)
    assert first.made_of == trace_cache.fingerprint(architectures()["llama-7b"])


def test_a_model_is_traced_again_when_the_tracer_is_another(traced, monkeypatch):
    trace_cache._cached("llama-7b")
    monkeypatch.setattr(trace_cache, "TRACER", trace_cache.TRACER + 1)
    trace_cache._cached("llama-7b")
    assert traced == ["llama-7b"] * 2


def test_a_run_that_was_ended_loses_only_the_model_that_it_was_at(traced):
    for name in ("llama-7b", "llama-13b"):
        try:
            trace_cache._cached(name)
        except KeyboardInterrupt:
            ended = name
    assert ended == "llama-13b"
    trace_cache._cached("llama-7b")
    with pytest.raises(KeyboardInterrupt):
        trace_cache._cached("llama-13b")  # a partly written file is not used
    assert traced == ["llama-7b", "llama-13b", "llama-13b"]


def test_released_profiles_are_used_only_if_they_are_up_to_date(tmp_path, traced):
    llama, mistral = ("llama-7b", "mistral-7b-v0.1")
    up_to_date = replace(figures(llama, 2.5), made_of=trace_cache.fingerprint(architectures()[llama]))
    released = tmp_path / "released"
    released.mkdir()
    write_models([up_to_date, figures(mistral)], released)
    found = {f.model_name: f for f in trace_cache.traces([mistral, llama], released)}
    assert list(found) == [mistral, llama]
    assert_same(found[llama], up_to_date)
    assert (
        found[mistral].layers[WAY][0, 2] == architectures()[mistral].layers
    )  # traced again instead of the released one


def test_what_a_released_profile_lacks_is_traced_and_the_rest_is_taken_from_it(tmp_path, monkeypatch):
    """A release with more ways traces only those for the models of the release before it."""
    trace_model = pytest.importorskip("autoconf.pipeline.tracing.trace_model", reason="needs the extra [build]")
    model = architectures()["smollm2-135m"]
    before = LayerWay("full", "bfloat16", "no", "bfloat16", False, "none", "default")
    new = before._replace(gradient_checkpointing="reentrant")
    old = replace(figures(model.name, 7.0), layers={before: figures("").layers[WAY]}, heads={}, units={}, problems={})
    old.units["full", "default"] = figures("").units["lora", "all-linear"]
    old.problems[before._replace(torch_dtype="float32")] = "ValueError: no"
    write_models([replace(old, made_of=trace_cache.fingerprint(model))], tmp_path)
    for module in (trace_model, trace_cache):
        monkeypatch.setattr(module, "all_ways", lambda *_: [before, before._replace(torch_dtype="float32"), new])
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    (found,) = trace_cache.traces([model.name], tmp_path)
    assert set(found.layers) == {before, new} and not found.heads
    np.testing.assert_array_equal(found.layers[before], old.layers[before])
    assert found.units["full", "default"] == old.units["full", "default"] and ("lora", "default") in found.units
    assert not found.missing(trace_cache.all_ways())

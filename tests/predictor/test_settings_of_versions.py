"""Settings since 3.0.0: refused by name by versions up to 2.0.0, accepted by a version whose card has them."""

from __future__ import annotations

from typing import get_args

import pytest

import autoconf
from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.jobs.stack import Optim
from autoconf.memory.units import Unsupported
from autoconf.memory.zero_job import ZERO
from autoconf.pipeline.release.train import all_settings
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor

JOB = {
    "model_name": "smollm2-135m", "method": "full", "gpu_model": "NVIDIA-A100-SXM4-80GB", "tokens_per_sample": 1024,
    "batch_size": 8, "stack": "trl",
}  # fmt: skip


@pytest.mark.parametrize("sharding", ZERO)
def test_version_2_0_0_refuses_them_by_name(sharding):
    answer = autoconf.recommend(autoconf.Workload(**JOB, sharding=sharding, model_version="2.0.0"))
    assert (answer.can_recommend, answer.outcome) == (0, "outside_domain")
    assert answer.reason == (
        f"sharding '{sharding}' is not in the domain of version 2.0.0, which has ddp, fsdp1 and fsdp2; it is known "
        "from version 3.0.0"
    )


@pytest.mark.parametrize("upcast", ["norms", "all"])
def test_version_2_0_0_refuses_a_prepared_base_by_name(upcast):
    job = autoconf.Workload(**{**JOB, "method": "qlora"}, upcast_unquantized=upcast, model_version="2.0.0")
    answer = autoconf.recommend(job)
    assert (answer.can_recommend, answer.outcome) == (0, "outside_domain")
    assert answer.reason == (
        f"upcast_unquantized '{upcast}' is not in the domain of version 2.0.0, which has none; it is known from "
        "version 3.0.0"
    )
    as_loaded = job.model_copy(update={"upcast_unquantized": "none"})
    assert autoconf.recommend(as_loaded).can_recommend


@pytest.mark.parametrize("offload", ["optimizer_and_parameters", "nvme"])
def test_offload_is_refused_by_name_up_to_2_0_0_and_nvme_by_all(offload):
    if offload == "nvme":
        with pytest.raises(ValueError, match=r"offload: must be none, optimizer, parameters or .*, got 'nvme'"):
            autoconf.Workload(**JOB, offload=offload, sharding="zero3")
        return
    answer = autoconf.recommend(autoconf.Workload(**JOB, sharding="fsdp2", offload=offload, model_version="2.0.0"))
    assert (answer.can_recommend, answer.outcome) == (0, "outside_domain")
    assert answer.reason == (
        f"offload '{offload}' is not in the domain of version 2.0.0, which has none; it is known from version 3.0.0"
    )


def test_bitsandbytes_cannot_step_over_what_fsdp_offloads():
    settings = {"sharding": "fsdp2", "offload": "optimizer_and_parameters"}
    for optim, refused in (("adamw_bnb_8bit", True), ("adamw_torch", False)):
        given = [{**settings, "optim": optim}.get(name) for name in SETTINGS]
        stack = training_stack("full", True, "trl", *given)
        if refused:
            with pytest.raises(Unsupported, match="optim 'adamw_bnb_8bit' with offload 'optimizer_and_parameters'"):
                later().row("smollm2-135m", "full", stack)
        else:
            assert later().row("smollm2-135m", "full", stack) >= 0


def test_version_2_0_0_refuses_later_optimizers_by_name_and_a_later_version_accepts_them():
    for optim in (one for one in get_args(Optim) if one not in registry.card("2.0.0").domain.optim):
        answer = autoconf.recommend(autoconf.Workload(**JOB, optim=optim, model_version="2.0.0"))
        assert answer.outcome == "outside_domain" and answer.reason.startswith(
            f"optim '{optim}' is not in the domain of version 2.0.0, which has adamw_torch, "
        )
        given = [{"optim": optim}.get(name) for name in SETTINGS]
        assert later().row("smollm2-135m", "full", training_stack("full", True, "trl", *given)) >= 0


@pytest.mark.parametrize("method", ["full", "lora"])
def test_only_a_quantized_base_is_prepared(method):
    with pytest.raises(ValueError, match=f"method '{method}' and upcast_unquantized 'all' exclude each other"):
        autoconf.Workload(**{**JOB, "method": method}, upcast_unquantized="all")


def test_version_1_1_0_refuses_them_like_every_other_stack():
    answer = autoconf.recommend(
        autoconf.Workload(
            **{**JOB, "model_name": "llama-7b", "stack": "reference"}, sharding="zero3", model_version="1.1.0"
        )
    )
    assert (answer.can_recommend, answer.outcome) == (0, "outside_domain")
    assert "sharding 'zero3'" in answer.reason and "1.1.0" in answer.reason


def later() -> Predictor:
    start = registry.load("2.0.0")
    domain = start.domain.model_copy(update=all_settings())
    return Predictor(start.card.model_copy(update={"domain": domain}), start.memory, None)


@pytest.mark.parametrize("sharding", ZERO)
def test_a_card_that_has_them_accepts_them(sharding):
    predictor = later()
    settings = [sharding if name == "sharding" else None for name in SETTINGS]
    for stack in ("trl", "reference"):  # the reference becomes mixed precision under DeepSpeed
        assert predictor.row("smollm2-135m", "full", training_stack("full", True, stack, *settings)) >= 0
    given = [{"sharding": sharding, "mixed_precision": "no"}.get(name) for name in SETTINGS]
    with pytest.raises(Unsupported, match="mixed_precision 'bf16'"):
        predictor.row("smollm2-135m", "full", training_stack("full", True, "reference", *given))


def test_a_prepared_base_needs_mixed_precision():
    given = [{"upcast_unquantized": "all", "mixed_precision": "no"}.get(name) for name in SETTINGS]
    with pytest.raises(Unsupported, match=r"upcast_unquantized 'all' with mixed_precision 'no' .*'bf16'"):
        later().row("smollm2-135m", "qlora", training_stack("qlora", True, "reference", *given))
    given = [{"upcast_unquantized": "all"}.get(name) for name in SETTINGS]
    assert training_stack("qlora", True, "reference", *given).mixed_precision == "bf16"


def test_cards_name_the_sharding_only_if_it_is_not_that_of_version_2_0_0():
    assert (
        not {"optim", "sharding", "upcast_unquantized", "offload"}
        & registry.card("2.0.0").model_dump()["domain"].keys()
    )
    assert later().card.model_dump()["domain"]["upcast_unquantized"] == ["none", "norms", "all"]
    assert later().card.model_dump()["domain"]["sharding"][-3:] == list(ZERO)
    assert later().card.model_dump()["domain"]["offload"][0] == "none"

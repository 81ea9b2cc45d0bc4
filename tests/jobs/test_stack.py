"""Training stacks, and the closed form of their memory over traced profiles."""

from typing import get_args

import pytest

from autoconf.jobs.job import OPTIONAL, Workload, choices, read
from autoconf.jobs.lora_layers import as_numbers
from autoconf.jobs.presets import SETTINGS, presets, stack_name, training_stack
from autoconf.jobs.stack import JobSharding, Optim, Stack, ZeroBuckets, sharding_parts
from autoconf.memory.optimizers import Shape, optimizer_bytes
from autoconf.pipeline.validation.rank_figures import RankFigures


def test_the_defaults_are_the_reference_workload():
    assert Stack().model_dump() == {
        "optim": "adamw_torch",
        "torch_dtype": "bfloat16",
        "mixed_precision": "no",
        "gradient_checkpointing": "non-reentrant",
        "loss": "full",
        "sharding": "fsdp2",
        "fsdp_strategy": "full_shard",
        "gpus_per_node": 0,
        "offload": "none",
        "allocator": "default",
        "objective": "sft",
        "losses": "trl",
        "zero_buckets": ZeroBuckets().model_dump(),
        "gradient_accumulation": True,
        "gradient_sync": "last",
        "attention": "flash",
        "loading": "cpu",
        "adapter_dtype": "bfloat16",
        "lora_r": 4,
        "lora_dropout": 0.0,
        "lora_targets": "default",
        "lora_layers": (),
        "use_dora": False,
        "trained_modules": "none",
        "quantization": "none",
        "upcast_unquantized": "none",
        "kernels": (),
        "shard_adapters": True,
        "tower_apart": False,
        "image_share": 0.0,
        "micro_batches": 1,
    }


def test_every_setting_has_a_description():
    undescribed = [name for name, field in Stack.model_fields.items() if not field.description]
    assert not undescribed


@pytest.mark.parametrize(
    ("settings", "quoted"),
    [
        ({"quantization": "nf4", "torch_dtype": "float32"}, ["quantization 'nf4'", "torch_dtype 'float32'"]),
        ({"upcast_unquantized": "all"}, ["upcast_unquantized 'all'", "quantization 'none'"]),
        (
            {"quantization": "nf4", "upcast_unquantized": "norms"},
            ["upcast_unquantized 'norms'", "mixed_precision 'no'"],
        ),
        ({"mixed_precision": "fp16"}, ["torch_dtype 'bfloat16'", "mixed_precision 'fp16'"]),
        ({"torch_dtype": "float16", "mixed_precision": "bf16"}, ["torch_dtype 'float16'", "mixed_precision 'bf16'"]),
        ({"loss": "chunked", "kernels": ["fast_loss"]}, ["loss 'chunked'", "kernels ('fast_loss',)"]),
        ({"kernels": ["fused_lora"]}, ["kernels ('fused_lora',)", "quantization 'none'"]),
        ({"shard_adapters": False, "sharding": "fsdp2"}, ["shard_adapters False", "sharding 'fsdp2'"]),
        ({"offload": "optimizer", "sharding": "fsdp2"}, ["offload 'optimizer'", "sharding 'fsdp2'"]),
        ({"offload": "optimizer", "sharding": "ddp"}, ["offload 'optimizer'", "sharding 'ddp'"]),
        ({"offload": "parameters", "sharding": "zero2"}, ["offload 'parameters'", "sharding 'zero2'"]),
        ({"offload": "parameters", "sharding": "fsdp2"}, ["offload 'parameters'", "sharding 'fsdp2'"]),
    ],
)
def test_settings_that_exclude_each_other_are_named_with_their_values(settings, quoted):
    with pytest.raises(ValueError, match="exclude each other") as raised:
        Stack(**settings)
    for text in quoted:
        assert text in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "nf4", "torch_dtype": "bfloat16"},
        {"quantization": "nf4", "upcast_unquantized": "all"},
        {"loss": "chunked", "kernels": ["fast_rms_layernorm"]},
        {"quantization": "nf4", "kernels": ["fused_lora"]},
        {"shard_adapters": False, "sharding": "fsdp1"},
        *({"offload": "optimizer", "sharding": sharding} for sharding in ("zero1", "zero2", "zero3")),
        *({"offload": "optimizer_and_parameters", "sharding": sharding} for sharding in ("zero3", "fsdp1", "fsdp2")),
    ],
)
def test_each_setting_of_an_exclusion_is_allowed_without_the_other(settings):
    assert Stack(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"optim": "adamw"}, {"lora_r": 0}, {"lora_dropout": 1.0}, {"kernels": ["fast"]}, {"sharding": "zero4"}],
)
def test_a_value_that_is_not_allowed_is_refused_by_the_name_of_its_setting(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Stack(**settings)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="optimizer"):
        Stack(optimizer="sgd")


def test_a_stack_cannot_be_changed():
    stack = Stack()
    with pytest.raises(ValueError, match="frozen"):
        stack.optim = "sgd"


# --- presets ----------------------------------------------------------------------------------------------------------


def stack_for(method: str = "lora", stack: str = "reference", steps: int = 4, **settings) -> Stack:
    return training_stack(method, steps > 1, stack, *(settings.get(field) for field in SETTINGS))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("name", list(presets()))
def test_a_preset_states_every_setting_with_its_source_and_makes_a_stack(name, method):
    preset = presets()[name]
    for settings in (preset.settings, *(case.settings for case in preset.cases)):
        assert all(setting.source.strip() for setting in settings.values())
    assert {*SETTINGS, "lora_dropout"} <= preset.settings.keys() <= Stack.model_fields.keys()
    for sharding in (None, *get_args(JobSharding)):
        stack = stack_for(method, name, sharding=sharding)
        assert stack.quantization == ("nf4" if method == "qlora" else "none")
        given = sharding or preset.values(method, {})["sharding"]
        assert (stack.sharding, stack.fsdp_strategy) == sharding_parts(given)


def test_the_reference_is_the_stacks_defaults_for_every_method():
    assert stack_for("full") == stack_for("lora") == Stack()
    assert stack_for("Q-LoRA", steps=1) == Stack(quantization="nf4", gradient_accumulation=False)


def test_a_jobs_own_setting_wins_over_the_preset():
    assert stack_for(stack="trl").loss == stack_for(stack="trl", loss="chunked").loss == "chunked_nll"
    changed = stack_for(stack="trl", loss="full", lora_r=64, sharding="fsdp1")
    assert (changed.loss, changed.lora_r, changed.sharding, changed.optim) == ("full", 64, "fsdp1", "adamw_torch_fused")
    assert stack_for(stack="llama-factory", sharding="fsdp2").gradient_checkpointing == "non-reentrant"
    own = stack_for(stack="llama-factory", sharding="fsdp2", gradient_checkpointing="reentrant")
    assert own.gradient_checkpointing == "reentrant"


def test_axolotl_without_flash_attention_trains_float32_only_where_nothing_shards_and_without_adapters():
    full = stack_for("full", "axolotl", attention="sdpa")
    assert (full.torch_dtype, stack_for("full", "axolotl").torch_dtype) == ("float32", "bfloat16")
    assert stack_for("full", "axolotl", attention="sdpa", sharding="fsdp2").torch_dtype == "bfloat16"
    assert stack_for("lora", "axolotl", attention="sdpa").torch_dtype == "bfloat16"


def test_axolotl_checkpoints_without_reentry_for_preferences():
    assert stack_for(stack="axolotl").gradient_checkpointing == "reentrant"
    assert stack_for(stack="axolotl", objective="dpo").gradient_checkpointing == "non-reentrant"


def test_open_instruct_shards_by_deepspeed_but_not_a_quantized_base():
    assert stack_for("full", "open-instruct").sharding == "zero3"
    quantized = stack_for("qlora", "open-instruct")
    assert (quantized.sharding, quantized.upcast_unquantized, quantized.optim) == ("ddp", "all", "paged_adamw_32bit")


def test_a_presets_adapters_follow_the_dtype_that_the_job_loads():
    assert stack_for(torch_dtype="float32").adapter_dtype == "float32"
    assert stack_for(stack="trl", torch_dtype="bfloat16").adapter_dtype == "float32"
    assert stack_for("qlora", "trl").adapter_dtype == "bfloat16"


@pytest.mark.parametrize("stack", presets())
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_fp16_takes_dtypes_that_gradscaler_accepts(stack, method):
    mixed = stack_for(method, stack, mixed_precision="fp16")
    assert mixed.mixed_precision == "fp16"
    assert (mixed.torch_dtype if method == "full" else mixed.adapter_dtype) == "float32"
    under_deepspeed = stack_for(method, stack, torch_dtype="float16", sharding="zero2")
    assert (under_deepspeed.torch_dtype, under_deepspeed.mixed_precision) == ("float16", "fp16")


@pytest.mark.parametrize(("method", "field"), [("full", "torch_dtype"), ("lora", "adapter_dtype")])
def test_gradients_in_float16_are_refused_as_gradscaler_does(method, field):
    says = f"method '{method}', mixed_precision 'fp16' and {field} 'float16' .* give {field} float32"
    with pytest.raises(ValueError, match=says):
        stack_for(method, **{"torch_dtype": "float16", "mixed_precision": "fp16", field: "float16"})


def test_full_fine_tuning_has_no_settings_of_adapters():
    names = ("adapter_dtype", "lora_r", "lora_dropout", "lora_targets")
    for name in presets():
        assert all(getattr(stack_for("full", name), setting) == getattr(Stack(), setting) for setting in names)


@pytest.mark.parametrize(
    ("method", "stack", "settings", "says"),
    [
        ("full", "reference", {"lora_r": 8}, "method 'full' and lora_r 8"),
        ("Full", "trl", {"lora_targets": "attention"}, "method 'full' and lora_targets 'attention'"),
        ("full", "trl", {"adapter_dtype": "float32"}, "method 'full' and adapter_dtype 'float32'"),
        ("qlora", "trl", {"torch_dtype": "float32"}, "method 'qlora' and torch_dtype 'float32'"),
        ("lora", "reference", {"quantization": "int8"}, "method 'lora' and quantization 'int8'"),
        ("full", "trl", {"quantization": "nf4"}, "method 'full' and quantization 'nf4'"),
        ("qlora", "reference", {"quantization": "none"}, "method 'qlora' and quantization 'none'"),
        ("qlora", "reference", {"quantization": "int8", "sharding": "fsdp2"},
         "quantization 'int8' and sharding 'fsdp2'"),
        ("qlora", "trl", {"quantization": "gptq", "upcast_unquantized": "all"},
         "upcast_unquantized 'all' and quantization 'gptq'"),
        ("lora", "reference", {"adapter_dtype": "bfloat16", "torch_dtype": "float32"},
         "adapter_dtype 'bfloat16' and torch_dtype 'float32'"),
        ("lora", "trl", {"adapter_dtype": "bfloat16"},
         "adapter_dtype 'bfloat16' and torch_dtype 'float32' (of the stack trl)"),
    ],
)  # fmt: skip
def test_settings_of_a_job_that_exclude_each_other_are_named(method, stack, settings, says):
    with pytest.raises(ValueError) as raised:
        stack_for(method, stack, **settings)
    assert str(raised.value) == f"{says} exclude each other"


def test_a_stack_is_named_by_its_preset_and_the_changed_settings():
    def name(stack, **settings):
        return stack_name("lora", stack, *(settings.get(field) for field in SETTINGS))

    assert name("trl") == name("trl", loss="chunked", lora_r=16) == "trl"
    assert name("trl", sharding="fsdp2", optim="sgd") == "trl with optim=sgd, sharding=fsdp2"


def test_choices_of_a_job_are_those_of_the_stack_and_distinct():
    for field in SETTINGS:
        assert Workload.model_fields[field].default is OPTIONAL[field] is None
        for value in choices(field):
            needed = {
                "upcast_unquantized": {"quantization": "nf4", "mixed_precision": "bf16"},
                "offload": {"sharding": "zero3"},
                "mixed_precision": {"torch_dtype": "float32"},
                "quantization": {"sharding": "ddp"},
            }.get(field, {})
            setting = as_numbers(value) if field == "lora_layers" else value
            stack = Stack(**{field: setting, **needed})
            assert getattr(stack, field) == (sharding_parts(value)[0] if field == "sharding" else setting)
            read = {found for found in choices(field) if found.replace("-", "").lower() == value.replace("-", "")}
            assert read == {value}


def test_every_optimizer_of_transformers_is_known_or_refused_by_name():
    names = pytest.importorskip("transformers.training_args", reason="it comes with the extra [build]").OptimizerNames
    refused = []
    for name in (one.value for one in names):
        try:
            assert optimizer_bytes(read("optim", name), [Shape((100, 100), 4)]).states >= 0
        except ValueError as error:
            assert str(error).startswith("optim: must be ") and repr(name) in str(error)
            refused.append(name)
    assert {"galore_adamw", "apollo_adamw", "lomo", "schedule_free_adamw"} <= set(refused)
    assert not set(refused) & set(choices("optim"))


@pytest.mark.parametrize("optim", get_args(Optim))
def test_every_optimizer_has_its_bytes(optim):
    states, step = optimizer_bytes(optim, [Shape((1000, 500), 2), Shape((100,), 2)])
    assert 0 <= states <= 8 * 500_100  # AdamW with float32 states needs the most memory
    assert 0 <= step <= 20 * 500_000


FIGURES = RankFigures(
    moments=((1000, 0, 0), (100, 8, 400), (0, 10, 0)), end=(50, 1, 400), states=300, step=900, shards_states=True
)


@pytest.mark.parametrize(
    ("tokens", "gpus", "peak"),
    [
        (10, 1, 300 + 50 + 10 + 400 + 900),  # the optimizer steps
        (10, 100, 3 + 1000),  # memory that depends on neither tokens nor GPUs
        (100, 2, 150 + 100 + 800 + 200),
        (1000, 4, 75 + 10_000),
    ],
)
def test_the_peak_is_the_highest_moment(tokens, gpus, peak):
    assert FIGURES.peak_bytes(tokens, gpus) == peak


def test_states_that_are_not_sharded_are_whole_on_every_gpu():
    whole = RankFigures(FIGURES.moments, FIGURES.end, FIGURES.states, FIGURES.step, shards_states=False)
    assert whole.peak_bytes(10, 4) == 300 + 50 + 10 + 100 + 900
    assert FIGURES.peak_bytes(10, 4) == 75 + 1000

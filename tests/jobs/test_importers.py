"""Jobs are read from existing files: every relevant setting, or an error that names file, key and value."""

import copy
import json
import random
import re
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoconf import Workload
from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import job_keys
from autoconf.jobs.importers.patch import Layout, patched
from autoconf.jobs.importers.reader import read_job
from autoconf.jobs.job import read
from autoconf.jobs.presets import presets
from autoconf.jobs.stack import Stack

JOBS = Path(__file__).parents[1] / "data" / "job_files"
TRL = yaml.safe_load((JOBS / "trl_lora.yaml").read_text())


def fields(*names: str, **options) -> dict:
    return read_job([str(JOBS / name) for name in names], options).fields


def stack_of(*names: str, **options) -> Stack:
    """The training stack of the job in some files, with missing fields given."""
    return Workload.parse(
        **{"gpu_model": "NVIDIA-A100-SXM4-80GB", **fields(*names, **options), **options}
    ).training_stack()


@pytest.fixture
def read_text(tmp_path: Path):
    """Read a job from a text, in a file whose name does not show its format."""

    def read_it(content, **options):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "job").write_text(text)
        return read_job([str(tmp_path / "job")], options)

    return read_it


# --- each format ------------------------------------------------------------------------------------------------------


def test_arguments_of_trl_are_read() -> None:
    assert fields("trl_lora.yaml") == {
        "model_name": "meta-llama/Llama-3.1-8B", "method": "lora", "tokens_per_sample": 2048, "stack": "trl",
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "lora_r": 32, "lora_targets": "all-linear",
        "torch_dtype": "bfloat16", "gradient_checkpointing": "non-reentrant", "mixed_precision": "bf16",
    }  # fmt: skip


def test_the_messages_about_arguments_cover_every_key() -> None:
    job = read_job([str(JOBS / "trl_lora.yaml")], {})
    assert f"{JOBS / 'trl_lora.yaml'}:12 lora_r: 32 -> lora_r = 32" in job.read
    assert "samples are packed: each has the maximum number of tokens" in job.read
    ignored = ("3 dataset_name", "4 report_to", "5 learning_rate", "6 lr_scheduler_type")
    assert set(job.ignored) == {f"{JOBS / 'trl_lora.yaml'}:{place}" for place in ignored}
    assert job.unknown == ()
    assert any("optim = adamw_torch_fused" in line and "stack trl" in line for line in job.assumed)


def test_accelerate_and_trl_are_read_together() -> None:
    together = fields("accelerate_fsdp2.yaml", "trl_lora.yaml")
    assert together == {**fields("trl_lora.yaml"), "sharding": "fsdp2", "loading": "rank0"}
    # TRL enables bf16 by itself, regardless of the launcher.
    assert together["mixed_precision"] == "bf16"


def test_accelerate_alone_says_how_to_shard() -> None:
    job = read_job([str(JOBS / "accelerate_fsdp1.yaml")], {})
    assert job.fields == {"sharding": "fsdp1", "mixed_precision": "no"}
    assert any("are those of the stack reference" in line for line in job.assumed)


def test_arguments_of_the_trainer_are_read_on_the_nearest_preset() -> None:
    options = {"model_name": "llama3.1-8b", "method": "lora", "tokens_per_sample": 1024, "lora_r": 8}
    with pytest.raises(BadInput, match=r"give --lora-targets$"):
        read_job([str(JOBS / "trainer_arguments.json")], options)
    options["lora_targets"] = "default"
    stack = stack_of("trainer_arguments.json", **options)
    assert stack == Stack(
        optim="adafactor", gradient_checkpointing="reentrant", mixed_precision="bf16", sharding="fsdp2", lora_r=8,
        adapter_dtype="float32", attention="sdpa",
    )  # fmt: skip
    assumed = read_job([str(JOBS / "trainer_arguments.json")], options).assumed
    assert any("without a sign of TRL" in line for line in assumed)


def test_arguments_of_the_trainer_leave_the_method_to_the_user() -> None:
    with pytest.raises(ValueError, match="method: is required"):
        stack_of("trainer_arguments.json", model_name="llama3.1-8b", tokens_per_sample=1024)


def test_an_axolotl_config_is_read() -> None:
    assert stack_of("axolotl_qlora.yaml") == Stack(
        optim="adamw_bnb_8bit", mixed_precision="bf16", gradient_checkpointing="reentrant", sharding="ddp", lora_r=16,
        adapter_dtype="float32", lora_dropout=0.05, lora_targets="all-linear", quantization="nf4",
    )  # fmt: skip
    job = read_job([str(JOBS / "axolotl_qlora.yaml")], {})
    assert {
        "method": "qlora",
        "tokens_per_sample": 2048,
        "per_device_train_batch_size": 2,
    }.items() <= job.fields.items()
    assert job.fields["stack"] == "axolotl"
    assert not job.unknown


def test_axolotls_defaults_fill_in_missing_settings(read_text) -> None:
    """axolotl v0.18.0, src/axolotl/utils/config/__init__.py: bf16 if the GPU has it, reentrant checkpoints."""
    config = {
        "base_model": "llama3.1-8b",
        "sequence_len": 2048,
        "gradient_checkpointing": True,
        "flash_attention": True,
    }
    found = read_text(config).fields
    assert (found["mixed_precision"], found["torch_dtype"]) == ("bf16", "bfloat16")
    assert found["gradient_checkpointing"] == "reentrant"


@pytest.mark.parametrize(
    ("adapters", "message"),
    [({"lora_target_linear": True}, "lora_r: is missing"), ({"lora_r": 8}, "lora_target_modules: is missing")],
)
def test_missing_adapter_settings_of_an_axolotl_config_are_an_error(read_text, adapters: dict, message: str) -> None:
    config = {"base_model": "llama3.1-8b", "sequence_len": 2048, "adapter": "lora", **adapters}
    with pytest.raises(BadInput, match=message):
        read_text(config)


def test_trls_own_chunked_loss_and_ligers_exclude_each_other(read_text) -> None:
    with pytest.raises(BadInput, match="chunked_nll and Liger's kernel exclude each other"):
        read_text({**TRL, "use_liger_kernel": True, "loss_type": "chunked_nll"})


def test_ligers_loss_is_not_trls() -> None:
    assert stack_of("axolotl_full_liger.yaml").loss == "chunked"
    assert stack_of("trl_lora.yaml").loss == "chunked_nll"
    assumed = read_job([str(JOBS / "axolotl_full_liger.yaml")], {}).assumed
    assert any("are counted as plain ones" in line for line in assumed)


def test_ligers_loss_in_trl_keeps_trls_other_settings(read_text) -> None:
    gpu = {"gpu_model": "NVIDIA-A100-SXM4-80GB"}
    plain, liger = (
        Workload.parse(**read_text({**TRL, "use_liger_kernel": liger}).fields, **gpu).training_stack()
        for liger in (False, True)
    )
    assert liger == plain.model_copy(update={"loss": "chunked"})


@pytest.mark.parametrize("loss", ["nll", "chunked_nll"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_loras_dropout_is_that_of_the_files(read_text, dropout: float, loss: str) -> None:
    job = read_text({**TRL, "lora_dropout": dropout, "loss_type": loss}).fields
    stack = Workload.parse(**job, gpu_model="NVIDIA-A100-SXM4-80GB").training_stack()
    assert (stack.lora_dropout > 0, job["stack"]) == (dropout > 0, "trl")
    assert stack.loss == {"nll": "full"}.get(loss, loss)


def test_a_command_line_of_fms_hf_tuning_is_read_with_its_config() -> None:
    assert stack_of("fms_lora.sh") == Stack(
        gradient_checkpointing="reentrant", sharding="fsdp1", lora_r=8,
        lora_targets=("k_proj", "o_proj", "q_proj", "v_proj"),
        adapter_dtype="float32", lora_dropout=0.05,
    )  # fmt: skip
    job = fields("fms_lora.sh")
    assert (job["model_name"], job["tokens_per_sample"], job["stack"]) == (
        "meta-llama/Llama-3.1-8B",
        4096,
        "fms-hf-tuning",
    )


def test_a_command_line_of_trl_wins_over_the_files_that_it_names() -> None:
    job = fields("trl_sft.sh")
    assert job == {
        **fields("trl_lora.yaml"), "tokens_per_sample": 4096, "gradient_checkpointing": "none", "sharding": "fsdp2",
        "loading": "rank0",
    }  # fmt: skip


def test_a_pytorchjob_is_read_with_its_variables_and_type_of_gpu() -> None:
    assert fields("pytorchjob.yaml") == {
        "model_name": "meta-llama/Llama-3.1-8B", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB",
        "tokens_per_sample": 4096, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
        "optim": "adamw_torch", "gradient_checkpointing": "none", "sharding": "fsdp1", "stack": "fms-hf-tuning",
    }  # fmt: skip


def test_a_pytorchjob_is_read_with_the_configmap_of_its_image() -> None:
    job = fields("pytorchjob_configmap.yaml")
    assert (job["model_name"], job["method"], job["stack"]) == (
        "ibm-granite/granite-3.1-8b-base",
        "full",
        "fms-hf-tuning",
    )
    assert (job["gpu_model"], job["tokens_per_sample"]) == ("NVIDIA-A100-SXM4-80GB", 1024)


def test_several_types_of_gpu_are_left_to_the_user(read_text) -> None:
    text = (JOBS / "pytorchjob_configmap.yaml").read_text()
    item = "                          - NVIDIA-A100-SXM4-80GB\n"
    both = text.replace(item, item + item.replace("A100-SXM4", "H100"))
    with pytest.raises(BadInput, match=r"matchExpressions\[0\]\.nvidia\.com/gpu\.product: .*gpu_model: must be"):
        read_text(both)
    assert read_text(both, gpu_model="L40S").fields["tokens_per_sample"] == 1024
    with pytest.raises(BadInput, match="gpu_model: must be"):
        read_text(text.replace("operator: In", "operator: NotIn"))


def test_a_trainjob_is_read_through_its_shell(read_text) -> None:
    job = fields("trainjob.yaml")
    assert (job["sharding"], job["tokens_per_sample"], job["stack"], job["method"]) == (
        "fsdp2",
        2048,
        "trl",
        "full",
    )
    with pytest.raises(BadInput, match=r"job:\d+ spec\.trainer\.args: --optim: 'lomo'"):
        read_text((JOBS / "trainjob.yaml").read_text().replace("--learning_rate 1e-5", "--optim lomo"))


@pytest.mark.parametrize("program", ["torchrun --nproc_per_node 8", "accelerate launch --multi_gpu", "python3 -u"])
def test_launchers_are_distinguished_from_the_script(read_text, program: str) -> None:
    lora = "--lora_r 4 --use_peft --lora_target_modules q_proj v_proj"
    job = read_text(f"{program} train.py --model_name_or_path m/x --bf16 --optim=sgd {lora}")
    assert (job.fields["model_name"], job.fields["optim"], job.fields["method"]) == ("m/x", "sgd", "lora")
    assert job.fields.get("sharding") == (None if "python" in program else "ddp")


def test_the_environment_of_a_command_is_read(read_text) -> None:
    command = "sft.py --model_name_or_path m --max_length 8"
    launched = f"export ACCELERATE_USE_FSDP=true\nFSDP_VERSION=2 accelerate launch {command}"
    assert read_text(launched).fields["sharding"] == "fsdp2"
    assert read_text(f"ACCELERATE_USE_DEEPSPEED=true accelerate launch {command}").fields["sharding"] == "zero2"
    with pytest.raises(BadInput, match="ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE: 'cpu'"):
        read_text(f"export ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE=cpu\naccelerate launch {command}")


@pytest.mark.parametrize(
    ("value", "allocator"),
    [
        ("expandable_segments:True", "expandable_segments"),
        ("expandable_segments:true,max_split_size_mb:128", "expandable_segments"),
        ("garbage_collection_threshold:0.8, expandable_segments:False", "default"), ("max_split_size_mb:512", None),
        ("backend:cudaMallocAsync", None), ("", None), ("${CONF:-}", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_the_settings_of_pytorchs_allocator_are_read(read_text, name: str, value: str, allocator: str | None) -> None:
    text = f'export {name}="{value}"\ntorchrun --nproc_per_node 8 sft.py --model_name_or_path m --max_length 8'
    assert read_text(text).fields.get("allocator") == allocator


def test_the_launchers_settings_in_fms_hf_tunings_configuration_are_read(read_text) -> None:
    text = (JOBS / "pytorchjob_configmap.yaml").read_text()
    launcher = '"accelerate_launch_args": {"use_fsdp": true, "fsdp_version": 2}, "max_seq_length"'
    assert read_text(text.replace('"max_seq_length"', launcher)).fields["sharding"] == "fsdp2"
    kept = launcher.replace("version", "sharding_strategy")
    assert read_text(text.replace('"max_seq_length"', kept)).fields["sharding"] == "fsdp1_shard_grad_op"
    with pytest.raises(BadInput, match=r"accelerate_launch_args\.fsdp_sharding_strategy: 3"):
        read_text(text.replace('"max_seq_length"', kept.replace('strategy": 2', 'strategy": 3')))


def test_output_redirections_are_not_arguments(read_text) -> None:
    job = read_text("trl sft --model_name_or_path m --use_peft --optim sgd > log.txt 2>&1; echo done")
    assert (job.fields["optim"], job.fields["method"]) == ("sgd", "lora")


def test_a_stack_given_as_an_option_sets_fields_missing_in_files(read_text) -> None:
    options = {"stack": "reference", "gpu_model": "A"}
    job = read_text({"model_name_or_path": "m", "max_length": 8, "use_peft": True}, **options)
    stack = Workload.parse(**job.fields, **options).training_stack()
    assert stack == Stack(gradient_accumulation=False)


@pytest.mark.parametrize(
    ("keys", "quantization"),
    [
        ({"load_in_4bit": True}, "nf4_single"),
        ({"load_in_4bit": True, "use_bnb_nested_quant": False}, "nf4_single"),
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, "nf4"),
        ({"load_in_8bit": True}, "int8"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "int8"),
    ],
)
def test_how_a_base_is_quantized_is_read(read_text, keys: dict, quantization: str) -> None:
    job = read_text({**TRL, **keys})
    assert (job.fields["method"], job.fields["quantization"]) == ("qlora", quantization)
    assert any("nested" in line for line in job.assumed) == (len(keys) == 1 and "load_in_4bit" in keys)
    with pytest.raises(BadInput, match="a quantized base without adapters cannot be trained"):
        read_text({**TRL, **keys, "use_peft": False})


def test_settings_of_adapters_are_ignored_without_adapters(read_text) -> None:
    job = read_text({**TRL, "use_peft": False})
    assert (job.fields["method"], "lora_r" in job.fields) == ("full", False)
    assert "lora_r: no adapters are trained" in job.ignored


def test_empty_settings_say_nothing(read_text) -> None:
    empty = {"deepspeed_config": {}, "megatron_lm_config": {}, "fsdp_config": {}, "dynamo_config": None}
    assert read_text({"distributed_type": "MULTI_GPU", **empty}).fields == {"sharding": "ddp"}


# --- several sources --------------------------------------------------------------------------------------------------


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"lora_r": 8}')
    with pytest.raises(
        BadInput, match=rf"{other}:1 lora_r: lora_r = 8 contradicts .*trl_lora.yaml:12 lora_r, which sets 32"
    ):
        read_job([str(JOBS / "trl_lora.yaml"), str(other)], {})


def test_options_override_unreadable_settings(read_text) -> None:
    text = {**TRL, "optim": "lomo", "max_length": None, "dtype": "auto"}
    with pytest.raises(BadInput) as refused:
        read_text(text)
    assert re.findall(r"job:1 (\w+):", str(refused.value)) == [
        "max_length",
        "dtype",
        "optim",
    ]
    options = {"optim": "sgd", "tokens_per_sample": "512", "torch_dtype": "float32", "lora_r": 4}
    job = read_text(text, **options)
    assert not set(options) & set(job.fields)
    assert any("optim: set by an option" in line for line in job.ignored)
    stack = Workload.parse(**job.fields, **options, gpu_model="A").training_stack()
    assert (stack.optim, stack.torch_dtype, stack.lora_r) == ("sgd", "float32", 4)


def test_a_global_batch_as_an_option_takes_the_place_of_the_files(read_text) -> None:
    assert "per_device_train_batch_size" not in read_text(TRL, batch_size=16).fields


def test_a_config_that_a_command_names_must_be_there(read_text, tmp_path: Path) -> None:
    command = "accelerate launch --config_file fsdp.yaml sft.py --model_name_or_path m --max_length 8"
    with pytest.raises(BadInput, match=r"--config_file: 'fsdp\.yaml': no such file next to"):
        read_text(command)
    (tmp_path / "command.sh").write_text(command)
    both = read_job([str(tmp_path / "command.sh"), str(JOBS / "accelerate_fsdp2.yaml")], {})
    assert both.fields["sharding"] == "fsdp2"


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"fp16": True}, {"mixed_precision": "fp16", "torch_dtype": "bfloat16"}),
        ({"fp16": True, "bf16": False, "dtype": None}, {"mixed_precision": "fp16", "torch_dtype": None}),
        ({"fp16": True, "bf16": None, "dtype": "half"}, {"mixed_precision": "fp16", "torch_dtype": "float16"}),
        ({"fp16": False, "bf16": True}, {"mixed_precision": "bf16"}),
        ({"bf16": False, "dtype": "torch.float16"}, {"mixed_precision": "no", "torch_dtype": "float16"}),
    ],
)
def test_float16_is_read_from_arguments(read_text, changes: dict, fields: dict) -> None:
    arguments = {key: value for key, value in {**TRL, **changes}.items() if value is not None}
    if arguments.get("fp16") and arguments.get("bf16"):
        with pytest.raises(BadInput, match="both bf16 and fp16"):
            read_text(arguments)
        return
    found = read_text(arguments).fields
    assert {field: found.get(field) for field in fields} == fields


def test_float16_is_read_from_launchers_and_deepspeeds_config(read_text, tmp_path: Path) -> None:
    accelerate = read_text({"distributed_type": "FSDP", "mixed_precision": "fp16"})
    assert accelerate.fields["mixed_precision"] == "fp16"
    exported = "export ACCELERATE_MIXED_PRECISION=fp16\n"
    command = "accelerate launch sft.py --model_name_or_path m --max_length 8"
    assert read_text(exported + command).fields["mixed_precision"] == "fp16"
    deepspeed = read_text({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}, "bf16": {"enabled": False}})
    assert (deepspeed.fields["mixed_precision"], deepspeed.fields["sharding"]) == ("fp16", "zero2")


@pytest.mark.parametrize(
    ("config", "sharding"),
    [
        ({}, "fsdp1"), ({"fsdp_sharding_strategy": 1}, "fsdp1"),
        ({"fsdp_sharding_strategy": "SHARD_GRAD_OP"}, "fsdp1_shard_grad_op"),
        ({"fsdp_sharding_strategy": 2}, "fsdp1_shard_grad_op"),
        ({"fsdp_sharding_strategy": "HYBRID_SHARD"}, "fsdp1_hybrid_shard"),
        ({"fsdp_sharding_strategy": "5", "fsdp_version": 1}, "fsdp1_hybrid_shard_zero2"),
        ({"fsdp_reshard_after_forward": "SHARD_GRAD_OP"}, "fsdp1_shard_grad_op"),
        ({"fsdp_version": 2, "fsdp_reshard_after_forward": False}, "shard_grad_op"),
        ({"fsdp_version": 2, "fsdp_reshard_after_forward": True}, "fsdp2"),
        ({"fsdp_version": 2, "fsdp_sharding_strategy": "SHARD_GRAD_OP"}, "fsdp2"),  # accelerate does not read it then
    ],
)  # fmt: skip
def test_the_strategy_of_fsdp_is_read_as_accelerate_reads_it(read_text, config, sharding) -> None:
    assert read_text({"distributed_type": "FSDP", "fsdp_config": config}).fields["sharding"] == sharding


@pytest.mark.parametrize(
    ("fsdp", "version", "sharding"),
    [
        ("shard_grad_op", 1, "fsdp1_shard_grad_op"), ("shard_grad_op auto_wrap", 2, "shard_grad_op"),
        ("hybrid_shard", 1, "fsdp1_hybrid_shard"), ("auto_wrap hybrid_shard_zero2", 1, "fsdp1_hybrid_shard_zero2"),
    ],
)  # fmt: skip
def test_the_strategy_of_the_trainers_argument_is_read(read_text, fsdp, version, sharding) -> None:
    job = read_text({**TRL, "fsdp": fsdp, "fsdp_config": {"version": version}})
    assert job.fields["sharding"] == sharding


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"fsdp": "hybrid_shard", "fsdp_config": {"version": 2}}, "--sharding fsdp1_hybrid_shard"),
        ({"fsdp": True, "fsdp_config": {"version": 1, "reshard_after_forward": False}}, "accelerate refuses"),
    ],
)
def test_a_strategy_that_the_version_of_fsdp_does_not_have_is_refused(read_text, files, said) -> None:
    with pytest.raises(BadInput, match=said):
        read_text({**TRL, **files})


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim", "adamw_torch_8bit"), ("deepspeed", "ds_config.json"),
        ("attn_implementation", "eager"), ("max_length", None), ("dtype", "float64"),
        ("fsdp", "no_shard"), ("fsdp", "full_shard shard_grad_op"),
        ("parallelism_config", {"cp_size": 2}), ("lora_modules_to_save", ["norm"]), ("loss_type", "dft"),
        ("lora_target_modules", ".*_proj"), ("accelerate_config", "zero4"), ("torch_compile", True),
        ("bnb_4bit_quant_type", "fp4"), ("lora_dropout", "much"), ("per_device_train_batch_size", 0),
        ("fast_kernels", ["True", "True", "True"]), ("model_name_or_path", "$MODEL"),
    ],
)  # fmt: skip
def test_an_argument_that_matters_and_is_not_covered_is_refused(read_text, tmp_path: Path, key: str, value) -> None:
    with pytest.raises(BadInput) as refused:
        read_text({**{k: v for k, v in TRL.items() if k != key}, key: value})
    assert str(refused.value).startswith(f"{tmp_path / 'job'}:1 {key}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distributed_type", "XLA"),
        ("deepspeed_config", {"offload_param_device": "nvme"}),
        ("mixed_precision", "fp8"), ("fsdp_config", {"fsdp_activation_checkpointing_offload": True}), ("use_cpu", True),
        ("fsdp_config", {"fsdp_sharding_strategy": "NO_SHARD"}), ("fsdp_config", {"fsdp_sharding_strategy": 3}),
        ("fsdp_config", {"fsdp_reshard_after_forward": 4}), ("fsdp_config", {"fsdp_version": 3}),
        ("fsdp_config", {"fsdp_auto_wrap_policy": "NO_WRAP"}), ("dynamo_config", {"dynamo_backend": "INDUCTOR"}),
        ("parallelism_config", {"parallelism_config_tp_size": 2}),
        ("parallelism_config", {"parallelism_config_cp_size": 2}),
    ],
)  # fmt: skip
def test_a_setting_of_accelerate_that_is_not_covered_is_refused(read_text, tmp_path: Path, key: str, value) -> None:
    with pytest.raises(BadInput) as refused:
        read_text({"distributed_type": "FSDP", key: value})
    place = f"{key}.{next(iter(value))}" if isinstance(value, dict) else key
    assert str(refused.value).startswith(f"{tmp_path / 'job'}:1 {place}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("plugins", ["axolotl.integrations.kd.KDPlugin"]),
        ("deepspeed", "deepspeed_configs/zero9.json"), ("optimizer", "muon"),
        ("gradient_checkpointing", "offload_disk"), ("activation_offloading", "disk"),
        ("context_parallel_size", 2), ("eager_attention", True), ("lora_mlp_kernel", True), ("rl", "grpo"),
        ("adapter", "llama-adapter"),
        ("gptq", True), ("flash_attn_cross_entropy", True), ("peft", {"loftq_config": {"loftq_bits": 4}}),
        ("chunked_cross_entropy", True),
    ],
)  # fmt: skip
def test_a_setting_of_axolotl_that_is_not_covered_is_refused(read_text, tmp_path: Path, key: str, value) -> None:
    with pytest.raises(BadInput) as refused:
        read_text({**yaml.safe_load((JOBS / "axolotl_qlora.yaml").read_text()), key: value})
    assert str(refused.value).startswith(f"{tmp_path / 'job'}:1 {key}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither settings nor a command"), ("echo hello", "neither settings nor a command"),
        ("a: [", "job:2: not YAML"), ("optim: sgd\noptim: adafactor\n", "job:2: the key 'optim' is repeated"),
        ("trl sft --optim sgd\ntrl sft --optim adafactor\n", r"2 commands start a training \(lines 1, 2\)"),
        ("trl sft --optim 'sgd", "not a command line"), ("deepspeed train.py --model_name_or_path m", "DeepSpeed"),
        ('{"optim": "sgd", "optim": "adafactor"}', "job:1: the key 'optim' is repeated"),
        ("optim: &a {b: *a}\n", r"alias \*a is inside of what it refers to"),
        ("optim: 2024-99-99\n", "job:1 optim: '2024-99-99'"),
        ("accelerate launch --new_flag train.py --optim sgd", "the launched script is not certain"),
        ("trl sft --use_peft \\ # why\n--optim sgd", "--optim: an option without a command"),
        ("zero_optimization: {stage: 4}\n", "DeepSpeed has stages 0 to 3"),
        ("load_in_4bit: true\nuse_peft: false\n", "a quantized base without adapters"),
        ("kind: Pod\napiVersion: v1\n", "RayJob, JobSet, LeaderWorkerSet, has Pod"),
        ("kind: TrainJob\napiVersion: trainer.kubeflow.org/v2\n", "apiVersion: 'trainer.kubeflow.org/v2'"),
        ("kind: TrainJob\napiVersion: trainer.kubeflow.org/v1alpha1\n", "it has no command; give --model-name,"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_job_is_refused(read_text, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_text(text)


def test_a_missing_sequence_length_is_an_error_that_names_the_option() -> None:
    with pytest.raises(ValueError, match="tokens_per_sample: is required"):
        stack_of("trainer_arguments.json", model_name="llama3.1-8b", method="full")


# --- whatever the order -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.randoms(use_true_random=False), st.sampled_from(["trl_lora.yaml", "axolotl_qlora.yaml", "accelerate_fsdp2.yaml"])
)
def test_the_order_of_keys_changes_nothing(tmp_path_factory, shuffle: random.Random, name: str) -> None:
    items = list(yaml.safe_load((JOBS / name).read_text()).items())
    shuffle.shuffle(items)
    path = tmp_path_factory.mktemp("order") / "job"
    path.write_text(yaml.safe_dump(dict(items), sort_keys=False))
    assert read_job([str(path)], {}).fields == fields(name)


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False))
def test_the_order_of_arguments_changes_nothing(tmp_path_factory, shuffle: random.Random) -> None:
    options = [f"--{key} {value}" for key, value in TRL.items()]
    shuffle.shuffle(options)
    path = tmp_path_factory.mktemp("order") / "job"
    path.write_text(f"trl sft {' '.join(options)}\n")
    assert read_job([str(path)], {}).fields == fields("trl_lora.yaml")


@settings(deadline=None, max_examples=200)
@given(st.text(min_size=1) | st.sampled_from(["adamw_torch_8bit", "lion_8bit", "adamw", "sgd_", "paged_adamw_32bit"]))
def test_an_optimizer_that_is_not_in_the_table_never_passes(tmp_path_factory, optimizer: str) -> None:
    known = job_keys().dialects["arguments"].keys["optim"].values
    if " ".join(optimizer.casefold().replace(",", " ").split()) in known:
        return
    path = tmp_path_factory.mktemp("optim") / "job"
    path.write_text(json.dumps({**TRL, "optim": optimizer}))
    with pytest.raises(BadInput, match=r"job(:\d+)? optim: "):
        read_job([str(path)], {})


WORDS = [
    "accelerate", "launch", "trl", "sft", "torchrun", "python", "-m", "tuning.sft_trainer", "train.py", "--optim",
    "sgd", "--model_name_or_path", "m", "--max_length", "8", "--use_peft", "--use_fsdp", "'", "\n", ";", "&&", "> x",
    "$X", "\\\n", "A=b", "bash", "-c", "'trl sft --optim sgd'", "--gradient_checkpointing_kwargs", "'{'",
    "--no_packing", "=", "--", "-",
]  # fmt: skip
ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "$X", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
ANY_KEY = st.text(max_size=8) | st.sampled_from(
    [key for dialect in job_keys().dialects.values() for key in dialect.keys]
    + ["kind", "apiVersion", "spec", "fsdp_config"]
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(ANY_KEY, ANY_VALUE, max_size=5))
def test_any_settings_are_read_or_refused(tmp_path_factory, document: dict) -> None:
    path = tmp_path_factory.mktemp("any") / "job"
    path.write_text(json.dumps(document))
    try:
        job = read_job([str(path)], {})
    except BadInput as error:
        without_place = ("4-bit base", "gradient_checkpointing", "is missing")  # about what no file has
        assert any(words in str(error) for words in (str(path), *without_place))
    else:
        assert set(job.fields) <= set(Workload.model_fields)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=40))
def test_any_command_is_read_or_refused(tmp_path_factory, command: str) -> None:
    path = tmp_path_factory.mktemp("any") / "job"
    path.write_text(command, encoding="utf-8")
    with suppress(BadInput):
        assert set(read_job([str(path)], {}).fields) <= set(Workload.model_fields)


def paths_in(value, path: tuple = ()):
    """The places in nested settings."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*path, key))


@pytest.mark.long
@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["pytorchjob.yaml", "pytorchjob_configmap.yaml", "trainjob.yaml"]), st.data())
def test_a_manifest_with_anything_anywhere_is_read_or_refused(tmp_path_factory, name: str, data: st.DataObject) -> None:
    *others, job = yaml.safe_load_all((JOBS / name).read_text())
    *path, last = data.draw(st.sampled_from([path for path in paths_in(job) if path]))
    place = copy.deepcopy(job)
    job = place
    for key in path:
        place = place[key]
    place[last] = data.draw(ANY_VALUE)
    text = yaml.safe_dump_all([*others, job])
    file = tmp_path_factory.mktemp("any") / "job"
    file.write_text(text)
    with suppress(BadInput):
        assert set(read_job([str(file)], {}).fields) <= set(Workload.model_fields)
    with suppress(BadInput):
        assert patched([(str(file), text)], Layout(2, 2)) != text


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_values_in_the_table_are_valid_field_values() -> None:
    for dialect in job_keys().dialects.values():
        for key in dialect.keys.values():
            for facts in key.values.values():
                for field, value in facts.items():
                    if field in Workload.model_fields:
                        assert read(field, value) == value
    assert {framework.preset for framework in job_keys().frameworks.values()} <= set(presets())


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_defaults_count_only_where_the_file_is_provably_the_trainers(read_text) -> None:
    common = {"model_name_or_path": "m", "dataset_name": "d", "max_seq_length": 8, "bf16": True, "learning_rate": 1e-5}
    assert "method" not in read_text(common).fields
    assert read_text({**common, "packing": True}).fields["method"] == "full"
    assert "method" not in read_text({**common, "packing": True, "lora_alpha": 16, "lora_r": 8}).fields


@pytest.mark.parametrize("key", ["use_flash_attn", "base_model", "training_data_path", "experiment_name"])
def test_one_more_key_changes_nothing(read_text, key: str) -> None:
    assert read_text({**TRL, key: "x" if key != "use_flash_attn" else True}).fields == read_text(TRL).fields


@pytest.mark.parametrize(
    ("key", "option"),
    [
        ("block_size", "tokens_per_sample"), ("train_bs", "batch_size"), ("peft_lora_rank", "lora_r"),
        ("use_4bit_quantization", "method"), ("compute_precision", "torch_dtype"), ("tensor_parallel", "sharding"),
        ("cpu_offload", "offload"), ("activation_recompute", "gradient_checkpointing"),
    ],
)  # fmt: skip
def test_an_unknown_key_about_memory_stops_until_an_option_settles_it(read_text, key: str, option: str) -> None:
    with pytest.raises(BadInput, match=f"job:1 {key}: .*--{option.replace('_', '-')}"):
        read_text({**TRL, key: 4})
    values = {"method": "qlora", "torch_dtype": "bfloat16", "sharding": "fsdp2", "gradient_checkpointing": "none"}
    values["offload"] = "optimizer"
    assert read_text({**TRL, key: 4}, **{option: values.get(option, 4)}).fields["model_name"]

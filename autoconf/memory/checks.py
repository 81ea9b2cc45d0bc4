"""Settings of a training stack that do not work together, or whose memory is not counted."""

from __future__ import annotations

from collections.abc import Mapping

from autoconf.jobs.lora_layers import as_text
from autoconf.jobs.names import listed
from autoconf.jobs.stack import Stack
from autoconf.memory.sharding import Strategy
from autoconf.memory.store import ModelsTable
from autoconf.memory.towers import Tower
from autoconf.memory.units import Unsupported
from autoconf.memory.ways import targets_of, upcast_of
from autoconf.memory.zero_job import ZERO

# Models whose experts are linear layers in transformers 4.50.3, and which were compared with it.
LINEAR_EXPERTS = ("mixtral-8x22b-v0.1", "mixtral-8x7b-instruct-v0.1", "olmoe-1b-7b")


def check_settings(table: ModelsTable, model: str, method: str, stack: Stack, strategy: Strategy) -> None:
    """Check that the memory of a job can be composed.

    Args:
        table: the profiles of models.
        model: a model of the table.
        method: ``full``, ``lora`` or ``qlora``.
        stack: the training stack.
        strategy: how the GPUs share the job.

    Raises:
        Unsupported: settings do not work together, or are not counted; the message names them.
    """
    _check_upcast(stack, strategy)
    _check_sharding(table, model, method, stack, strategy)
    _check_offload(stack, strategy)
    _check_attention(stack)
    _check_kept(stack)
    _check_trained(stack, strategy)
    _check_dora(stack, strategy)
    _check_offloaded(stack, strategy)
    _check_layers(stack, strategy)
    _check_experts(model, stack, strategy)


def _check_upcast(stack: Stack, strategy: Strategy) -> None:
    if upcast_of(stack, strategy) != "none" and stack.mixed_precision == "no":
        settings = f"upcast_unquantized {stack.upcast_unquantized!r} with mixed_precision 'no'"
        raise Unsupported([settings], ": it is known with mixed_precision 'bf16'")


def _check_sharding(table: ModelsTable, model: str, method: str, stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if the settings of a job do not work together under a strategy."""
    targets = targets_of(stack, method)
    if problem := table.problem(model, (method, targets, strategy)):
        raise Unsupported([f"sharding {strategy!r} with lora_targets {targets!r} of {model}"], f": {problem}")
    if strategy in ZERO and stack.mixed_precision == "no" and stack.torch_dtype != "float32":
        # deepspeed/runtime/engine.py, get_data_types: without bf16 or fp16 it takes the model for a float32 one.
        needed = "bf16" if stack.torch_dtype == "bfloat16" else "fp16"
        raise Unsupported(
            [f"sharding {strategy!r} with torch_dtype {stack.torch_dtype!r} and mixed_precision 'no'"],
            f": DeepSpeed trains in {stack.torch_dtype} with mixed_precision {needed!r}",
        )
    if stack.optim == "adafactor" and strategy == "fsdp2":
        # transformers/optimization.py, Adafactor.step mixes its plain states with FSDP2's distributed tensors.
        raise Unsupported(["optim 'adafactor' with sharding 'fsdp2'"], ": it does not step over distributed tensors")


def _check_attention(stack: Stack) -> None:
    """Raise ``Unsupported`` if attention holds its scores."""
    if stack.attention == "eager":
        # transformers/models/llama/modeling_llama.py, eager_attention_forward: scores, and float32 probabilities.
        raise Unsupported(
            ["attention 'eager'"],
            ": it holds scores of samples x heads x tokens x tokens, which are not counted; give flash or sdpa",
        )


def _check_kept(stack: Stack) -> None:
    """Raise ``Unsupported`` if FSDP would keep the parameters of a reference model whole, too."""
    if stack.keeps_gathered and stack.objective != "sft":
        raise Unsupported(
            [f"objective {stack.objective!r} with fsdp_strategy {stack.fsdp_strategy!r}"],
            ": what several forward passes keep gathered is not counted; give sharding fsdp1 or fsdp2",
        )


def _check_offload(stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if an optimizer does not step over parameters that are on the host."""
    # accelerate/accelerator.py, _prepare_deepspeed, replaces all optimizers by DeepSpeed's for the CPU.
    if stack.offload != "none" and strategy in ("fsdp1", "fsdp2") and "bit" in stack.optim:
        settings = f"optim {stack.optim!r} with offload {stack.offload!r} and sharding {strategy!r}"
        raise Unsupported([settings], ": bitsandbytes steps over parameters on the GPU")


def _check_trained(stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if embeddings or a head are trained in a way that was not compared with PEFT."""
    if stack.trained_modules == "none":
        return
    others = {
        "fsdp_strategy": strategy in ("fsdp1", "fsdp2") and stack.fsdp_strategy != "full_shard",
        "offload": stack.offload != "none",
        "objective": stack.objective != "sft",
        "quantization": stack.quantization not in ("none", "nf4", "nf4_single"),
    }
    why = ": copies of embeddings and head were compared with PEFT's on one GPU and under ddp, fsdp1 and fsdp2 only"
    _refuse_with(stack, f"trained_modules {stack.trained_modules!r}", others, why)


def _check_dora(stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if DoRA runs in a way that was not compared with PEFT."""
    if not stack.use_dora:
        return
    # peft 0.21.2, tuners/lora/dora.py, get_lora_weight: lora_A.weight.shape[1], outside of lora_A's own forward pass.
    flat = "PEFT reads the shape of weights that FSDP1 holds flat (use_orig_params) and stops with an IndexError"
    _refuse_with(stack, "use_dora", {"sharding": strategy == "fsdp1"}, f": {flat}; give sharding fsdp2")
    others = {
        "sharding": strategy in ZERO,
        "fsdp_strategy": strategy == "fsdp2" and stack.fsdp_strategy != "full_shard",
        "offload": stack.offload != "none",
        "objective": stack.objective != "sft",
        "quantization": stack.quantization not in ("none", "nf4", "nf4_single"),
    }
    why = ": DoRA was compared with PEFT's on one GPU and under ddp and fsdp2 only; give sharding ddp or fsdp2"
    _refuse_with(stack, "use_dora", others, why)


def _check_offloaded(stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if inputs of layers are offloaded in a way that was not compared with traces."""
    if stack.gradient_checkpointing != "offloaded":
        return
    others = {
        "sharding": strategy in ZERO,
        "objective": stack.objective != "sft",
        "lora_layers": bool(stack.lora_layers),
    }
    why = ": checkpoints on the host were compared on one GPU and under ddp, fsdp1 and fsdp2, with objective sft only"
    _refuse_with(stack, "gradient_checkpointing 'offloaded'", others, why)


def _check_experts(model: str, stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if experts are quantized in a way that was not compared with transformers 4."""
    if stack.quantization != "nf4_experts":
        return
    if model not in LINEAR_EXPERTS:
        raise Unsupported(
            [f"quantization 'nf4_experts' of {model}"],
            f": experts quantized one by one were compared for {listed(LINEAR_EXPERTS)} only; give quantization nf4",
        )
    others = {
        "sharding": strategy not in ("none", "ddp", "fsdp2"),
        "gradient_checkpointing": stack.gradient_checkpointing not in ("reentrant", "non-reentrant"),
        "lora_targets": stack.lora_targets not in ("default", "attention"),
        "objective": stack.objective != "sft",
        "offload": stack.offload != "none",
    }
    why = (
        ": experts quantized one by one were compared with gradient checkpointing and adapters on attention, on one "
        "GPU and under ddp and fsdp2 only"
    )
    _refuse_with(stack, "quantization 'nf4_experts'", others, why)


def _check_layers(stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if some of the layers have adapters in a way that is not counted."""
    if stack.lora_layers:
        others = {
            "sharding": strategy in ZERO,
            "fsdp_strategy": stack.keeps_gathered and strategy in ("fsdp1", "fsdp2"),
        }
        why = ": when layers before the first one with adapters are released is not known; give sharding fsdp1 or fsdp2"
        _refuse_with(stack, f"lora_layers {as_text(stack.lora_layers)!r}", others, why)


def check_tower(tower: Tower, model: str, method: str, stack: Stack, strategy: Strategy) -> None:
    """Check that the memory of a job with a vision tower can be composed; the rest is as in ``check_settings``."""
    if strategy in ZERO:
        raise Unsupported(
            [f"sharding {strategy!r} of {model}"],
            ": what DeepSpeed holds of a vision tower is not counted; give sharding ddp, fsdp1 or fsdp2",
        )
    if strategy in ("fsdp1", "fsdp2") and method != "lora":
        raise Unsupported(
            [f"method {method!r} of {model} with sharding {strategy!r}"],
            ": only LoRA was compared with a traced vision-language model under FSDP; give sharding ddp",
        )
    others = {
        "fsdp_strategy": strategy in ("fsdp1", "fsdp2") and stack.fsdp_strategy != "full_shard",
        "objective": stack.objective != "sft",
        "offload": stack.offload != "none",
        "quantization": stack.quantization not in ("none", "nf4", "nf4_single"),
        "trained_modules": stack.trained_modules != "none",
        "use_dora": stack.use_dora,
        "lora_layers": bool(stack.lora_layers),
        "gradient_checkpointing": stack.gradient_checkpointing == "offloaded",
        "kernels": bool(stack.kernels),
    }
    _refuse_with(stack, model, others, ": this was not compared with a traced vision-language model")
    targets = [stack.lora_targets] if isinstance(stack.lora_targets, str) else stack.lora_targets
    reach = [name for name in targets if name == "all-linear" or name.rpartition(".")[2] in tower.modules]
    if method != "full" and reach and not stack.tower_apart:
        raise Unsupported(
            [f"lora_targets {','.join(targets)!r} of {model}"],
            f": PEFT finds {','.join(reach)} in the vision tower too, and adapters there are not counted; give modules "
            "that the language model alone has, such as q_proj,k_proj,v_proj,o_proj",
        )


def _refuse_with(stack: Stack, setting: str, others: Mapping[str, bool], why: str) -> None:
    """Raise ``Unsupported`` if a setting does not work with one of others; the message names their values."""
    settings = [f"{name} {getattr(stack, name)!r}" for name, excluded in others.items() if excluded]
    if settings:
        raise Unsupported([f"{setting} with {' and '.join(settings)}"], why)

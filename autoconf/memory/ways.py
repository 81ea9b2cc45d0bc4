"""The settings of a training stack that change what its code holds, as the ways under which models were traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoconf.jobs.stack import Stack, Upcast
from autoconf.memory.offloaded import SavedInputs
from autoconf.memory.profile import IN_ORDER, UPCAST_NORMS, HeadWay, LayerWay
from autoconf.memory.sharding import BytesPerParameter, Strategy
from autoconf.memory.units import Floats
from autoconf.memory.zero_job import ZERO

if TYPE_CHECKING:
    from autoconf.memory.store import ModelsTable

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # of an element

# The rules by which memory is composed. A version keeps those with which it was made.
# 4: layers before the first one with adapters keep nothing for a backward pass. 3: a head whose loss makes its gradient
# in the forward pass holds it from then on; adapters that FSDP1 keeps whole have the dtype of computation when a layer
# is recomputed. 2: loading counts under FSDP; adapters with dropout that were not traced are counted as others.
# 1: under FSDP1 and mixed precision, every adapter keeps its own copy of its input. 0: version 2.0.0.
RULES = ORDERS = 4
CHUNKS = 3
LOADS = DROPS = 2

# Dropout was not traced with adapters in bfloat16 without autocast. Those in float32 hold more: a copy of their input.
_NOT_TRACED_WITH_DROPOUT = ("bfloat16", "no", "bfloat16")
# Values whose tensors have the sizes of others, which were traced. What torch/amp/grad_scaler.py adds to autocast are
# two scalars, and the gradients are unscaled in place.
_TRACED = {"float16": "bfloat16", "fp16": "bf16", "offloaded": "non-reentrant"}


def layer_way(stack: Stack, method: str, *, several: bool, rules: int = RULES) -> LayerWay:
    """The settings of a stack that change the memory of decoder layers.

    Args:
        stack: the training stack.
        method: ``full``, ``lora`` or ``qlora``.
        several: whether several GPUs train, or one.
        rules: the rules by which memory is composed, up to ``RULES``.

    >>> layer_way(Stack(sharding="fsdp2", torch_dtype="float32", mixed_precision="bf16"), "full", several=True)
    ... # doctest: +NORMALIZE_WHITESPACE
    LayerWay(method='full', torch_dtype='bfloat16', mixed_precision='bf16', adapter_dtype='bfloat16', dropout=False,
             gradient_checkpointing='non-reentrant', lora_targets='default')
    """
    strategy, full = strategy_of(stack, several), method == "full"
    dtype = computing_dtype(stack, strategy)
    upcast = _hidden_upcast(stack, method, strategy)
    alone = strategy == "fsdp1" and not full and stack.shard_adapters  # each adapter is a unit of its own
    # torch/distributed/fsdp/_runtime_utils.py, _post_forward_reshard: those that are kept are in 16 bits from then on.
    # With dropout that was composed up to 1.8 % too low, so their float32 copies count there.
    recomputes = stack.gradient_checkpointing != "none" and stack.lora_dropout == 0
    kept = rules >= CHUNKS and stack.keeps_gathered and recomputes
    if rules >= 1 and alone and not kept and computes_in_16_bits(stack, strategy):
        # peft/tuners/tuners_utils.py, _cast_input_dtype: an adapter casts its input to the dtype of its weights. FSDP1
        # wraps each adapter (peft/utils/other.py, fsdp_auto_wrap_policy), so they are still float32 then.
        adapter_dtype = "float32"
    elif full or dtype == "float32" or computes_in_16_bits(stack, strategy):
        adapter_dtype = dtype
    else:
        adapter_dtype = _TRACED.get(stack.adapter_dtype, stack.adapter_dtype)
    # trl v1.9.0, trl/trainer/dpo_config.py and its like: disable_dropout is true; llamafactory/train/rm lacks it.
    drops = stack.objective == "sft" or (stack.losses, stack.objective) == ("llama-factory", "reward")
    dropout = not full and stack.lora_dropout > 0 and drops
    if rules >= DROPS and dropout and (dtype, _autocast(stack, strategy), adapter_dtype) == _NOT_TRACED_WITH_DROPOUT:
        adapter_dtype = "float32"
    return LayerWay(
        method=method,
        # Hidden states are float32 as soon as norms are.
        torch_dtype=dtype if upcast == "none" else "float32",
        mixed_precision=_autocast(stack, strategy),
        adapter_dtype=adapter_dtype,
        dropout=dropout,
        gradient_checkpointing=_TRACED.get(stack.gradient_checkpointing, stack.gradient_checkpointing),
        lora_targets=targets_of(stack, method),
    )


def moments_of_layers(table: ModelsTable, model: str, stack: Stack, way: LayerWay, rules: int) -> Floats | None:
    """The moments of a model's layers, without inputs of layers that are on the host.

    If known, they are those in which layers before the first adapter keep nothing.

    Args:
        table: the profiles of models.
        model: a model of the table.
        stack: the training stack; beside modules that it trains whole, all layers are counted alike.
        way: how the layers run.
        rules: the rules by which memory is composed.
    """
    in_order = None
    if rules >= ORDERS and stack.trained_modules == "none":
        in_order = table.moments(model, way._replace(lora_targets=way.lora_targets + IN_ORDER))
    found = table.moments(model, way) if in_order is None else in_order
    if found is None or stack.gradient_checkpointing != "offloaded":
        return found
    return SavedInputs.of(table, model, found).on_host(found)


def head_way(stack: Stack, method: str, *, several: bool) -> HeadWay:
    """The settings of a stack that change the memory of head and loss; arguments as in ``layer_way``.

    >>> head_way(Stack(loss="chunked"), "lora", several=False)
    HeadWay(trains=False, torch_dtype='bfloat16', mixed_precision='no', loss='chunked')
    """
    strategy, trains = strategy_of(stack, several), method == "full" or stack.trains_head
    # A trained head behind float32 norms was not traced; one that is float32 itself holds more.
    norms = "float32" if trains else UPCAST_NORMS
    dtype = {"none": computing_dtype(stack, strategy), "norms": norms, "all": "float32"}
    return HeadWay(trains, dtype[_hidden_upcast(stack, method, strategy)], _autocast(stack, strategy), stack.loss)


def upcast_of(stack: Stack, strategy: Strategy) -> Upcast:
    """Which parameters are float32 that were loaded in bfloat16 and are not quantized."""
    # trl/models/utils.py, prepare_peft_model, and axolotl/loaders/model.py omit it if FSDP shards a 4-bit model.
    # deepspeed/runtime/engine.py, _cast_module_mixed_precision, makes all of them bfloat16 again.
    return stack.upcast_unquantized if strategy in ("none", "ddp") else "none"


def _hidden_upcast(stack: Stack, method: str, strategy: Strategy) -> Upcast:
    """As parameters of which kind are float32 hidden states are."""
    upcast = upcast_of(stack, strategy)
    # peft/tuners/lora/bnb.py, Linear4bit.forward: under autocast DoRA's float32 output is not cast back, and a 4-bit
    # layer without adapters returns the dtype of its input.
    dora = stack.use_dora and method == "qlora" and _autocast(stack, strategy) != "no"
    return "norms" if dora and upcast == "none" else upcast


def strategy_of(stack: Stack, several: bool) -> Strategy:
    """How a GPU trains. A single GPU has nothing to share, but DeepSpeed runs, and FSDP2 offloads, on it as well."""
    # torch/distributed/fsdp/_init_utils.py, _init_process_group_state: FSDP1 does not shard on a single GPU.
    alone = stack.sharding in ZERO or (stack.offload != "none" and stack.sharding == "fsdp2")
    return stack.sharding if several or alone else "none"


def computes_in_16_bits(stack: Stack, strategy: Strategy) -> bool:
    """Whether FSDP gathers parameters, or DeepSpeed casts them, to the dtype of mixed precision."""
    return strategy in ("fsdp1", "fsdp2", *ZERO) and stack.mixed_precision != "no"


def becomes_float32(stack: Stack, method: str, strategy: Strategy) -> bool:
    """Whether trainable parameters become float32 that were loaded in another dtype."""
    # accelerate/accelerator.py, prepare_model, and utils/fsdp_utils.py, fsdp2_prepare_model: not under FSDP2 with 4-bit
    # layers.
    return computes_in_16_bits(stack, strategy) and (strategy == "fsdp1" or (strategy == "fsdp2" and method != "qlora"))


def computing_dtype(stack: Stack, strategy: Strategy) -> str:
    """The dtype of computation, as it was traced."""
    return "bfloat16" if computes_in_16_bits(stack, strategy) or stack.torch_dtype != "float32" else "float32"


def bytes_per_parameter(stack: Stack, method: str, strategy: Strategy) -> BytesPerParameter:
    """The bytes of a parameter as it is stored, and as it computes."""
    mixes = computes_in_16_bits(stack, strategy)
    if strategy in ZERO:
        # deepspeed/runtime/engine.py, _cast_module_mixed_precision: all parameters.
        itemsize = BYTES[computing_dtype(stack, strategy)]
        return BytesPerParameter(itemsize, itemsize, itemsize, itemsize)
    frozen = BYTES[stack.torch_dtype]
    adapters = BYTES[stack.adapter_dtype]
    stored = {"full": frozen, "lora": max(frozen, adapters), "qlora": adapters}[method]
    return BytesPerParameter(
        frozen=frozen,
        trainable=4 if becomes_float32(stack, method, strategy) else stored,
        frozen_computing=BYTES[computing_dtype(stack, strategy)],
        trainable_computing=2 if mixes else stored,
    )


def _autocast(stack: Stack, strategy: Strategy) -> str:
    # accelerate/accelerator.py, Accelerator.__init__: native_amp is off under DeepSpeed.
    return "no" if strategy in ZERO else _TRACED.get(stack.mixed_precision, stack.mixed_precision)


def targets_of(stack: Stack, method: str) -> str:
    return "default" if method == "full" else str(stack.lora_targets)

"""Unknown keys whose names suggest an effect on memory, with the options to give instead."""

from __future__ import annotations

import re
from typing import NamedTuple

_EVALUATION = {
    "eval",
    "evaluation",
    "val",
    "valid",
    "validation",
    "test",
    "generation",
    "inference",
    "predict",
    "generate",
    "new",
}  # max_new_tokens
_HARMLESS = {"dir", "path", "file", "name", "id", "url", "column", "col", "seed", "split", "special", "pad"}
_HARMLESS_OF_ADAPTERS = {"alpha", "bias"}

_SAVING = {
    "checkpointing",
    "steps",
    "strategy",
    "interval",
    "every",
    "limit",
    "total",
}  # checkpoints as files, not of activations
_PARTLY = {"spectrum", "unfrozen", "unfreeze"}


class Concern(NamedTuple):
    """The possible effect of a key, and the options of which any one replaces it."""

    what: str
    options: tuple[str, ...]


_LENGTH = Concern("the length of samples", ("tokens_per_sample",))
_BATCH = Concern("the batch", ("per_device_train_batch_size", "batch_size"))
_STEPS = Concern("the accumulation of gradients", ("gradient_accumulation_steps",))
_METHOD = Concern("the trained parameters", ("method",))
_RANK = Concern("LoRA's rank", ("lora_r",))
_TARGETS = Concern("LoRA's modules", ("lora_targets",))
_DROPOUT = Concern("LoRA's dropout", ("lora_dropout",))
_BITS = Concern("the quantization of the base", ("method",))
_PRECISION = Concern("the precision", ("torch_dtype", "mixed_precision"))
_PARALLEL = Concern("how GPUs share the model", ("sharding",))
_OFFLOAD = Concern("offloading", ("offload",))
_CHECKPOINTING = Concern("activation checkpointing", ("gradient_checkpointing",))
_OPTIMIZER = Concern("the optimizer", ("optim",))
_IMAGES = Concern("a vision tower", ("image_tokens",))

_ADAPTER_WORDS = {
    "lora", "qlora", "peft", "adapter", "adapters", "dora", "ia3", "freeze", "frozen", "unfreeze", "trainable", "tuner",
    "finetuning", "finetune", "galore", "loftq", "unsloth",
}  # fmt: skip
_CONCERNS: tuple[tuple[Concern, set[str]], ...] = (
    (_OFFLOAD, {"offload", "offloading", "offloaded"}),
    (_CHECKPOINTING, {"checkpointing", "recompute", "recomputation", "remat", "gc", "reentrant"}),
    (_PARALLEL, {"parallel", "parallelism", "fsdp", "zero", "zero2", "zero3", "deepspeed", "megatron", "shard",
                 "sharding", "sharded", "ulysses", "tp", "pp", "cp", "sp", "ep"}),
    (_STEPS, {"accumulation", "accum", "accumulate"}),
    (_BATCH, {"batch", "batchsize", "bs", "bsz", "microbatch", "minibatch"}),
    (_LENGTH, {"length", "len", "maxlen", "seqlen", "seq", "sequence", "tokens", "context", "ctx", "block", "cutoff"}),
    (_METHOD, _ADAPTER_WORDS),
    (_BITS, {"bit", "bits", "4bit", "8bit", "bnb", "bitsandbytes", "nf4", "fp4", "int4", "int8", "gptq", "awq", "hqq",
             "quant", "quantize", "quantized", "quantization", "quantisation"}),
    (_PRECISION, {"precision", "dtype", "fp16", "bf16", "fp32", "fp8", "float16", "bfloat16", "float32", "half",
                  "amp"}),
    (_OPTIMIZER, {"optim", "optimizer"}),
    (_IMAGES, {"vision", "visual", "mm"}),  # of LLaVA and those that follow it: vision_tower, mm_projector_type
)  # fmt: skip


# Values that name how GPUs share the model, of a key of any name, such as strategy=deepspeed.
_SHARDING = re.compile(
    r"(deepspeed|fsdp2?|zero[-_ ]?[123]|(deepspeed|ds)[-_ ]?(stage|zero|z)[-_ ]?[123])([-_ ]offload)?"
)


def names_sharding(value: object) -> bool:
    """Whether the value of an unknown key names how GPUs share the model.

    >>> [names_sharding(value) for value in ("deepspeed", "deepspeed_stage_3", "run-deepspeed", 8)]
    [True, True, False, False]
    """
    return isinstance(value, str) and _SHARDING.fullmatch(value.casefold()) is not None


def concern(key: str) -> Concern | None:
    """The possible effect on memory of an unknown key, by the words of its name.

    >>> concern("block_size"), concern("peft_lora_r").what, concern("double_quant").options, concern("run_id")
    (Concern(what='the length of samples', options=('tokens_per_sample',)), "LoRA's rank", ('method',), None)
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.casefold()) if word]
    found = set(words)
    if found & _PARTLY:
        return _METHOD
    harmless = _HARMLESS_OF_ADAPTERS if found & _ADAPTER_WORDS else _HARMLESS
    if (found <= _SAVING and found != {"checkpointing"}) or found & _EVALUATION or found & harmless:
        return None
    if "checkpoint" in found and found & {"activation", "activations", "gradient", "grad"}:
        return _CHECKPOINTING
    if "ckpt" in found and found & {"activation", "act", "gradient", "grad"}:
        return _CHECKPOINTING
    if {"load", "in"} <= found:
        return _BITS
    if found & _ADAPTER_WORDS and "dropout" in found:
        return _DROPOUT
    if found & _ADAPTER_WORDS and found & {"r", "rank", "dim"}:
        return _RANK
    if found & _ADAPTER_WORDS and found & {"target", "targets", "modules", "layers"}:
        return _TARGETS
    return next((known for known, names in _CONCERNS if found & names), None)

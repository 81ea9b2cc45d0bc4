"""The training stack of a job: its settings, named as in the Hugging Face libraries, in one object.

Whether a job fits depends on its stack. The effect of each setting on memory is defined in one place: in
``autoconf.memory`` if the setting only scales bytes, in ``autoconf.pipeline`` if it changes which tensors the
training code holds.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["bfloat16", "float16", "float32"]
Optim = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd", "adamw_8bit",
    "paged_adamw_32bit", "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit",
]  # fmt: skip
# offloaded: recomputed as by non-reentrant, with the inputs of the layers in the memory of the host.
Checkpointing = Literal["none", "reentrant", "non-reentrant", "offloaded"]
MixedPrecision = Literal["no", "bf16", "fp16"]
Loss = Literal["full", "chunked"]
# How the frozen base of qlora is quantized; nf4_single without, nf4 with double quantization, nf4_experts with experts.
Quantization = Literal["none", "nf4", "nf4_single", "nf4_experts", "int8", "gptq", "awq"]
# Which parameters of a quantized base that are not quantized become float32 before training.
Upcast = Literal["none", "norms", "all"]
Sharding = Literal["ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"]
# What FSDP shards, by the names of FSDP1 (torch/distributed/fsdp/api.py, ShardingStrategy), and among which GPUs. The
# strategies with zero2 and shard_grad_op keep parameters whole from the forward to the backward pass, as FSDP2 does
# with reshard_after_forward=False.
FsdpStrategy = Literal["full_shard", "shard_grad_op", "hybrid_shard", "hybrid_shard_zero2"]
# How a job names both: a strategy of FSDP2, and with a prefix one of FSDP1.
JobSharding = Literal[
    Sharding, "shard_grad_op", "hybrid_shard", "hybrid_shard_zero2",
    "fsdp1_shard_grad_op", "fsdp1_hybrid_shard", "fsdp1_hybrid_shard_zero2",
]  # fmt: skip
# What is on the host between its uses: the optimizer's states, with gradients and the step itself, or parameters.
Offload = Literal["none", "optimizer", "parameters", "optimizer_and_parameters"]
_FSDP = ("fsdp1", "fsdp2")
_OTHER_16_BITS = (("bfloat16", "fp16"), ("float16", "bf16"))
# Who can offload it. FSDP offloads all at once; deepspeed/runtime/zero/offload_config.py: parameters only under ZeRO-3.
_OFFLOADING = {
    "optimizer": ("zero1", "zero2", "zero3"),
    "parameters": ("zero3",),
    "optimizer_and_parameters": ("zero3", "fsdp1", "fsdp2"),
}
# What a job trains, and how: supervised fine-tuning, or a loss of TRL. dpo_precomputed has the reference model's
# log-probabilities before it trains; grpo is the training step alone, without generating completions.
Objective = Literal["sft", "reward", "dpo", "dpo_precomputed", "orpo", "kto", "grpo"]
# At which micro-batch of an optimizer step gradients are reduced, hence sharded.
GradientSync = Literal["last", "every"]
# FlashAttention-2, PyTorch's scaled_dot_product_attention (its kernels hold as much), or scores as a matrix.
Attention = Literal["flash", "sdpa", "eager"]
# How the weights come to a GPU that shards them. cpu: each process loads them into the host's memory, and FSDP moves
# unit by unit. gpu: each process loads all of them on its GPU. rank0: the first process of a worker loads them, and the
# others receive them; accelerate's cpu_ram_efficient_loading.
Loading = Literal["cpu", "gpu", "rank0"]
# PyTorch's caching allocator as it is, or with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.
Allocator = Literal["default", "expandable_segments"]
LoraTargets = Literal["default", "attention", "all-linear"]
# Modules that are trained whole beside adapters: PEFT's modules_to_save with embed_tokens, lm_head, or both.
TrainedModules = Literal["none", "embeddings", "head", "embeddings_and_head"]
# Fused Triton kernels for modules of decoder layers, named as in the plugin "fast_kernels" of fms-acceleration.
Kernel = Literal["fast_loss", "fast_rms_layernorm", "fast_rope_embeddings", "fused_lora"]


def sharding_parts(sharding: str) -> tuple[str, str]:
    """Who shards, and FSDP's strategy, from what a job calls its sharding.

    >>> sharding_parts("fsdp1"), sharding_parts("hybrid_shard"), sharding_parts("fsdp1_shard_grad_op")
    (('fsdp1', 'full_shard'), ('fsdp2', 'hybrid_shard'), ('fsdp1', 'shard_grad_op'))
    """
    strategy = sharding.removeprefix("fsdp1_")
    if strategy not in get_args(FsdpStrategy):
        return sharding, "full_shard"
    return ("fsdp2" if strategy == sharding else "fsdp1"), strategy


class ZeroBuckets(BaseModel):
    """Settings of DeepSpeed's section ``zero_optimization`` that change memory, named as there.

    ``None`` is ``auto``, for which transformers fills in a value that depends on the hidden size. All sizes are numbers
    of elements; the other defaults are DeepSpeed's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reduce_bucket_size: int | None = Field(default=None, ge=1)
    stage3_prefetch_bucket_size: int | None = Field(default=None, ge=0)
    stage3_param_persistence_threshold: int | None = Field(default=None, ge=0)
    stage3_max_live_parameters: int = Field(default=1_000_000_000, ge=0)
    stage3_max_reuse_distance: int = Field(default=1_000_000_000, ge=0)
    sub_group_size: int = Field(default=1_000_000_000, ge=1)
    overlap_comm: bool = False  # its default for ZeRO-1 and 2; it has no effect on the memory of ZeRO-3


class Stack(BaseModel):
    """A training stack. The defaults are the reference workload, the only one in version 1.1.0.

    Settings that exclude each other raise a ``ValueError`` that names both.

    >>> Stack().optim, Stack(mixed_precision="bf16").mixed_precision
    ('adamw_torch', 'bf16')
    >>> Stack(quantization="nf4", torch_dtype="float32")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    pydantic_core._pydantic_core.ValidationError: 1 validation error for Stack
      Value error, quantization 'nf4' and torch_dtype 'float32' exclude each other [type=value_error, ...
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optim: Optim = Field(
        default="adamw_torch", description="optimizer by the Trainer's name; adamw_torch is the foreach implementation"
    )
    torch_dtype: Dtype = Field(default="bfloat16", description="dtype of the loaded parameters")
    mixed_precision: MixedPrecision = Field(default="no", description="the Trainer's flag bf16 or fp16")
    gradient_checkpointing: Checkpointing = Field(
        default="non-reentrant",
        description="recompute each decoder layer in the backward pass, with this implementation of torch; offloaded: "
        "with the inputs of the layers in the memory of the host, as by TRL's activation_offloading",
    )
    loss: Literal[Loss, "chunked_nll"] = Field(
        default="full",
        description="cross-entropy over all logits at once, or over chunks of tokens: fused with the head as in Liger, "
        "or TRL's chunked_nll",
    )
    sharding: Sharding = Field(
        default="fsdp2", description="data parallelism over several GPUs: replicate or shard; zero1 to zero3: DeepSpeed"
    )
    fsdp_strategy: FsdpStrategy = Field(
        default="full_shard",
        description="what FSDP shards; a job gives it as its sharding: shard_grad_op, or fsdp1_shard_grad_op for FSDP1",
    )
    gpus_per_node: int = Field(
        default=0, ge=0, description="GPUs of a worker, among which hybrid_shard shards; 0 for all GPUs of a job"
    )
    offload: Offload = Field(
        default="none",
        description="what the memory of the host holds: DeepSpeed's offload_optimizer, and offload_param under ZeRO-3; "
        "FSDP's cpu_offload is optimizer_and_parameters",
    )
    allocator: Allocator = Field(
        default="default",
        description="PyTorch's caching allocator; expandable_segments is that with "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    )
    objective: Objective = Field(
        default="sft",
        description="supervised fine-tuning, or a loss of TRL; dpo_precomputed: precompute_ref_log_probs",
    )
    losses: Literal["trl", "llama-factory"] = Field(
        default="trl", description="whose code computes the losses of objectives other than sft"
    )
    zero_buckets: ZeroBuckets = Field(default=ZeroBuckets(), description="buckets of DeepSpeed's ZeRO")
    gradient_accumulation: bool = Field(
        default=True, description="whether an optimizer step takes several micro-batches"
    )
    gradient_sync: GradientSync = Field(
        default="last",
        description="the micro-batches at which FSDP reduces gradients; every is accelerate's sync_each_batch",
    )
    attention: Attention = Field(
        default="flash", description="attention: FlashAttention-2, or PyTorch's own without a mask of padding"
    )
    loading: Loading = Field(
        default="cpu",
        description="where the weights are before FSDP shards them: in the host's memory, whole on each GPU, or in the "
        "host's memory of the first process; 4-bit weights are always loaded on the GPU",
    )
    adapter_dtype: Dtype = Field(
        default="bfloat16", description="dtype of LoRA adapters; PEFT's own default is float32"
    )
    lora_r: int = Field(default=4, ge=1, description="LoRA rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="LoRA dropout")
    lora_targets: tuple[str, ...] | LoraTargets = Field(
        default="default", description="modules with adapters: the architecture's default pair, a named group, or names"
    )
    lora_layers: tuple[int, ...] = Field(
        default=(), description="numbers of the layers with adapters, PEFT's layers_to_transform; none for all layers"
    )
    use_dora: bool = Field(default=False, description="whether adapters are DoRA's: PEFT's use_dora")
    trained_modules: TrainedModules = Field(
        default="none",
        description="modules that are trained whole beside adapters, each a copy next to the frozen module: PEFT's "
        "modules_to_save",
    )
    quantization: Quantization = Field(
        default="none",
        description="quantized base model of qlora: bitsandbytes' nf4 with double quantization, nf4_single without it, "
        "nf4_experts with experts, as transformers 4 loads them, int8 (LLM.int8); gptq and awq with 4 bits in groups "
        "of 128",
    )
    upcast_unquantized: Upcast = Field(
        default="none",
        description="parameters of a 4-bit base that are not quantized and become float32: all by PEFT's "
        "prepare_model_for_kbit_training; norms: all but embeddings and head; not if several GPUs shard",
    )
    kernels: tuple[Kernel, ...] = Field(default=(), description="Triton kernels in place of plain ops")
    shard_adapters: bool = Field(
        default=True, description="False: every GPU holds whole adapters and all-reduces their gradients"
    )

    tower_apart: bool = Field(
        default=False,
        description="whether a frozen vision tower is left out of gradient checkpointing, and of modules with adapters",
    )
    image_share: float = Field(
        default=0.0, ge=0, le=1, description="image tokens of each token, if the model has a vision tower"
    )
    micro_batches: int = Field(
        default=1, ge=1, description="micro-batches of an optimizer step, if the model has a vision tower"
    )

    @property
    def trains_embeddings(self) -> bool:
        """Whether embeddings are trained beside adapters."""
        return self.trained_modules in ("embeddings", "embeddings_and_head")

    @property
    def trains_head(self) -> bool:
        """Whether the head is trained beside adapters."""
        return self.trained_modules in ("head", "embeddings_and_head")

    @property
    def keeps_gathered(self) -> bool:
        """Whether FSDP keeps parameters whole from the forward to the backward pass."""
        return self.fsdp_strategy in ("shard_grad_op", "hybrid_shard_zero2")

    @property
    def is_hybrid(self) -> bool:
        """Whether FSDP shards within a node, and every node holds everything."""
        return self.fsdp_strategy in ("hybrid_shard", "hybrid_shard_zero2")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, settings: Any) -> Any:
        """Read what a job calls its sharding: who shards, and what.

        >>> stack = Stack(sharding="fsdp1_hybrid_shard")
        >>> stack.sharding, stack.fsdp_strategy
        ('fsdp1', 'hybrid_shard')
        """
        given = settings.get("sharding") if isinstance(settings, dict) else None
        if not isinstance(given, str) or (parts := sharding_parts(given))[1] == "full_shard":
            return settings
        return {**settings, **dict(zip(("sharding", "fsdp_strategy"), parts, strict=True))}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for one, other, problem in (
            ("quantization", "torch_dtype", self.quantization != "none" and self.torch_dtype == "float32"),
            # Two dtypes of 16 bits: autocast copies all weights, and DeepSpeed has no section for it.
            ("torch_dtype", "mixed_precision", (self.torch_dtype, self.mixed_precision) in _OTHER_16_BITS),
            # peft/utils/other.py, prepare_model_for_kbit_training: bitsandbytes' alone.
            (
                "upcast_unquantized",
                "quantization",
                self.upcast_unquantized != "none" and self.quantization in ("none", "gptq", "awq"),
            ),
            # https://huggingface.co/docs/bitsandbytes/fsdp_qlora: FSDP shards 4-bit weights of bitsandbytes alone.
            (
                "quantization",
                "sharding",
                self.quantization in ("int8", "gptq", "awq") and self.sharding in ("fsdp1", "fsdp2", "zero3"),
            ),
            # A head in bfloat16 takes float32 hidden states only under autocast.
            (
                "upcast_unquantized",
                "mixed_precision",
                (self.upcast_unquantized, self.mixed_precision) == ("norms", "no"),
            ),
            ("loss", "kernels", self.loss != "full" and "fast_loss" in self.kernels),
            ("kernels", "quantization", "fused_lora" in self.kernels and self.quantization == "none"),
            ("shard_adapters", "sharding", not self.shard_adapters and self.sharding == "fsdp2"),
            ("objective", "loss", self.objective != "sft" and self.loss != "full"),
            ("objective", "losses", self.losses != "trl" and self.objective in ("dpo_precomputed", "grpo")),
            # LLaMA-Factory's reward model returns the hidden states of all layers, which checkpoints keep anyway.
            (
                "objective",
                "gradient_checkpointing",
                (self.losses, self.objective, self.gradient_checkpointing) == ("llama-factory", "reward", "none"),
            ),
            ("objective", "kernels", self.objective != "sft" and bool(self.kernels)),
            ("offload", "sharding", self.offload != "none" and self.sharding not in _OFFLOADING[self.offload]),
            ("fsdp_strategy", "sharding", self.fsdp_strategy != "full_shard" and self.sharding not in _FSDP),
        ):
            if problem:
                values = [repr(getattr(self, field)) for field in (one, other)]
                raise ValueError(f"{one} {values[0]} and {other} {values[1]} exclude each other")
        return self


REFERENCE = Stack()

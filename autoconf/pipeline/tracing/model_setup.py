"""Set up fine-tuning jobs on fake tensors as the libraries run them: the sharded model under a stack.

It also runs their micro-batches.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import peft
import torch
import transformers
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
)

from autoconf.jobs.stack import Stack
from autoconf.memory.adapted import modules_of_released
from autoconf.memory.optimizers import Shape
from autoconf.memory.zero_job import ZERO
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.tracing import vision
from autoconf.pipeline.tracing.fsdp_units import fsdp1, fsdp2
from autoconf.pipeline.tracing.offloading import offloading
from autoconf.pipeline.tracing.quantizing import quantize, return_to_bfloat16
from autoconf.pipeline.tracing.recorder import SAMPLES
from autoconf.pipeline.tracing.ways import Method

_TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5
_OWN_EXPERTS = {"llama4_text"}  # types whose experts have one implementation, in modeling_llama4.py a batched product
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_MIXED = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Linear layers of attention by their names in transformers; the MLPs of some models also have a c_proj or a dense.
ATTENTION = (
    r".*(attn|attention)\.([qkvo]_proj|out_proj|qkv_proj|(q|kv)_[ab]_proj\w*|c_attn|c_proj|query_key_value|dense)"
)


@dataclass(frozen=True)
class TrainingSetup:
    """A model, its method and stack, and the number of GPUs; under a hybrid strategy of FSDP those of a node.

    Raises:
        ValueError: the method is qlora and the stack does not quantize, or the reverse; several GPUs run under
            DeepSpeed; or Adafactor is combined with FSDP2.

    >>> from autoconf.pipeline.catalog import architectures
    >>> TrainingSetup(architectures()["mistral-7b-v0.1"], "lora", Stack(sharding="ddp"), gpus=2).shards
    False
    """

    architecture: Architecture
    method: Method
    stack: Stack
    gpus: int = 1
    image_tokens: int = 0  # of each sample, if the model has a tower
    micro_batches: int = 1  # of an optimizer step, whose inputs are on the GPU together

    def __post_init__(self) -> None:
        if (self.method == "qlora") != (self.stack.quantization == "nf4"):
            raise ValueError(f"method {self.method!r} and quantization {self.stack.quantization!r} exclude each other")
        if self.gpus > 1 and self.stack.sharding in ZERO:
            raise ValueError(f"sharding {self.stack.sharding!r} on several GPUs is composed, not traced")
        if self.gpus > 1 and self.stack.optim == "adafactor" and self.stack.sharding == "fsdp2":
            # transformers/optimization.py, Adafactor.step mixes its plain states with FSDP2's distributed tensors.
            raise ValueError("optim 'adafactor' and sharding 'fsdp2' exclude each other")

    def with_rank(self, rank: int) -> TrainingSetup:
        """The same job with adapters of another rank."""
        return replace(self, stack=self.stack.model_copy(update={"lora_r": rank}))

    @property
    def nodes(self) -> int:
        """Nodes that run, each with ``gpus`` GPUs; a hybrid strategy needs two, and more hold as much."""
        return 2 if self.stack.is_hybrid and self.gpus > 1 else 1

    @property
    def shards(self) -> bool:
        """Whether a GPU holds less than all parameters."""
        return self.gpus > 1 and self.stack.sharding != "ddp"

    @property
    def prepares(self) -> bool:
        """Whether PEFT prepares a 4-bit model, which TRL and axolotl omit if the model is sharded."""
        return self.stack.upcast_unquantized != "none" and not self.shards

    @property
    def upcasts(self) -> bool:
        """Whether accelerate makes trainable parameters float32 that were loaded in bfloat16."""
        # accelerate/accelerator.py, prepare_model: FSDP1's flat parameters, so not parameters that FSDP does not shard;
        # accelerate/utils/fsdp_utils.py, fsdp2_prepare_model: not in a model with 4-bit layers.
        mixed = self.shards and self.stack.mixed_precision != "no"
        return mixed and (self.stack.shard_adapters if self.stack.sharding == "fsdp1" else self.method != "qlora")


def build_model(job: TrainingSetup, layers: int | Sequence[str] | None = None) -> nn.Module:
    """Build the model of a job on the ``meta`` device, before sharding.

    Args:
        job: the training setup.
        layers: decoder layers instead of the architecture's own: their kinds in order, or a number of the
            architecture's layers, starting again from the first one after the last.

    Raises:
        ValueError: the architecture's config cannot express these layers.
    """
    stack = job.stack
    model: Any = _base_model(job.architecture, DTYPES[stack.torch_dtype], layers, scores=stack.objective == "reward")
    reentrant = stack.gradient_checkpointing == "reentrant"
    if stack.gradient_checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if job.method == "full":
        return model.train()
    if stack.quantization == "nf4":
        quantize(model, DTYPES[stack.torch_dtype] if job.gpus > 1 else torch.uint8)
        if job.prepares:
            model = peft.prepare_model_for_kbit_training(
                model, stack.gradient_checkpointing != "none", {"use_reentrant": reentrant}
            )
    if reentrant:
        model.enable_input_require_grads()
    lora = peft.LoraConfig(
        r=stack.lora_r,
        lora_alpha=stack.lora_r,
        lora_dropout=stack.lora_dropout,
        use_dora=stack.use_dora,
        layers_to_transform=list(stack.lora_layers) or None,
        target_modules=lora_targets(job.architecture, stack),
        modules_to_save=modules_to_save(model, stack) or None,
        task_type="SEQ_CLS" if stack.objective == "reward" else "CAUSAL_LM",
    )
    keeps_dtype = stack.adapter_dtype != "float32"
    unpacking = cuda_kernels.unpacking_for_dora() if stack.use_dora else nullcontext()
    with unpacking, torch.device("meta"):  # PEFT before 0.14 has no argument for it
        model = peft.get_peft_model(model, lora, autocast_adapter_dtype=not keeps_dtype)
    if keeps_dtype:
        # peft/tuners/tuners_utils.py, _move_adapter_to_device_of_base_layer: adapters get their base's dtype, but not
        # on the meta device.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(DTYPES[stack.torch_dtype])
    if job.prepares and stack.upcast_unquantized == "norms":
        return_to_bfloat16(model)
    return model.train()


def trainable_shapes(job: TrainingSetup) -> list[Shape]:
    """Trainable parameters of the whole model, in the dtype and with the dimensions that the optimizer sees.

    >>> from autoconf.pipeline.catalog import architectures
    >>> trainable_shapes(TrainingSetup(architectures()["mistral-7b-v0.1"], "lora", Stack(lora_r=16)))[0]
    Shape(dimensions=(16, 4096), itemsize=2, embedding=False)
    """
    model = build_model(job)
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    # torch/distributed/fsdp/_flat_param.py, _use_sharded_views: a rank has a piece of the flat parameter for each
    # parameter.
    flat = job.shards and job.stack.sharding == "fsdp1" and job.stack.shard_adapters
    return [
        Shape((p.numel(),) if flat else tuple(p.shape), 4 if job.upcasts else p.itemsize, p in embeddings)
        for p in model.parameters()
        if p.requires_grad
    ]


def lora_targets(architecture: Architecture, stack: Stack) -> list[str] | str:
    """The value of PEFT's ``target_modules``.

    >>> from autoconf.pipeline.catalog import architectures
    >>> lora_targets(architectures()["mistral-7b-v0.1"], Stack(lora_targets=("q_proj", "up_proj")))
    ['q_proj', 'up_proj']
    """
    if stack.lora_layers and isinstance(stack.lora_targets, str) and stack.lora_targets != "default":
        # peft 0.21.2, tuners/lora/config.py: layers_to_transform needs a list.
        modules = modules_of_released(architecture.name)
        assert modules is not None
        return list(modules.groups[stack.lora_targets])
    if stack.lora_targets == "default":
        return list(architecture.lora_targets)
    if stack.lora_targets == "attention":
        return ATTENTION
    return stack.lora_targets if isinstance(stack.lora_targets, str) else list(stack.lora_targets)


def modules_to_save(model: PreTrainedModel, stack: Stack) -> list[str]:
    """The value of PEFT's ``modules_to_save``: the names of the modules that a stack trains whole."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    trained = [embeddings] * stack.trains_embeddings + [head] * stack.trains_head
    return [name for name, module in model.named_modules() if any(module is one for one in trained)]


def _base_model(
    architecture: Architecture, dtype: torch.dtype, layers: int | Sequence[str] | None, *, scores: bool = False
) -> PreTrainedModel:
    """A model for words, or one that gives one score for each sample."""
    if isinstance(layers, int):
        layers = list(itertools.islice(itertools.cycle(architecture.kinds), layers))
    settings = architecture.config if layers is None else architecture.shortened(layers)
    config = AutoConfig.for_model(**settings)
    # transformers/trainer.py, Trainer.__init__: since release 5 the Trainer decides, not the model.
    config.use_cache = getattr(TrainingArguments, "use_cache", config.use_cache)
    if hasattr(transformers, "AttentionInterface"):
        from transformers.integrations import flash_attention

        transformers.AttentionInterface.register("attention_on_cuda", flash_attention.flash_attention_forward)
        transformers.AttentionMaskInterface.register("attention_on_cuda", lambda *_, **__: None)
        available: Any = nullcontext()
        options: dict[str, Any] = {"attn_implementation": "attention_on_cuda"}
        own = architecture.config["model_type"] in _OWN_EXPERTS
        if architecture.is_mixture_of_experts and _TRANSFORMERS_5 and not own:
            # Balanced routing: one grouped matrix product over tokens * top_k rows, independent of the router.
            options["experts_implementation"] = "grouped_mm"
    else:  # releases before 4.51 accept only FlashAttention's own name, and check for its package
        available = mock.patch.object(
            PreTrainedModel, "_check_and_enable_flash_attn_2", classmethod(_enable_flash_attention)
        )
        options = {"attn_implementation": "flash_attention_2"}
    options["dtype" if _TRANSFORMERS_5 else "torch_dtype"] = dtype
    with available, torch.device("meta"):
        if architecture.vision:
            return vision.build(architecture.vision, settings, config.use_cache, **options)
        if scores:
            config.num_labels, config.pad_token_id = 1, 0
            return AutoModelForSequenceClassification.from_config(config, **options)
        return AutoModelForCausalLM.from_config(config, **options)


def _enable_flash_attention(cls: Any, config: Any, *_: Any, hard_check_only: bool = False, **__: Any) -> Any:
    if not hard_check_only:
        config._attn_implementation = "flash_attention_2"
    return config


def materialize(model: nn.Module) -> None:
    """Replace meta tensors by uninitialized tensors on the CPU, which are fake under ``FakeTensorMode``.

    Tied tensors stay tied.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        if isinstance(module, cuda_kernels.Linear4bit):
            module.allocate_absmax()


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a model: the outermost ``ModuleList`` whose length is the depth of the model.

    Raises:
        ValueError: there is no such list.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in vision.language_model(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(model).__name__}: no list of {depth} decoder layers")


class Rank:
    """One GPU's part of a job: its model, sharded as in the stack, ready for micro-batches."""

    def __init__(
        self,
        job: TrainingSetup,
        model: nn.Module,
        mesh: DeviceMesh | None,
        *,
        upcast: bool = True,
        sync_module_states: bool = False,
    ) -> None:
        """Shard a model of fake tensors; must be called inside ``rank_of`` and ``FakeTensorMode``.

        Args:
            job: the training setup.
            model: its model.
            mesh: the job's GPUs.
            upcast: whether to make parameters float32 that accelerate upcasts, before they are sharded.
            sync_module_states: whether FSDP1 broadcasts each unit from the first GPU.
        """
        self.job = job
        self._upcast, self._sync_module_states = upcast, sync_module_states
        self.layers = decoder_layers(model)
        self._head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self._mixed = _MIXED[job.stack.mixed_precision]
        if self._mixed is not None:
            run_under_autocast(model, self._mixed)
        self.model = model if mesh is None else self._sharded(model, mesh)
        self.buckets: list[torch.Tensor] = []  # of DDP
        # transformers/trainer.py, get_batch_samples: the inputs of all micro-batches of a step are collected first.
        self.pixels = [
            vision.pixels(model, SAMPLES * job.image_tokens) for _ in range(job.micro_batches) if job.image_tokens
        ]

    def _sharded(self, model: nn.Module, mesh: DeviceMesh) -> nn.Module:
        sharding, units = self.job.stack.sharding, [*vision.blocks(model), *self.layers]
        if sharding == "ddp":
            return model
        if self.job.upcasts and self._upcast:
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.dtype != torch.float32:
                    parameter.data = parameter.data.float()
        if sharding == "fsdp2":
            return fsdp2(model, units, mesh, self._mixed, reshards=not self.job.stack.keeps_gathered)
        whole = [] if self.job.stack.shard_adapters else [p for p in model.parameters() if p.requires_grad]
        strategy = self.job.stack.fsdp_strategy
        return fsdp1(model, units, mesh, self._mixed, whole, strategy=strategy, sync=self._sync_module_states)

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def resident(self) -> list[torch.Tensor]:
        """Tensors that exist before the first micro-batch."""
        absmax = [t for m in self.model.modules() if isinstance(m, cuda_kernels.Linear4bit) for t in m.absmax]
        return [*self.model.parameters(), *self.model.buffers(), *absmax, *self.buckets, *self.pixels]

    def images(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a micro-batch has besides text."""
        return vision.inputs(self.pixels[0], input_ids) if self.pixels else {}

    def micro_batch(self, samples: int, tokens_per_sample: int, *, reduce: bool) -> None:
        """Run a forward and a backward pass; with ``reduce`` FSDP shards the gradients, as in the last micro-batch.

        Raises:
            ValueError: the objective has a loss of its own (``pipeline.validation.objective_rank``).
        """
        if self.job.stack.objective != "sft":
            raise ValueError(f"objective {self.job.stack.objective!r} has a loss of its own")
        input_ids = torch.zeros((samples, tokens_per_sample), dtype=torch.long)
        # The collator creates a mask, but no token is padded, so models with FlashAttention drop the mask.
        _attention_mask = torch.empty_like(input_ids)
        with self.gradient_sync(reduce), self._offloading():
            # The outputs go out of scope before backward, as in the Trainer; logits can be a third of the peak.
            # So do the labels.
            loss = self.model(input_ids=input_ids, labels=torch.zeros_like(input_ids), **self.images(input_ids))["loss"]
            loss.backward()

    def _offloading(self) -> Any:
        """What moves saved tensors to the host, if the job's checkpoints are there."""
        if self.job.stack.gradient_checkpointing != "offloaded":
            return nullcontext()
        return offloading(self._head)

    def gradient_sync(self, reduce: bool) -> Any:
        if isinstance(self.model, FullyShardedDataParallel) and not reduce:
            return self.model.no_sync()
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(reduce)
        return nullcontext()


def run_under_autocast(model: nn.Module, dtype: torch.dtype) -> None:
    """Do the same as accelerate's ``prepare_model`` for mixed precision."""
    from accelerate.utils.operations import convert_to_fp32

    forward = model.forward

    @functools.wraps(forward)
    def autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype), torch.autocast("cuda", dtype):
            outputs = forward(*args, **kwargs)
        return convert_to_fp32(outputs)

    model.forward = autocast

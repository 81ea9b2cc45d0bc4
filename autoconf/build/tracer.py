"""Peak memory of one fine-tuning micro-batch, op by op, on fake tensors.

The real modeling code (transformers, PEFT, autograd) runs under ``FakeTensorMode``: every op reports the storages that
it would create, and nothing is allocated. Two facts turn four short traces into an exact answer for every job:

- every storage's size is affine in the number of tokens, so each moment of the micro-batch is a line
  ``constant + slope * tokens`` and the peak is the upper envelope of those lines;
- decoder layers repeat, so what is alive at a given moment of the first or of the last layer is affine in depth
  (moments inside the layers between lie between those two).

Hence ``trace`` runs stacks of 2 and 4 layers at two token counts, matches the moments one by one, and extrapolates each
to the full depth. Anything that breaks these assumptions raises ``TraceError``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM

from autoconf.build.architectures import Architecture
from autoconf.figures import MemoryFigures, Moment

Method = Literal["full", "lora"]

LORA_RANK, LORA_ALPHA = 4, 16  # the reference workload's adapter (LoRA r=4, alpha=16)
BYTES_PER_PARAMETER = 2  # bfloat16
SHALLOW, DEEP = 2, 4  # layers of the two short stacks
# Primes, so that a dimension of this size in a traced tensor can only mean "tokens".
TOKENS = (2039, 4093)
HEAD = -1  # segment of ops outside the decoder layers
TAIL = -2  # segment of ops after the backward pass of the first decoder layer: the embeddings' gradient


class TraceError(RuntimeError):
    """The traced program broke an assumption that its extrapolation rests on."""


class _FlashAttention(torch.autograd.Function):
    """The storages of a FlashAttention kernel: q, k, v, output and a log-sum-exp per query; never tokens squared."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _flash_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' ``flash_attention_2`` integration lays it out: (batch, tokens, heads, head_dim)."""
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    return _FlashAttention.apply(q, k, v), None


def _no_mask(*_: Any, **__: Any) -> None:
    """FlashAttention takes causality as a flag, so no mask is ever built."""


AttentionInterface.register("fake_attention", _flash_attention_forward)
AttentionMaskInterface.register("fake_attention", _no_mask)


def build_model(
    architecture: Architecture, method: Method, layers: int | None = None, attention: str = "fake_attention"
) -> torch.nn.Module:
    """Build, on the ``meta`` device, the model that the reference workload trains.

    Args:
        architecture: entry of ``architectures.yaml``.
        method: ``full`` (every parameter trains) or ``lora`` (frozen base, trainable adapters).
        layers: depth of a shortened stack; ``None`` keeps the architecture's own.
        attention: transformers' name of the attention implementation; the default only accounts for memory.
    """
    config_kwargs = dict(architecture.config)
    if layers is not None:
        config_kwargs[architecture.depth_key] = layers
    config = AutoConfig.for_model(**config_kwargs)
    config.use_cache = False
    # Balanced routing: one grouped matrix product over tokens * top_k rows, whatever the router decides.
    experts = {"experts_implementation": "grouped_mm"} if architecture.is_mixture_of_experts else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention, **experts)
    model.activation_checkpointing_enable({"use_reentrant": False})
    if method == "lora":
        lora = LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=architecture.lora_targets, task_type="CAUSAL_LM"
        )
        # PEFT would keep bfloat16 adapters in float32; the reference workload trains them in bfloat16.
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    return model.train()


def _fake(model: torch.nn.Module) -> None:
    """Replace meta tensors by fake ones on the CPU, tied ones by the same; call it under ``FakeTensorMode``."""
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[parameter] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The model's stack of decoder layers: its one top-level ``ModuleList`` of checkpointed layers."""
    stacks = [
        m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and hasattr(m[0], "gradient_checkpointing")
    ]
    if len(stacks) != 1:
        raise TraceError(f"expected one stack of decoder layers, found {len(stacks)}")
    return stacks[0]


@dataclass(frozen=True)
class _Trace:
    """Every allocation of one micro-batch in order; all arrays have shape (allocations,)."""

    segments: np.ndarray  # decoder layer that was running, or HEAD
    live_bytes: np.ndarray  # alive above the resident state, parameter gradients excluded
    gradient_bytes: np.ndarray  # parameter gradients that appeared in decoder layers finished before
    ops: list[str]


class _Recorder(TorchDispatchMode):
    """Counts the bytes of the storages that ops create, from creation to release."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.segment = HEAD
        self.events: list[tuple[int, int, str]] = []  # (storage number, +bytes or -bytes, op)
        self.segments: list[int] = []
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, str(func))
        return out

    def ignore(self, tensors: list[torch.Tensor]) -> None:
        """Treat these tensors as part of the resident state."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = -1

    def number_of(self, tensor: torch.Tensor) -> int:
        return self._known.get(tensor.untyped_storage(), -1)

    def _see(self, tensor: torch.Tensor, op: str) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        if sum(size == self.tokens for size in tensor.shape) > 1:
            raise TraceError(f"{op} holds a tensor of tokens x tokens: {tuple(tensor.shape)}")
        number, nbytes = self._count, storage.nbytes()
        self._count += 1
        self._known[storage] = number
        self._log(number, nbytes, op)
        weakref.finalize(storage, self._log, number, -nbytes, op)

    def _log(self, number: int, nbytes: int, op: str) -> None:
        self.events.append((number, nbytes, op))
        self.segments.append(self.segment)


@contextmanager
def _segments(model: torch.nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which decoder layer is running, in the forward pass and when a checkpoint is recomputed."""
    handles = []
    layers = decoder_layers(model)
    for index, layer in enumerate(layers):

        def enter(*_: Any, index: int = index) -> None:
            recorder.segment = index

        # A checkpoint recomputes a layer's forward, not its __call__, so the submodules carry the hook.
        handles += [module.register_forward_pre_hook(enter) for module in layer.modules()]

    def leave(*_: Any) -> None:
        recorder.segment = HEAD

    def finish(_: torch.Tensor) -> None:
        recorder.segment = TAIL

    def watch(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].requires_grad:
            args[0].register_hook(finish)

    handles.append(layers[-1].register_forward_hook(leave))
    handles.append(layers[0].register_forward_pre_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(architecture: Architecture, method: Method, *, layers: int, tokens: int, accumulating: bool) -> _Trace:
    """Trace one micro-batch of ``tokens`` tokens through a stack of ``layers`` decoder layers."""
    model = build_model(architecture, method, layers)
    with FakeTensorMode():
        _fake(model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if accumulating:
            for parameter in trainable:
                parameter.grad = torch.empty_like(parameter)
        recorder = _Recorder(tokens)
        recorder.ignore([*model.parameters(), *model.buffers(), *(p.grad for p in trainable if p.grad is not None)])
        with recorder, _segments(model, recorder):
            input_ids = torch.empty((1, tokens), dtype=torch.long)
            labels = torch.empty_like(input_ids)
            # The outputs go out of scope before backward, as in the Trainer: logits are a third of a peak.
            loss = model(input_ids=input_ids, labels=labels).loss
            loss.backward()
            gradients = {recorder.number_of(p.grad) for p in trainable if p.grad is not None} - {-1}
            events, segments = list(recorder.events), list(recorder.segments)
    return _replay(events, segments, gradients)


def _replay(events: list[tuple[int, int, str]], segments: list[int], gradients: set[int]) -> _Trace:
    """Turn creations and releases into what was alive at each creation.

    Under FSDP a decoder layer's gradients are whole until the layer's backward ends and sharded from then on, while
    those of the root (embeddings, norm, head) stay whole until the last layer is done.
    """
    live = finished = current = 0
    previous = HEAD
    rows: list[tuple[int, int, int, str]] = []
    for (number, nbytes, op), segment in zip(events, segments, strict=True):
        if segment != previous:
            finished, current, previous = finished + current, 0, segment
        if number in gradients and segment >= 0:
            current += nbytes
        else:
            live += nbytes
        if nbytes > 0:
            rows.append((segment, live + current, finished, op))
    seg, alive, sharded, ops = zip(*rows, strict=True)
    return _Trace(np.array(seg), np.array(alive, float), np.array(sharded, float), list(ops))


def _at_the_ends(trace: _Trace, layers: int) -> _Trace:
    """Keep the moments of the first layer, the last layer and the head."""
    keep = np.isin(trace.segments, [HEAD, TAIL, 0, layers - 1])
    ops = [op for op, kept in zip(trace.ops, keep, strict=True) if kept]
    return _Trace(trace.segments[keep], trace.live_bytes[keep], trace.gradient_bytes[keep], ops)


@dataclass(frozen=True)
class _Units:
    """Parameters of FSDP's two kinds of units."""

    layer: int  # one decoder layer
    layer_trainable: int
    root: int  # embeddings, final norm and lm_head
    root_trainable: int

    def bytes_in(self, segment: int, accumulating: bool) -> int:
        """Bytes that FSDP2 holds in a segment on top of what one GPU would: gathered units, and gradients in flight.

        The root stays gathered from the start of the forward to the end of the backward pass. While a layer runs, it is
        gathered and so is a neighbour: in forward the buffer of the last all-gather lives until the next one has
        arrived, in backward the next layer is prefetched. Around the head one layer is: the last, for the same reasons.
        The input buffer of a reduce-scatter lives until the next unit's begins.
        """
        in_flight = 0 if accumulating else self.layer_trainable
        if segment == HEAD:
            parameters = self.root + self.layer
        elif segment == TAIL:
            parameters = self.root + in_flight
        else:
            parameters = self.root + 2 * self.layer + in_flight
        return BYTES_PER_PARAMETER * parameters

    def bytes_at_first_layer(self) -> int:
        """Bytes when the first layer starts: root and layer, each gathered and still in its all-gather buffer.

        FSDP2 releases the buffer of the last all-gather only after the next one has been copied out.
        """
        return BYTES_PER_PARAMETER * 2 * (self.root + self.layer)

    def bytes_at_later_layer(self) -> int:
        """The same when a later layer starts: the root, the layer, its buffer and the buffer of the layer before."""
        return BYTES_PER_PARAMETER * (self.root + 3 * self.layer)

    def last_reduction(self, layers: int) -> Moment:
        """The end of a backward pass that shards gradients: the root's whole and in the reduce-scatter, all sharded."""
        trainable = self.root_trainable + layers * self.layer_trainable
        fsdp_bytes = BYTES_PER_PARAMETER * (self.root + 2 * self.root_trainable)
        return Moment(0, 0, BYTES_PER_PARAMETER * trainable, fsdp_bytes)


def _units(model: torch.nn.Module) -> _Units:
    layers = decoder_layers(model)

    def count(module: torch.nn.Module, trainable: bool) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)

    layer, layer_trainable = (count(layers[0], trainable) for trainable in (False, True))
    return _Units(
        layer,
        layer_trainable,
        count(model, False) - layer * len(layers),
        count(model, True) - layer_trainable * len(layers),
    )


def trace(architecture: Architecture, method: Method, *, accumulating: bool) -> list[Moment]:
    """Trace one micro-batch and return the moments that can be its peak.

    Args:
        architecture: entry of ``architectures.yaml``.
        method: ``full`` or ``lora``.
        accumulating: whether gradients of an earlier micro-batch are alive. If so they belong to the resident state;
            if not, gradients appear during the backward pass and are part of the moments.

    Returns:
        Moments whose upper envelope over tokens and GPU counts is the micro-batch's peak.

    Raises:
        TraceError: the traced program is not affine in tokens or depth, or holds a tensor of tokens x tokens.
    """
    runs = {
        (layers, tokens): _at_the_ends(
            _run(architecture, method, layers=layers, tokens=tokens, accumulating=accumulating), layers
        )
        for layers in (SHALLOW, DEEP)
        for tokens in TOKENS
    }
    first = next(iter(runs.values()))
    for (layers, tokens), run in runs.items():
        if run.ops != first.ops:
            raise TraceError(f"{architecture.name}: {layers} layers and {tokens} tokens run other ops")

    def deepen(shallow: np.ndarray, deep: np.ndarray) -> np.ndarray:
        return shallow + (deep - shallow) / (DEEP - SHALLOW) * (architecture.layers - SHALLOW)

    live = [deepen(runs[SHALLOW, t].live_bytes, runs[DEEP, t].live_bytes) for t in TOKENS]
    sharded = [deepen(runs[SHALLOW, t].gradient_bytes, runs[DEEP, t].gradient_bytes) for t in TOKENS]
    if not np.array_equal(sharded[0], sharded[1]):
        raise TraceError(f"{architecture.name}: gradients depend on the number of tokens")
    slopes = (live[1] - live[0]) / (TOKENS[1] - TOKENS[0])
    constants = live[0] - slopes * TOKENS[0]
    model = build_model(architecture, method)
    units = _units(model)
    fsdp = np.array([units.bytes_in(segment, accumulating) for segment in first.segments], float)
    fsdp[np.argmax(first.segments == 0)] = units.bytes_at_first_layer()
    fsdp[np.argmax(first.segments == SHALLOW - 1)] = units.bytes_at_later_layer()
    # FSDP leaves buffers whole; those of GPT-BigCode (a causal mask) count.
    constants += sum(b.nbytes for b in model.buffers())
    moments = np.stack([constants, slopes, sharded[0], fsdp], axis=1)
    if not accumulating:
        moments = np.vstack([moments, units.last_reduction(architecture.layers)])
    return _envelope(moments)


def _envelope(moments: np.ndarray) -> list[Moment]:
    """Drop the moments that another one exceeds in every term; ``moments`` has shape (moments, 4)."""
    # Every term is a whole number of bytes but for rounding; bytes per token may have a fraction.
    unique = np.unique(moments.round(3), axis=0)
    dominated = [any((unique >= row).all(1) & (unique > row).any(1)) for row in unique]
    return [Moment(*map(float, row)) for row, drop in zip(unique, dominated, strict=True) if not drop]


def peak_bytes(architecture: Architecture, method: Method, *, tokens: int, accumulating: bool) -> float:
    """Peak of a full-depth trace on one GPU, bytes above the resident state; the check on ``trace``'s extrapolation."""
    run = _run(architecture, method, layers=architecture.layers, tokens=tokens, accumulating=accumulating)
    return float((run.live_bytes + run.gradient_bytes).max())


def figures(architecture: Architecture, method: Method, *, accumulating: bool) -> MemoryFigures:
    """Everything that the closed form of ``autoconf.memory`` needs to know of one model and method."""
    model = build_model(architecture, method)
    layer = sum(p.numel() for p in decoder_layers(model)[0].parameters())
    total = sum(p.numel() for p in model.parameters())
    return MemoryFigures(
        model_name=architecture.name,
        method=method,
        accumulating=accumulating,
        parameters=total,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layer_parameters=layer,
        root_parameters=total - layer * architecture.layers,
        moments=tuple(trace(architecture, method, accumulating=accumulating)),
    )


def all_figures(architecture: Architecture) -> list[MemoryFigures]:
    """Figures of one model for both methods, with and without gradient accumulation."""
    methods: tuple[Method, ...] = ("full", "lora")
    return [figures(architecture, method, accumulating=acc) for method in methods for acc in (True, False)]

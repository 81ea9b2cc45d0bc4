"""A job under DeepSpeed's ZeRO: what its memory on each GPU depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from autoconf.jobs.stack import Stack
from autoconf.memory.needs import Resident
from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import Trainable
from autoconf.memory.sharding import UnshardedJob
from autoconf.memory.zero_calls import ModelCalls, model_calls
from autoconf.memory.zero_parameters import BucketSizes, ModelSizes, model_sizes

ZeroStage = Literal["zero1", "zero2", "zero3"]
ZERO: tuple[ZeroStage, ...] = get_args(ZeroStage)


class LinearInputs(NamedTuple):
    """Elements per token of the inputs of frozen linear layers that nothing else keeps for the backward pass."""

    of_layer: int
    of_head: int


@dataclass(frozen=True)
class ZeroJob:
    """A job under ZeRO.

    Attributes:
        job: the job on one GPU.
        trainable: its trainable parameters.
        calls: the modules of the model with all its parameters.
        buckets: DeepSpeed's settings.
        checkpointing: how layers are checkpointed.
        flat_sizes: elements of the parameter groups of the optimizer: parameters with and without weight decay.
        linear_inputs: inputs of frozen linear layers, which only ZeRO-3 keeps.
        several: whether several GPUs share the job.
    """

    job: UnshardedJob
    trainable: ModelSizes
    calls: ModelCalls
    buckets: BucketSizes
    checkpointing: str
    flat_sizes: tuple[int, ...]
    linear_inputs: LinearInputs
    several: bool

    @classmethod
    def of(
        cls, job: UnshardedJob, trainable: Trainable, full: Trainable, stack: Stack, *, several: bool = True
    ) -> ZeroJob:
        """Add what ZeRO's memory depends on: the parameters in their order, and the sizes of buckets.

        Args:
            job: the job on one GPU.
            trainable: its trainable parameters.
            full: all parameters of the model, without adapters.
            stack: the training stack.
            several: whether several GPUs share the job.
        """
        layers = max(1, round((full.units.trainable - full.units.root_trainable) / full.units.layer_trainable))
        hidden = next(shape.dimensions[-1] for shape, _ in full.shapes if shape.embedding)
        trained, calls = model_sizes(full.shapes, layers), model_calls(full.shapes, layers)
        if job.rank is not None:
            trained = model_sizes(trainable.shapes, layers, job.rank)
            quantized = bool(job.units.quantized)
            calls = model_calls(full.shapes, layers, trainable.shapes, job.rank, quantized=quantized)
        # peft 0.21.2, utils/other.py, ModulesToSaveWrapper.forward: the frozen module is not called.
        if job.whole.embeddings:
            trained = trained._replace(embeddings=(job.whole.embeddings,))
        if job.whole.head:
            trained = trained._replace(head=(job.whole.head,))
            calls = calls._replace(head=calls.head or trained.head)
        return cls(
            job,
            trained,
            calls,
            BucketSizes.of(stack.zero_buckets, hidden),
            checkpointing=stack.gradient_checkpointing,
            flat_sizes=tuple(shape.elements for shape in flat_groups(trainable, job.rank, job.whole.parameters)),
            linear_inputs=LinearInputs(0, 0) if job.rank is None else _inputs_of(full, layers, hidden, stack),
            several=several,
        )

    def resident(self, stage: ZeroStage) -> Resident:
        """The minimum that training holds: weights, optimizer states and one set of gradients."""
        job = self.job
        gradients = 0 if job.offloads else job.gradients
        weights = job.sharded_weights + job.units.unsharded_bytes
        if stage == "zero1":
            return Resident(weights + job.gradients, self.states, states=job.gradients, states_sharded=self.states)
        states = gradients + (self.states if stage == "zero2" else self.states3)
        if stage == "zero2":
            return Resident(weights, states, states_sharded=states)
        return Resident(job.units.unsharded_bytes, job.weights_on_gpu + states, states_sharded=states)

    @property
    def states3(self) -> float:
        """``states`` under ZeRO-3, which does not copy float32 parameters (stage3.py, _create_fp32_partitions)."""
        return self.states if self.itemsize < 4 or self.job.offloads else self.job.optimizer.states

    @property
    def itemsize(self) -> int:
        """Bytes of a trainable parameter and of its gradient."""
        return self.job.bytes_per_parameter.trainable_computing

    @property
    def states(self) -> float:
        """Bytes of float32 parameters and states, summed over all GPUs; 0 if the host holds them."""
        return 0.0 if self.job.offloads else 4 * self.job.trainable + self.job.optimizer.states

    @property
    def temporaries(self) -> float:
        """Bytes of the optimizer's temporaries for each element that it steps over."""
        return self.job.optimizer.step / self.job.trainable


def _inputs_of(full: Trainable, layers: int, hidden: int, stack: Stack) -> LinearInputs:
    """The inputs of frozen linear layers: hidden states and those of other sizes; adapters keep them in any case."""
    of_layers = (shape for shape, count in full.shapes if count >= layers and not shape.embedding)
    of_layer = hidden + sum({s.dimensions[1] for s in of_layers if len(s.dimensions) == 2} - {hidden})
    return LinearInputs(0 if stack.lora_targets == "all-linear" else of_layer, hidden)


def flat_groups(trainable: Trainable, rank: int | None, whole: int = 0) -> list[Shape]:
    """The optimizer's parameters under ZeRO: one flat float32 parameter with and one without weight decay.

    Args:
        trainable: the trainable parameters.
        rank: rank of the adapters, if there are any.
        whole: parameters of embeddings and head that are trained beside adapters.
    """
    # transformers/trainer.py, get_decay_parameter_names: not biases and norms.
    elements = {True: whole, False: 0}
    for shape, count in trainable.shapes:
        elements[len(shape.dimensions) > 1] += shape.elements * count * (rank or 1)
    return [Shape((size,), 4) for size in elements.values() if size]

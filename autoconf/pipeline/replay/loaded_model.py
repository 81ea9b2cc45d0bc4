"""The parameters of a job's model, for the closed form of the memory of loading."""

from __future__ import annotations

from typing import Any

from torch import nn

from autoconf.memory.loading import LoadedModel, Parameter
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.replay.experts import ExpertMerger
from autoconf.pipeline.replay.loading import checkpoint_key
from autoconf.pipeline.tracing.model_setup import DTYPES, TrainingSetup, build_model, decoder_layers


def loaded_model(job: TrainingSetup, layers: int | None = None) -> LoadedModel:
    """List the parameters of a job's model.

    Args:
        job: the training setup.
        layers: depth of a short model; ``None`` for the whole model.

    >>> from autoconf.jobs.stack import Stack
    >>> from autoconf.pipeline.catalog import architectures
    >>> model = loaded_model(TrainingSetup(architectures()["smollm2-135m"], "full", Stack()), layers=2)
    >>> model.before, len(model.layers), model.after
    ((Parameter(elements=28311552, loaded=2, trained=2, packed=False, adapter=False, merged=False),), 2, \
(Parameter(elements=576, loaded=2, trained=2, packed=False, adapter=False, merged=False),))
    """
    model: Any = build_model(job, layers)
    experts = ExpertMerger(model)
    packed = {id(m.weight): m for m in model.modules() if isinstance(m, cuda_kernels.Linear4bit)}
    where = {id(p): n for n, layer in enumerate(decoder_layers(model)) for p in layer.parameters()}
    before: list[Parameter] = []
    in_layers: list[list[Parameter]] = [[] for _ in decoder_layers(model)]
    after: list[Parameter] = []
    made: dict[int, Parameter] = {}
    for name, parameter in model.named_parameters():
        made[id(parameter)] = found = _parameter(job, name, parameter, packed.get(id(parameter)))
        if experts.merges(name):
            made[id(parameter)] = found = found._replace(merged=True)
        if id(parameter) in where:
            in_layers[where[id(parameter)]].append(found)
        else:
            (after if in_layers[0] else before).append(found)
    names = [id(p) for p in model.state_dict(keep_vars=True).values() if id(p) in made]
    tied = tuple(made[number] for n, number in enumerate(names) if number in names[:n])
    named = sorted(enumerate(model.named_parameters()), key=lambda numbered: checkpoint_key(numbered[1]))
    checkpoint = tuple(index for index, (name, _) in named if ".lora_" not in name)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    return LoadedModel(
        before=tuple(before),
        layers=tuple(map(tuple, in_layers)),
        after=tuple(after),
        tied=tied,
        buffers=buffers,
        checkpoint=checkpoint,
        trainable_base=job.method == "full",
    )


def _parameter(
    job: TrainingSetup, name: str, parameter: nn.Parameter, layer: cuda_kernels.Linear4bit | None
) -> Parameter:
    loaded = DTYPES[job.stack.torch_dtype].itemsize
    if layer is not None:
        return Parameter(layer.shape[0] * layer.shape[1], loaded, loaded, packed=True)
    adapter = ".lora_" in name
    trained = 4 if job.upcasts and parameter.requires_grad else parameter.dtype.itemsize
    if adapter or not job.prepares:
        loaded = parameter.dtype.itemsize
    return Parameter(parameter.numel(), loaded, trained, adapter=adapter)

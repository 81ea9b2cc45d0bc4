"""Find the linear layers of models that PEFT can adapt, and write those of the released versions.

``python -m autoconf.pipeline.tracing.adapted`` writes ``autoconf/memory/adapted_modules.json``, in a few minutes.
"""

from __future__ import annotations

import json

from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autoconf.jobs.stack import LoraTargets, Stack
from autoconf.memory import adapted
from autoconf.memory.adapted import AdaptedModules
from autoconf.pipeline.catalog import Architecture, architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model, decoder_layers
from autoconf.pipeline.tracing.trace_model import UNTRACEABLE, short_stack
from autoconf.pipeline.tracing.ways import TARGETS
from autoconf.predictor import registry


def adapted_modules(architecture: Architecture) -> AdaptedModules | None:
    """The modules of a model that PEFT adapts, and those of each group; ``None`` if it does not adapt all of them.

    >>> from autoconf.pipeline.catalog import architectures
    >>> adapted_modules(architectures()["pythia-160m"]).groups["default"]
    ('attention.query_key_value',)
    """
    layers = {kind: architecture.kinds.count(kind) for kind in dict.fromkeys(architecture.kinds)}
    groups: dict[LoraTargets, tuple[str, ...]] = {}
    for group in TARGETS:
        try:
            found = _adapted(architecture, group)
        except UNTRACEABLE:
            continue
        groups[group] = (*dict.fromkeys(path for of_kind in found.values() for path in of_kind),)
        modules = found
    if "all-linear" not in groups:
        return None
    sizes = {kind: {path: (side[0], side[1]) for path, side in of.items() if side} for kind, of in modules.items()}
    return AdaptedModules(layers, _largest(architecture), sizes, groups)


def _adapted(architecture: Architecture, group: LoraTargets) -> dict[str, dict[str, tuple[int, ...]]]:
    """The modules with adapters in a layer of each kind, with inputs and outputs; nothing for other adapters."""
    short = short_stack(architecture)
    model = build_model(TrainingSetup(architecture, "lora", Stack(lora_targets=group, lora_r=1)), short)
    return {
        kind: {path: _sides(module) for path, module in layer.named_modules() if _is_adapted(module)}
        for kind, layer in zip(short, decoder_layers(model), strict=True)
    }


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer)


def _sides(module: nn.Module) -> tuple[int, ...]:
    """Inputs and outputs of a linear layer; nothing for an adapter of a parameter, such as that of experts."""
    if isinstance(module, ParamWrapper):
        return ()
    one, other = (p for p in module.parameters() if p.requires_grad)
    return one.shape[1], other.shape[0]


def _largest(architecture: Architecture) -> str:
    """The kind of the layer with most parameters."""
    short = short_stack(architecture)
    model = build_model(TrainingSetup(architecture, "full", Stack()), short)
    layers = zip(short, decoder_layers(model), strict=True)
    sizes = {kind: sum(parameter.numel() for parameter in layer.parameters()) for kind, layer in layers}
    return max(sizes, key=lambda kind: sizes[kind])


def main() -> None:
    """Write the modules of the models of the newest released version."""
    names = registry.card(registry.DEFAULT).domain.models
    found = {name: modules for name in names if (modules := adapted_modules(architectures()[name]))}
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(of.to_json(), separators=(',', ':'))}" for name, of in found.items()
    )
    adapted.OF_RELEASED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Look up the names in a version's domain: models, methods and GPU types, in any spelling."""

from __future__ import annotations

from autoconf.jobs.gpu_names import GpuNames
from autoconf.jobs.model_names import ModelNames
from autoconf.jobs.names import Names
from autoconf.predictor.cards import Domain


def gpu_names(domain: Domain) -> GpuNames:
    """The GPU types of a domain.

    >>> from autoconf.predictor import registry
    >>> gpu_names(registry.card("2.0.0").domain).find("V100")
    'Tesla-V100-SXM2-32GB'
    """
    usable_gib = {name: gpu.usable_gib for name, gpu in domain.gpus.items()}
    return GpuNames(usable_gib, {name: gpu.aliases for name, gpu in domain.gpus.items()})


def model_names_of(domain: Domain) -> ModelNames:
    """The models of a domain.

    >>> from autoconf.predictor import registry
    >>> model_names_of(registry.card("2.0.0").domain).find("huggyllama/llama-7b")
    'llama-7b'
    """
    return ModelNames(aliases_of(domain), copies=domain.knows_copies)


def aliases_of(domain: Domain) -> dict[str, list[str]]:
    """The models of a domain, and the checkpoints of these with a vision tower, each with its other names.

    >>> from autoconf.predictor import registry
    >>> ["qwen2.5-vl-7b" in aliases_of(registry.card(version).domain) for version in ("2.0.0", "3.0.0")]
    [False, True]
    """
    models = {name: model.aliases for name, model in domain.models.items()}
    return models | {name: [*tower.aliases] for name, tower in domain.vision_language.items()}


def names_of(domain: Domain) -> dict[str, Names]:
    """The names in each field of a job that has names."""
    return {
        "model_name": model_names_of(domain),
        "method": Names(dict.fromkeys(domain.methods, ()), field="method"),
        "gpu_model": gpu_names(domain),
    }

"""Convert the Hugging Face config of a user model to an architecture, or refuse it with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig
from transformers.pytorch_utils import Conv1D

from autoconf.errors import BadInput
from autoconf.files import cannot_read
from autoconf.jobs.model_config import memory_settings, part_besides_text, quantized
from autoconf.jobs.names import listed
from autoconf.jobs.stack import Stack
from autoconf.memory.profile import HeadWay, LayerWay, ModelProfile
from autoconf.pipeline.catalog import Architecture, architectures, deciding_keys
from autoconf.pipeline.tracing.adapted import adapted_modules
from autoconf.pipeline.tracing.layer_kinds import attends_everywhere, check_kinds
from autoconf.pipeline.tracing.ledger import rank_for, trace
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup, build_model, decoder_layers
from autoconf.pipeline.tracing.trace_model import Ways, short_stack, traced

CONFIG = "config.json"
_MOST_LAYERS = 1024


def read_config(path: str) -> tuple[Path, dict[str, Any]]:
    """Read a config, unchanged.

    Args:
        path: a file in JSON, or a folder with a ``config.json``.

    Raises:
        BadInput: there is no such file, or it does not hold a JSON object; the message names line and column.
    """
    file = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{file}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise cannot_read(file, error) from None
    if not isinstance(config, dict):
        raise BadInput(f"{file}: must hold a JSON object, but holds a {type(config).__name__}")
    return file, config


def own_architecture(
    path: str, name: str, lora_targets: Sequence[str] = (), aliases: Sequence[str] = ()
) -> Architecture:
    """The architecture that a config describes.

    Args:
        path: a Hugging Face ``config.json``, or a folder with one.
        name: name of the model.
        lora_targets: names of the linear modules with LoRA adapters; by default PEFT's default within attention.
        aliases: other names of the model.

    Raises:
        BadInput: it cannot be traced; the message names the setting of the config that prevents it.
    """
    file, published = read_config(path)
    try:
        _check_published(published)
        config = _resolved(published)
        architecture = Architecture(
            name=name, family=config["model_type"], config=config, parameters=0, lora_targets=[], source=file.name,
            aliases=[*aliases],
        )  # fmt: skip
        model = _built(architecture)
        check_kinds(architecture, published)
        if not attends_everywhere(architecture, model):
            raise BadInput(
                f"model_type {config['model_type']!r}: its layers do more than attention and matrix products, "
                "and the memory of the kernels for that is not known"
            )
        architecture = architecture.model_copy(
            update={
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "lora_targets": _lora_targets(config["model_type"], model, lora_targets),
                "learned_positions": _learned_positions(model),
            }
        )
        _check_traceable(architecture)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    except Exception as error:  # an arbitrary config can make transformers raise any exception
        raise BadInput(f"{file}: no model can be traced from it: {_sentence(error)}") from None
    return architecture


def own_figures(architecture: Architecture, watched: Callable[[Ways], Iterable[LayerWay | HeadWay]]) -> ModelProfile:
    """Figures of a user model; arguments as ``tracing.traced`` has them.

    Raises:
        BadInput: it cannot be traced.
    """
    try:
        return replace(traced(architecture, watched), modules=adapted_modules(architecture))
    except Exception as error:  # unknown code can raise any exception
        raise _untraceable(architecture, error) from None


def hub_id(path: str) -> str | None:
    """The Hugging Face id of the checkpoint that a config names; ``None`` if it names none."""
    _, config = read_config(path)
    named = config.get("_name_or_path")
    return named if isinstance(named, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", named) else None


def own_code(path: str) -> bool:
    """Whether a config names custom modeling code in addition to that of transformers."""
    return "auto_map" in read_config(path)[1]


# --- the config -------------------------------------------------------------------------------------------------------


def _check_published(config: dict[str, Any]) -> None:
    """Refuse configs that cannot be traced, as far as the config itself shows it."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise BadInput("model_type: is missing, so the kind of model is unknown")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise BadInput(
                f"auto_map: model_type {model_type!r} needs custom code, which is not run; transformers "
                f"{transformers.__version__} does not include it"
            )
        raise BadInput(f"model_type: transformers {transformers.__version__} does not know {model_type!r}")
    if key := quantized(config):
        raise BadInput(f"{key}: the checkpoint is already quantized; give the config of the one it was made from")
    kind = CONFIG_MAPPING[model_type]
    if part := part_besides_text(config) or part_besides_text(dict.fromkeys(kind.sub_configs, True)):
        raise BadInput(
            f"{part}: a model of several parts, such as text and images, is not traced; give the config of its "
            "language model alone"
        )
    reads_both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING or config.get("is_encoder_decoder")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or reads_both_ways or getattr(kind, "is_encoder_decoder", False):
        raise BadInput(f"model_type: {model_type!r} is not a causal language model in transformers")


def _resolved(published: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config that matter, with the defaults that an architecture needs."""
    config = memory_settings(published)
    for key in ("rope_scaling", "rope_parameters"):  # the angles do not matter, but the rotated part of a head does
        if "partial_rotary_factor" not in (config.get(key) or ()):
            config.pop(key, None)
    full = _for_model(config)
    for key in deciding_keys(config["model_type"]):
        if key not in config and getattr(full, key, None) is not None:
            config[key] = getattr(full, key)
    padding, vocabulary = getattr(full, "pad_token_id", None), getattr(full, "vocab_size", None)
    if isinstance(padding, int) and isinstance(vocabulary, int) and padding >= vocabulary:
        config["pad_token_id"] = None  # the type's default, which needs a larger vocabulary
    depth = getattr(full, "num_hidden_layers", None)
    own_name = type(full).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if not isinstance(depth, int) or not 2 <= depth <= _MOST_LAYERS:
        raise BadInput(f"{own_name}: must be a whole number from 2 to {_MOST_LAYERS}, got {depth!r}")
    config.pop("num_hidden_layers", None)
    config[own_name] = depth
    if attends_only(config) and "layer_types" not in deciding_keys(config["model_type"]):
        # Whether attention sees all tokens or a window of them does not matter if ``check_kinds`` agrees.
        without = {key: value for key, value in config.items() if key != "layer_types"}
        if attends_only({"layer_types": getattr(_for_model(without), "layer_types", None) or ["full_attention"]}):
            return without
        config["layer_types"] = ["full_attention"] * depth
    return config


def attends_only(config: dict[str, Any]) -> bool:
    """Whether a config lists the kinds of its layers, and all of them are attention."""
    return set(config.get("layer_types") or ("?",)) <= {"full_attention", "sliding_attention", "chunked_attention"}


def _for_model(config: dict[str, Any]) -> Any:
    try:
        return AutoConfig.for_model(**config)
    except Exception as error:  # each type of config has its own checks
        raise BadInput(f"transformers rejects it: {_sentence(error)}") from None


def _built(architecture: Architecture) -> Any:
    try:
        return build_model(TrainingSetup(architecture, "full", Stack()))
    except Exception as error:  # incompatible shapes can raise any exception
        if isinstance(error, KeyError) and error.args == ("attention_on_cuda",):
            raise BadInput(
                f"model_type {architecture.family!r}: its attention has custom classes in transformers, which "
                "are not traced"
            ) from None
        raise BadInput(f"no model can be built from it: {_sentence(error)}") from None


def _check_traceable(architecture: Architecture) -> None:
    """Trace one combination, to fail now and not after minutes."""
    try:
        short = short_stack(architecture)
        rank = rank_for(architecture, short)
        methods: tuple[Method, ...] = ("full", "lora")
        for method in methods:
            trace(TrainingSetup(architecture, method, Stack()), short, rank)
    except Exception as error:  # likewise
        raise _untraceable(architecture, error) from None


def _untraceable(architecture: Architecture, error: Exception) -> BadInput:
    return BadInput(f"model_type {architecture.family!r} cannot be traced: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


# --- the model --------------------------------------------------------------------------------------------------------


def _learned_positions(model: Any) -> int | None:
    """The number of learned positions: an embedding besides the token embedding, as long as the config says."""
    longest = getattr(model.config, "max_position_embeddings", None)
    inside = {id(m) for layer in decoder_layers(model) for m in layer.modules()}
    tokens = model.get_input_embeddings()
    for module in model.modules():
        outside = isinstance(module, nn.Embedding) and module is not tokens and id(module) not in inside
        # OPT and BioGPT have two more positions, for padding.
        if outside and longest is not None and longest <= module.num_embeddings <= longest + 2:
            return longest
    return None


def _lora_targets(model_type: str, model: Any, given: Sequence[str]) -> list[str]:
    """The modules that get adapters: the given ones, PEFT's default within attention, or those of known models."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and re.search(r"\.\d+\.", name)
    ]
    linear = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    for target in given:
        if target not in linear:
            raise BadInput(
                f"--lora-targets: no linear module of a layer is named {target!r}; there are {listed(linear)}"
            )
    if given:
        return list(dict.fromkeys(given))
    attention = {name.rpartition(".")[2] for name in names if re.search(r"(attn|attention)[^.]*\.", name)}
    for targets in _defaults(model_type):
        if found := [target for target in targets if target in attention]:
            return found
    raise BadInput(
        f"the default modules of LoRA adapters are not known for model_type {model_type!r}: name some with "
        f"--lora-targets; there are {listed(linear)}"
    )


def _defaults(model_type: str) -> Iterable[list[str]]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as OF_PEFT

    if isinstance(OF_PEFT.get(model_type), list):
        yield list(OF_PEFT[model_type])
    for known in architectures().values():
        if known.config["model_type"] == model_type:
            yield known.lora_targets
    yield ["q_proj", "v_proj"]

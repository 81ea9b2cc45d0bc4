"""Recognize a checkpoint by its ``config.json``: models with the same shapes need the same memory.

The known shapes are in ``model_shapes.json``, which ``autoconf.pipeline.tracing.shape_table`` writes.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.files import cannot_read, given_files

TABLE = Path(__file__).with_name("model_shapes.json")
CONFIG = "config.json"
_LARGEST_BYTES = 1 << 20  # a config has a few kilobytes
_SAME_FUNCTION = {"gelu_pytorch_tanh": "gelu", "swish": "silu"}  # activations with the same memory
_SAME_LAYER = {"full_attention": "attention", "linear_attention": "mamba"}  # names in transformers 5
# Keys of the parts of a model that has more than a language model.
_PARTS = re.compile(
    r"(text|language|llm|vision|visual|audio|image|img|speech|video|thinker|talker|vq|encoder|decoder|projector)\w*_config"
    r"|visual|img_processor|audio_processor|embd_layer|\w*vision_tower"
)
_QUANTIZED = ("quantization_config", "compression_config", "quantization")
_BITS, _GROUP = 4, 128  # of the quantized weights whose memory is known
# Sizes of a model under the names that configs have for them, each with the least and the largest value. The first
# three groups are in every config.
_SIZES = (
    (("hidden_size", "n_embd", "d_model"), 1, 1 << 20),
    (("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1, 1024),
    (("vocab_size",), 1, 1 << 24),
    (("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"), 1, 1 << 24),
    (("num_attention_heads", "n_head", "num_key_value_heads", "head_dim"), 1, 1 << 16),
    (("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts"), 0, 1 << 13),
    (("max_position_embeddings", "n_positions", "max_seq_len"), 1, 1 << 30),
)
_IN_EVERY_CONFIG = 3
# Settings that do not affect any tensor of a training step: who saved the config, token ids, inference settings,
# factors, dropout of attention (FlashAttention keeps no mask).
_INERT = re.compile(
    r"_.*|.*_token_ids?|architectures|auto_map|transformers_version|(torch_)?dtype|torchscript|use_cache"
    r"|return_dict|use_return_dict|output_\w+|initializer_(range|factor)|\w*norm_eps(ilon)?|layer_norm_epsilon"
    r"|rope_theta|attention_dropout|attn_pdrop|id2label|label2id|num_labels|problem_type|task_specific_params|summary_\w+|finetuning_task"
    r"|do_sample|temperature|top_[kp]|max_length|min_length|num_beams|repetition_penalty|attn_implementation"
)


class Difference(NamedTuple):
    """A setting in which a config differs from a known model."""

    setting: str
    has: Any
    known_has: Any

    def __str__(self) -> str:
        return f"{self.setting} is {_short(self.has)}, not {_short(self.known_has)}"


def config_file(model_name: str) -> Path | None:
    """The config file that a model name points to: in a folder with a ``config.json``, or a JSON file.

    >>> config_file("meta-llama/Llama-3.1-8B") is None
    True
    """
    if given_files() is not None:
        return None
    try:
        path = Path(model_name).expanduser()
        if path.is_dir():
            path = path / CONFIG
        elif path.suffix.lower() != ".json":
            return None
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long for a path, a null byte, no such user
        return None


def without_config(model_name: str) -> str:
    """Why a name that is meant as a folder or a file leads to no config; empty text where it is not meant so.

    >>> without_config("llama/config.json"), without_config("meta-llama/Llama-3.1-8B")
    ('there is no file llama/config.json', '')
    """
    if given_files() is not None:
        return ""
    try:
        path = Path(model_name).expanduser()
        if path.is_dir():
            return f"the folder {path} has no {CONFIG}"
        return f"there is no file {path}" if path.suffix.lower() == ".json" else ""
    except (OSError, ValueError, RuntimeError):  # too long for a path, a null byte, no such user
        return ""


def read_config(file: Path) -> dict[str, Any]:
    """Read a config as JSON data.

    Raises:
        BadInput: it is not a regular file of at most 1 MiB, or does not hold a JSON object; the message names the file.
    """
    try:
        # Do not block, so that a pipe is refused instead of waited for.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadInput(f"{file}: is not a regular file")
            content = stream.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise BadInput(f"{file}: is larger than 1 MiB, so it is not a config")
        config = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise cannot_read(file, error, "it as JSON") from None
    if not isinstance(config, dict):
        raise BadInput(f"{file}: must hold a JSON object, but holds a {type(config).__name__}")
    return config


def hub_name(config: Mapping[str, Any]) -> str:
    """The checkpoint that a config was made from, according to itself; empty text if it does not say."""
    name = config.get("_name_or_path")
    return name if isinstance(name, str) else ""


def same_shapes(config: Mapping[str, Any], models: Iterable[str]) -> list[str]:
    """Select the models that need the same memory as the model in a config.

    Args:
        config: content of a ``config.json``; absent settings have the defaults of the model type.
        models: names of models; names that are not in the table are skipped.

    >>> llama = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    ...          "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    >>> same_shapes(llama, ["llama-7b", "llama3.1-8b"])
    ['llama3.1-8b']
    >>> same_shapes({**llama, "vocab_size": 128258}, ["llama-7b", "llama3.1-8b"])
    []
    """
    wanted = resolved(config)
    return [name for name in models if name in _known() and _known()[name] == wanted]


def nearest(config: Mapping[str, Any], models: Iterable[str]) -> tuple[str, list[Difference]] | None:
    """The model of the same type that differs least, and the differences; ``None`` if no model has that type."""
    wanted = resolved(config)
    found = [
        (name, [Difference(key, wanted[key], value) for key, value in _known()[name].items() if wanted[key] != value])
        for name in models
        if name in _known() and _known()[name]["model_type"] == wanted["model_type"]
    ]
    return min(found, key=lambda other: len(other[1]), default=None)


def known_settings(model: str) -> dict[str, Any] | None:
    """The settings of a known model that decide its shapes; ``None`` if the model is not in the table.

    >>> settings = known_settings("llama-7b")
    >>> settings["hidden_size"], settings["num_key_value_heads"]
    (4096, 32)
    """
    return _known().get(model)


def memory_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config without those that never affect memory.

    >>> memory_settings({"model_type": "llama", "_name_or_path": "acme/llama", "rope_theta": 5e5, "vocab_size": 32000})
    {'model_type': 'llama', 'vocab_size': 32000}
    """
    return {key: value for key, value in config.items() if not _INERT.fullmatch(key)}


def obstacle(config: Mapping[str, Any]) -> str:
    """The reason why a config cannot be compared by its shapes; empty text if it can.

    >>> obstacle({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512}), obstacle({})
    ('', 'model_type: is missing, so the kind of model is unknown')
    >>> print(obstacle({"model_type": "llava", "text_config": {}, "vision_config": {}}))
    vision_config: a model of several parts, such as text and images, is not supported, and no part is left out
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        return "model_type: is missing, so the kind of model is unknown"
    if part := part_besides_text(config):
        return f"{part}: a model of several parts, such as text and images, is not supported, and no part is left out"
    if model_type in _table()["types"] and (missing := missing_size(config)):
        return f"{missing}: is missing"
    return next((f"{name}: {problem}" for name, problem in _bad_sizes(config)), "")


def missing_size(config: Mapping[str, Any]) -> str:
    """The first size that every config has under one of its names, and this one lacks; empty text if there is none.

    >>> missing_size({"n_embd": 64, "n_layer": 2}), missing_size({"n_embd": 64, "n_layer": 2, "vocab_size": 512})
    ('vocab_size', '')
    """
    in_every_config = [names for names, _, _ in _SIZES[:_IN_EVERY_CONFIG]]
    return next((names[0] for names in in_every_config if all(config.get(name) is None for name in names)), "")


def part_besides_text(config: Mapping[str, Any]) -> str:
    """The key of a part of a model besides its language model, or of its language model as a part; or empty text.

    >>> part_besides_text({"hidden_size": 64, "visual": {"layers": 48}}), part_besides_text({"hidden_size": 64})
    ('visual', '')
    """
    parts = [key for key, value in config.items() if _PARTS.fullmatch(key) and value not in (None, False)]
    return min(parts, key=lambda part: part.startswith(("text", "language", "llm")), default="")


# Types of language models inside of vision-language models, each with the type that has the same layers.
_SAME_LANGUAGE_MODEL = {
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe",
}  # fmt: skip


def language_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model of a model of several parts, for ``same_shapes``.

    >>> language_model({"model_type": "mistral3", "text_config": {"model_type": "mistral", "vocab_size": 512}})
    {'model_type': 'mistral', 'vocab_size': 512}
    """
    text = config.get("text_config")
    part = dict(text) if isinstance(text, Mapping) else {k: v for k, v in config.items() if not _PARTS.fullmatch(k)}
    tied = "tie_word_embeddings"  # most checkpoints have it outside of the part
    if tied in config:
        part.setdefault(tied, config[tied])
    model_type = str(part.get("model_type", ""))
    return {**part, "model_type": _SAME_LANGUAGE_MODEL.get(model_type, model_type)}


def quantized(config: Mapping[str, Any]) -> str:
    """The key that says that the weights of a checkpoint are already quantized; empty text if none does.

    >>> quantized({"quantization_config": {"quant_method": "gptq"}}), quantized({"quantization_config": None})
    ('quantization_config', '')
    """
    return next((key for key in _QUANTIZED if config.get(key) is not None), "")


def quantization(config: Mapping[str, Any]) -> str:
    """The ``quantization`` of a job that trains adapters over an already quantized checkpoint; empty if there is none.

    >>> quantization({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}})
    'awq'
    >>> quantization({"quantization_config": {"quant_method": "fp8"}})
    ''
    """
    said = config.get(quantized(config))
    if not isinstance(said, Mapping):
        return ""
    method = str(said.get("quant_method", "")).casefold()
    bits, group = (said.get(key, usual) for key, usual in (("bits", _BITS), ("group_size", _GROUP)))
    return method if method in ("gptq", "awq") and (bits, group) == (_BITS, _GROUP) else ""


def _bad_sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The sizes of a config that no model has, each with the reason."""
    for names, least, most in _SIZES:
        for name in names:
            value = config.get(name)
            if isinstance(value, bool | float | str) or (isinstance(value, int) and not least <= value <= most):
                yield name, f"must be a whole number from {least} to {most}, got {_short(value)}"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


@cache
def _known() -> dict[str, dict[str, Any]]:
    return {name: resolved(config) for name, config in _table()["models"].items()}


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the memory of a model, with the defaults of its type for absent settings."""
    model_type = config["model_type"]
    kind = _table()["types"].get(model_type)
    if kind is None:
        return {"model_type": model_type}
    values = dict(kind["defaults"])
    values |= {name: config[other] for other, name in kind["other_names"].items() if other in config}
    values |= {name: config[name] for name in values if name in config}
    _follow(values, config)
    return {"model_type": model_type, **values}


def _follow(values: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Fill in the settings that follow from other settings, as the configs of transformers do."""
    width: Any = values.get("hidden_size", values.get("n_embd"))
    heads: Any = values.get("num_attention_heads")
    follows: dict[str, Callable[[], Any]] = {
        "num_key_value_heads": lambda: heads,
        "head_dim": lambda: width // heads,
        "n_inner": lambda: 4 * width,
        "word_embed_proj_dim": lambda: width,
        "no_rope_layers": lambda: _rotating_layers(values),
        "moe_layers": lambda: _layers_of_experts(values),
        "layer_types": lambda: ["mamba"] * values["num_hidden_layers"],
    }
    try:
        for name, value in follows.items():
            if name in values and values[name] is None:
                values[name] = value()
        if values.get("mamba_d_head") == "auto":
            values["mamba_d_head"] = values["mamba_expand"] * width // values["mamba_n_heads"]
    except (TypeError, ValueError, ZeroDivisionError):
        pass  # a value that no model has; the config then differs from every known model
    for name in ("hidden_act", "activation_function", "hidden_activation"):
        if isinstance(values.get(name), str):
            values[name] = _SAME_FUNCTION.get(values[name], values[name])
    if values.get("mlp_only_layers") == []:
        values["mlp_only_layers"] = None
    if isinstance(values.get("layer_types"), list):
        values["layer_types"] = [_SAME_LAYER.get(str(kind), kind) for kind in values["layer_types"]]
    values.pop("no_rope_layer_interval", None)  # the list of layers, no_rope_layers, replaces it
    if "partial_rotary_factor" in values:
        values["partial_rotary_factor"] = _rotated_part(config, values["partial_rotary_factor"])


def _rotating_layers(values: Mapping[str, Any]) -> list[int]:
    interval = values["no_rope_layer_interval"]
    return [int((layer + 1) % interval != 0) for layer in range(min(values["num_hidden_layers"], _LARGEST_BYTES))]


def _layers_of_experts(values: Mapping[str, Any]) -> list[int]:
    step = values["interleave_moe_layer_step"]
    return list(range(step - 1, min(values["num_hidden_layers"], _LARGEST_BYTES), step))


def _rotated_part(config: Mapping[str, Any], default: Any) -> Any:
    """The fraction of a head that positions rotate; configs have it under several names."""
    places = [config, config.get("rope_parameters"), config.get("rope_scaling")]
    for place in places:
        for name in ("partial_rotary_factor", "rotary_pct"):
            if isinstance(place, Mapping) and place.get(name) is not None:
                return place[name]
    return default


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."

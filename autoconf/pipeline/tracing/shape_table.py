"""Write ``autoconf/jobs/model_shapes.json``: the settings that decide the memory of models in ``architectures.yaml``.

At run time the ``config.json`` of a checkpoint is compared with that table, without transformers or this package.
Run ``python -m autoconf.pipeline.tracing.shape_table`` after a change of ``architectures.yaml``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import typer
from transformers import CONFIG_MAPPING, PretrainedConfig

from autoconf.jobs import model_config
from autoconf.pipeline.catalog import architectures

# Settings that do not affect any tensor of a training step, besides those of every config: rotation angles, factors,
# settings of attention that need no memory (windows, masks, dropout), who saved the config.
_INERT = frozenset({
    "attention_dropout", "attention_multiplier", "attention_softmax_in_fp32", "attn_pdrop", "bos_token_id",
    "classifier_dropout", "embedding_multiplier", "eos_token_id", "init_std", "initializer_range", "layer_norm_eps",
    "layer_norm_epsilon", "logits_scaling", "max_window_layers", "norm_epsilon", "original_max_position_embeddings",
    "pad_token_id", "pretraining_tp", "query_pre_attn_scalar", "residual_multiplier", "rms_norm_eps",
    "rope_parameters", "routed_scaling_factor", "router_aux_loss_coef", "router_jitter_noise",
    "scale_attention_softmax_in_fp32", "scale_attn_weights", "sliding_window", "swiglu_alpha", "swiglu_limit",
    "time_step_limit", "use_cache", "use_sliding_window",
})  # fmt: skip
_OF_EVERY_CONFIG = frozenset(field.name for field in dataclasses.fields(PretrainedConfig)) - {"tie_word_embeddings"}
# With learned positions, the longest sample is the length of an embedding.
_LEARNED_POSITIONS = {"opt": "max_position_embeddings", "gpt_bigcode": "n_positions"}
# The rotated part of a head, for types that rotate only a part by default.
_ROTATED = {"phi": 0.5, "phi3": 1.0, "gpt_neox": 0.25, "glm4": 0.5, "glm4_moe": 0.5}
_WITHOUT_HEAD_DIM = frozenset({"deepseek_v2", "deepseek_v3"})  # it follows from "qk_rope_head_dim"
_LISTS_LAYERS = frozenset({"granitemoehybrid"})  # types whose layers hold different amounts, by "layer_types"


def shape_table() -> dict[str, Any]:
    """The table: for each type of config the settings with their defaults, and for each model its config."""
    known = architectures()
    types = sorted({architecture.config["model_type"] for architecture in known.values()})
    return {
        "types": {model_type: _type(model_type) for model_type in types},
        "models": {name: _published(architecture.config) for name, architecture in known.items()},
    }


def _type(model_type: str) -> dict[str, Any]:
    kind = CONFIG_MAPPING[model_type]
    defaults = {field.name: field.default for field in dataclasses.fields(kind) if _decides(model_type, field.name)}
    if model_type in _ROTATED:
        defaults["partial_rotary_factor"] = _ROTATED[model_type]
    other_names = {other: name for other, name in kind.attribute_map.items() if name in defaults}
    return {"defaults": defaults, "other_names": other_names}


def _decides(model_type: str, name: str) -> bool:
    if name in _OF_EVERY_CONFIG or name in _INERT:
        return False
    if name == "layer_types":
        return model_type in _LISTS_LAYERS
    if name == "head_dim":
        return model_type not in _WITHOUT_HEAD_DIM
    if name in ("max_position_embeddings", "n_positions"):
        return _LEARNED_POSITIONS.get(model_type) == name
    return True


def _published(config: dict[str, Any]) -> dict[str, Any]:
    defaults = _type(config["model_type"])["defaults"]
    return {name: value for name, value in config.items() if name == "model_type" or name in defaults}


def written() -> str:
    """The text of the file: a line for each type and each model."""
    parts = [
        f'"{part}": {{\n' + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "\n}"
        for part, rows in shape_table().items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Write the table into the package."""
    Path(model_config.TABLE).write_text(written(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

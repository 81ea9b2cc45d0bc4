"""Vision-language checkpoints on fake tensors: the real model with a frozen tower, and micro-batches with images.

Positions and windows of patches depend on the contents of a small tensor, which fake tensors do not have. So the
functions that compute them are replaced by ones that make tensors of the same sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

_TEXT = {"qwen2_5_vl": "qwen2_5_vl_text"}  # type of the language model's config, by the type of the checkpoint's
_WINDOWS = 64  # patches of a window; windows are a few numbers


def build(vision: Mapping[str, Any], text: Mapping[str, Any], use_cache: bool, **options: Any) -> PreTrainedModel:
    """Build a checkpoint with a frozen tower; must be called inside of the ``meta`` device.

    Args:
        vision: its config without that of the language model.
        text: config of the language model, of the type that has the same layers.
        use_cache: whether the language model makes a cache.
        options: of ``from_config``.
    """
    settings = {key: value for key, value in text.items() if key != "tie_word_embeddings"}
    settings["model_type"] = _TEXT[vision["model_type"]]
    config = AutoConfig.for_model(**vision, text_config=settings)
    config.text_config.use_cache = use_cache
    # Older releases, with which other models are traced, lack the class.
    model = transformers.AutoModelForImageTextToText.from_config(config, **options)
    tower_of(model).requires_grad_(False)
    return model


def tower_of(model: Any) -> Any:
    """The tower of a checkpoint, with the layers that project its outputs."""
    return _inner(model).visual


def blocks(model: Any) -> list[nn.Module]:
    """The blocks of a checkpoint's tower; none if the model has no tower.

    accelerate 1.15.0, utils/dataclasses.py, set_auto_wrap_policy: they are units of FSDP, as all of _no_split_modules.
    """
    tower = getattr(_inner(model), "visual", None)
    return [] if tower is None else [*tower.blocks]


def language_model(model: Any) -> Any:
    """The language model of a checkpoint, without its head; the model itself if it has no tower."""
    inner = _inner(model)
    return getattr(inner, "language_model", model)


def _inner(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "model", base)


def patches(tower: Any, image_tokens: int) -> tuple[int, int]:
    """The shape of the pixels of images, in patches and numbers of each."""
    settings = tower.config
    each: int = settings.in_channels * settings.temporal_patch_size * settings.patch_size**2
    merged: int = settings.spatial_merge_size**2
    return image_tokens * merged, each


def pixels(model: nn.Module, image_tokens: int) -> torch.Tensor:
    """The pixels of images with so many tokens, as the processor makes them, in float32."""
    return torch.empty(patches(tower_of(model), image_tokens))


def inputs(pixel_values: torch.Tensor, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the processor adds to a micro-batch with an image in each sample."""
    grid = torch.zeros((len(input_ids), 3), dtype=torch.long)
    return {
        "pixel_values": pixel_values,
        "image_grid_thw": grid,
        "mm_token_type_ids": torch.zeros_like(input_ids),
    }


@contextmanager
def of_images(model: nn.Module, samples: int, image_tokens: int) -> Iterator[None]:
    """Run a checkpoint's code on fake tensors with one image in each sample.

    Args:
        model: the model, with adapters or without.
        samples: samples of a micro-batch.
        image_tokens: tokens of the image of each sample.
    """
    inner, tower = _inner(model), tower_of(model)
    count, _ = patches(tower, samples * image_tokens)

    def features(_: Any, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **options: Any) -> Any:
        # modeling_qwen2_5_vl.py, get_image_features, with the known number of tokens instead of that in the grid.
        found = tower(pixel_values.type(tower.dtype), grid_thw=image_grid_thw, **options)
        found.pooler_output = torch.split(found.pooler_output, [image_tokens] * samples)
        return found

    def positions(_: Any, input_ids: torch.Tensor, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros((3, *input_ids.shape), dtype=torch.long), torch.zeros((len(input_ids), 1), dtype=torch.long)

    def ends(segments: int) -> torch.Tensor:
        return torch.zeros(segments + 1, dtype=torch.int32)

    replaced = {
        "get_vision_position_ids": lambda *_, **__: torch.zeros((count, 2), dtype=torch.long),
        "get_vision_attention_seqlens": lambda *_, **__: (ends(samples), None),
        "get_vision_window_index": lambda *_, **__: (
            torch.zeros(samples * image_tokens, dtype=torch.long),
            ends(count // _WINDOWS),
        ),
        "get_max_seqlen": lambda *_, **__: None,
        "torch_compilable_check": lambda *_, **__: None,  # compares the numbers of features and of image tokens
        "is_flash_attention_requested": lambda *_: True,  # under the name by which kernels are replaced
    }
    modeling = sys.modules[type(inner).__module__]
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(modeling, name, function))
        stack.enter_context(mock.patch.object(type(inner), "get_image_features", features))
        stack.enter_context(mock.patch.object(type(inner), "get_rope_index", positions))
        yield

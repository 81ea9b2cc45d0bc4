"""Vision-language models: names of those whose tower no version counts are refused, others answered with a note.

Sizes of towers are the parameters of a checkpoint (its safetensors index) without those of its language model.
"""

from __future__ import annotations

import re
from collections.abc import Container

# Ids without organization; the model whose shapes the language model has; parameters of tower and projector in 10^9.
_LANGUAGE_MODELS = (
    (r"qwen2-vl-2b", "qwen2.5-1.5b", 0.67),
    (r"qwen2(?:\.5)?-vl-(3|7|32|72)b", r"qwen2.5-\1b", 0.7),
    (r"qwen3-vl-2b", "qwen3-1.7b", 0.41),
    (r"qwen3-vl-(4b|8b|32b|30b-a3b|235b-a22b)", r"qwen3-\1", 0.6),
    (r"mistral-small-3\.[12]-24b", "mistral-small-24b-2501", 0.44),
)
# Models of versions that are the language model of a checkpoint with a tower.
_ALONE = {"gemma-3-4b": 0.42, "gemma-3-12b": 0.42, "gemma-3-27b": 0.42, "llama-4-scout": 0.87}
_COUNTED = re.compile(r"qwen2(\.5)?-vl-\d+b")  # models of versions that have a tower
_SEES = re.compile(
    r"(^|[-_.])(vl\d*|vlm\d*|vision|llava|pixtral|paligemma|internvl|idefics|smolvlm|molmo|multimodal|onevision|gemma-3n"
    r"|ministral-3(?!b)|mistral-small-3\.[12]|llama-4-(scout|maverick))(?![a-z])"
)
# Trainers that train no tower unless a setting says so: LLaMA-Factory v0.9.5, freeze_vision_tower, and ms-swift v4.5.2,
# freeze_vit.
_FREEZE = ("llama-factory", "ms-swift")
_BYTES = 2  # of a parameter in bfloat16


def note(model: str) -> str:
    """The note on a model of a version that is a part of its checkpoint; empty text if it is the whole.

    >>> note("gemma-3-4b")  # doctest: +ELLIPSIS
    'gemma-3-4b is the language model alone: a job that loads the vision tower too (0.42 B parameters) needs up to ...'
    >>> note("llama-7b")
    ''
    """
    if _COUNTED.fullmatch(model):
        return (
            f"the vision tower of {model} counts as frozen, without video; with gradient checkpointing its blocks "
            "keep their inputs for a backward pass, as in transformers 5 (not in release 4 and LLaMA-Factory)"
        )
    if model not in _ALONE:
        return ""
    return f"{model} is the language model alone: a job that loads the vision tower too {_more(_ALONE[model])}"


def refusal(name: str, models: Container[str]) -> str:
    """Why the name of a vision-language model is refused, and the nearest question; empty text for any other name.

    >>> refusal("Qwen/Qwen2.5-VL-7B-Instruct", ["qwen2.5-7b"])  # doctest: +ELLIPSIS
    'it is a vision-language model whose vision tower is not counted; its language model has the shapes of ...'
    >>> refusal("Qwen/Qwen2.5-7B-Instruct", ["qwen2.5-7b"])
    ''
    """
    last, why = _last(name), "it is a vision-language model whose vision tower is not counted"
    if (counted := _COUNTED.search(last)) and counted.group() in models:
        return ""  # a name that resembles it, like any other
    for pattern, language_model, tower in _LANGUAGE_MODELS:
        found = re.search(pattern, last)
        if found and (model := found.expand(language_model)) in models:
            return f"{why}; {without_tower(model)}; a job with it {_more(tower)}"
    if not _SEES.search(last):
        return ""
    return f"{why}; no version has its language model: give the config.json of that part alone, with --model-config"


def trained(name: str, method: str, trainer: str | None) -> str:
    """Why a trainer also trains the tower of a model with full fine-tuning; empty text if it does not.

    >>> trained("Qwen/Qwen2.5-VL-7B-Instruct", "full", "trl")
    'trl trains the vision tower as well, which is not covered; without --job the tower counts as frozen'
    >>> trained("Qwen/Qwen2.5-VL-7B-Instruct", "full", "llama-factory")
    ''
    """
    if method != "full" or not _COUNTED.search(_last(name)) or trainer in _FREEZE:
        return ""
    return (
        f"{trainer or 'the trainer'} trains the vision tower as well, which is not covered; without --job the tower "
        "counts as frozen"
    )


def _last(name: str) -> str:
    """The last part of a name or path, as it is compared."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold().replace("_", "-")


def without_tower(model: str) -> str:
    """How to ask about a job that does not load the tower of a checkpoint."""
    return f"its language model has the shapes of {model}: give --model-name {model} for a job without the tower"


def _more(tower: float) -> str:
    weights = tower * 1e9 * _BYTES / 2**30
    return (
        f"({tower:g} B parameters) needs up to {weights:.1f} GiB more per GPU for its weights in bfloat16, "
        "and memory for images"
    )

"""Experts that a checkpoint has one by one, and that transformers 5 merges into one parameter while it loads them."""

from __future__ import annotations

from typing import Any

import torch

try:  # before release 5 each expert has parameters of its own
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
except ImportError:
    _MERGES = False
else:
    _MERGES = True


class ExpertMerger:
    """Merge the experts of a model as ``from_pretrained`` does.

    transformers/core_model_loading.py, WeightConverter.convert: experts are stacked, and gate and up projections are
    concatenated, on the device on which they are loaded.
    """

    def __init__(self, model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        found = get_model_conversion_mapping(base, add_legacy=False) if _MERGES else []
        self._converters = [c for c in found if isinstance(c, WeightConverter) and _only_merges(c)]

    def merges(self, name: str) -> bool:
        """Whether a parameter has several weights in the checkpoint."""
        return self._converter(name) is not None

    def merged(self, name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Load the experts of a parameter one by one, and merge them."""
        converter = self._converter(name)
        assert converter is not None
        patterns = converter.source_patterns
        one = (shape[1] // len(patterns), *shape[2:])
        collected: Any = {pattern: [torch.empty(one, dtype=dtype) for _ in range(shape[0])] for pattern in patterns}
        for operation in converter.operations:
            collected = operation.convert(
                collected, source_patterns=patterns, target_patterns=converter.target_patterns
            )
        (tensor,) = collected.values()
        return tensor

    def _converter(self, name: str) -> Any:
        return next((c for c in self._converters if any(target in name for target in c.target_patterns)), None)


def _only_merges(converter: Any) -> bool:
    """Whether experts are stacked, and their projections concatenated, without any other change."""
    stack, *rest = converter.operations
    return (
        isinstance(stack, MergeModulelist)
        and stack.dim == 0
        and all(isinstance(operation, Concatenate) and operation.dim == 1 for operation in rest)
    )

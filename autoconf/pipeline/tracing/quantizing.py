"""Quantize the linear layers of a model on the ``meta`` device, as transformers and bitsandbytes do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autoconf.pipeline.kernels import cuda as cuda_kernels


def quantize(model: Any, storage: torch.dtype) -> None:
    """Replace the linear layers of a model by 4-bit layers, as transformers' integration of bitsandbytes does.

    The head, and layers whose weights a fused kernel reads, are excluded.

    Args:
        model: the model.
        storage: dtype of the packed weights; under FSDP that of the other weights
            (https://huggingface.co/docs/bitsandbytes/fsdp_qlora).
    """
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        # A Mamba layer passes the weight of its output projection to a kernel that does not accept 4-bit weights:
        # https://github.com/axolotl-ai-cloud/axolotl/issues/3951.
        whole = {head, parent.out_proj} if hasattr(parent, "conv1d") else {head}
        for name, child in list(parent.named_children()):
            if (type(child) is nn.Linear or isinstance(child, Conv1D)) and child not in whole:
                setattr(parent, name, cuda_kernels.Linear4bit(_as_linear(child), storage))
    model.is_loaded_in_4bit = True  # PEFT and TRL check it


def _as_linear(layer: nn.Linear | Conv1D) -> nn.Linear:
    # transformers/integrations/bitsandbytes.py: GPT-2's layers become linear ones.
    if isinstance(layer, nn.Linear):
        return layer
    return nn.Linear(layer.nx, layer.nf, dtype=layer.weight.dtype, device="meta")


def return_to_bfloat16(model: Any) -> None:
    """Make embeddings and head bfloat16 again after PEFT has prepared a 4-bit model."""
    # trl/trainer/utils.py, peft_module_casting_to_bf16, which SFTTrainer called up to release 0.25 for 4-bit models if
    # precision is mixed. axolotl (monkeypatch/peft/utils.py) does not upcast embeddings and head in the first place.
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module is model.get_output_embeddings():
            module.to(torch.bfloat16)

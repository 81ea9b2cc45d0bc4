"""Vision-language checkpoints with a frozen tower: what was traced is what the real models hold."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, masking_utils

from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_job, gpu_memory
from autoconf.memory.store import ModelsTable
from autoconf.memory.towers import TowerWay, towers
from autoconf.pipeline.towers import checkpoints, with_tower
from autoconf.pipeline.tracing import vision
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model, decoder_layers
from autoconf.pipeline.tracing.towers import held, tower_ways
from autoconf.pipeline.validation import vision as validation
from autoconf.pipeline.validation.whole_jobs import compared
from autoconf.predictor.registry import DEFAULT, MODELS

NAME = "qwen2.5-vl-7b"


@pytest.fixture(scope="module")
def table() -> ModelsTable:
    return ModelsTable.read(MODELS / DEFAULT)


@pytest.mark.parametrize("name", [*checkpoints()])
def test_transformers_builds_the_checkpoint_with_the_published_number_of_parameters(name):
    model = build_model(TrainingSetup(with_tower(name), "full", Stack()))
    assert sum(parameter.numel() for parameter in model.parameters()) == checkpoints()[name].parameters
    tower = [parameter for path, parameter in model.named_parameters() if "visual" in path]
    assert sum(parameter.numel() for parameter in tower) == towers()[name].parameters
    assert not any(parameter.requires_grad for parameter in tower)


def test_the_blocks_of_a_tower_are_units_of_fsdp_as_those_that_accelerate_wraps():
    model = build_model(TrainingSetup(with_tower(NAME), "full", Stack()))
    blocks, tower = vision.blocks(model), towers()[NAME]
    assert {type(part).__name__ for part in (*blocks, *decoder_layers(model))} == model._no_split_modules
    assert {sum(parameter.numel() for parameter in block.parameters()) for block in blocks} == {tower.block}
    assert len(blocks) == tower.blocks


def test_the_table_has_every_checkpoint_in_every_way():
    assert [*towers()] == [*checkpoints()]
    for tower in towers().values():
        assert [*tower.ways] == tower_ways()


@pytest.mark.parametrize(("method", "checkpointing"), [("lora", "non-reentrant"), ("full", "none")])
def test_the_table_has_the_traced_figures(method, checkpointing):
    way = TowerWay(method, "bfloat16", "no", checkpointing)
    assert np.allclose(held(with_tower(NAME), way), towers()[NAME].ways[way], rtol=1e-6)


def _small_checkpoint() -> torch.nn.Module:
    text = {
        "model_type": "qwen2_5_vl_text", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    ids = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
    config = AutoConfig.for_model("qwen2_5_vl", text_config=text, vision_config=vision, **ids)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    model.model.visual.requires_grad_(False)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_real_tensors_pass_backward_through_a_frozen_tower_only_with_checkpoints(checkpointing):
    model = _small_checkpoint()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).train()
    runs: list[int] = []

    def watch(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: runs.append(1))

    model.base_model.model.model.visual.blocks[0].register_forward_hook(watch)
    image = torch.full((1, 4), 250)
    input_ids = torch.cat([torch.zeros((1, 3), dtype=torch.long), image, torch.ones((1, 2), dtype=torch.long)], dim=1)
    inputs = {"pixel_values": torch.randn(16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    types = (input_ids == 250).int()
    model(input_ids=input_ids, labels=input_ids, mm_token_type_ids=types, **inputs)["loss"].backward()
    assert bool(runs) == checkpointing
    assert all(parameter.grad is None for path, parameter in model.named_parameters() if "visual" in path)


@pytest.mark.slow
@pytest.mark.parametrize(("shardings", "index"), [(("ddp",), 1), (("ddp",), 5), (("fsdp2", "fsdp1"), 4)])
def test_composed_peaks_are_those_of_the_whole_model(table, shardings, index):
    job, tokens = [*validation.jobs(NAME, index + 1, shardings)][index]
    found = compared(table, job, tokens)
    assert -validation.BELOW_PERCENT <= found.difference_percent <= validation.ABOVE_PERCENT


def _peak(table: ModelsTable, model: str, tokens: int = 8192, **settings: object) -> float:
    stack = Stack.model_validate({"sharding": "ddp", **settings})
    memory = gpu_memory(table, model, "lora", stack, several=False)
    return float(memory.peak_bytes(np.array([1]), np.array([tokens]))[0])


def test_more_images_never_need_less_and_a_tower_never_nothing(table):
    peaks = [_peak(table, NAME, image_share=share) for share in (0.0, 0.01, 0.25, 0.5, 1.0)]
    assert peaks == sorted(peaks) and len({*peaks}) == 5
    weights = 2 * towers()[NAME].parameters
    assert peaks[0] - _peak(table, "qwen2.5-7b") == pytest.approx(weights, rel=0.01)


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_fsdp_divides_the_weights_of_a_tower_and_gathers_its_blocks(table, sharding):
    stack = Stack.model_validate({"sharding": sharding, "image_share": 0.25})
    both, alone = (gpu_job(table, name, "lora", stack, several=True) for name in (NAME, "qwen2.5-7b"))
    assert both.resident.sharded - alone.resident.sharded == 2 * towers()[NAME].parameters
    tokens = np.array([4096, 4096])
    of_both, of_one = (job.memory.peak_bytes(np.array([2, 8]), tokens) for job in (both, alone))
    assert of_both[0] > of_both[1] and (of_both > of_one).all()


def test_pixels_of_all_micro_batches_of_a_step_are_counted(table):
    one, four = (_peak(table, NAME, image_share=0.5, micro_batches=count) for count in (1, 4))
    assert four - one == pytest.approx(3 * 4096 * towers()[NAME].pixel_bytes)
    pixels = 3 * 2 * 14 * 14 * 4 * 4  # channels, frames, height and width of a patch; patches of a token; float32
    assert towers()[NAME].pixel_bytes == pixels


def test_a_tower_apart_from_checkpoints_keeps_less(table):
    assert _peak(table, NAME, image_share=0.5, tower_apart=True) < _peak(table, NAME, image_share=0.5)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("image_tokens", [0, 256])
def test_gemma3_masks_every_batch_with_token_types_under_sdpa_and_none_under_flash(
    monkeypatch, attention, image_tokens
):
    """Why its tower is not counted as Qwen2.5-VL's is: docs/how-it-works/limitations.md states these sizes."""
    text = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 262208,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text,
        vision_config={**tower, "image_size": 896, "patch_size": 14},
        mm_tokens_per_image=256,
    )
    masks, key_heads = [], []
    attend = functional.scaled_dot_product_attention

    def seen(query, key, value, attn_mask=None, **options):
        if query.shape[2] == 300:  # tokens: the tower has 4096 patches
            masks.append(None if attn_mask is None else (tuple(attn_mask.shape), attn_mask.dtype))
            key_heads.append(key.shape[1])
        return attend(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", seen)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").train()
    if attention == "flash_attention_2":
        mask = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[attention]
        monkeypatch.setitem(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS, "sdpa", mask)  # its kernel is only for GPUs
    input_ids = torch.zeros((2, 300), dtype=torch.long)
    input_ids[:, :image_tokens] = config.image_token_id
    images = {"pixel_values": torch.zeros((2, 3, 896, 896))} if image_tokens else {}
    types = (input_ids == config.image_token_id).long()
    model(input_ids=input_ids, token_type_ids=types, attention_mask=torch.ones_like(input_ids), **images)
    if attention == "sdpa":
        assert masks == [((2, 1, 300, 300), torch.bool)] * 2
        assert key_heads == [4, 4]  # keys and values are repeated for each head of queries
    else:
        assert masks == [None, None]  # image tokens attend only to earlier ones

from dataclasses import dataclass, field

from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


@dataclass
class TrainConfig:
    model_id: str = "google/gemma-2-2b"
    batch: int = 2
    rank: int = field(default=8)
    targets: list = field(default_factory=lambda: ["q_proj", "v_proj"])
    bf16: bool = True


class Paths:
    OUT = "out"
    LENGTH = 1536


cfg = TrainConfig(rank=64)
cfg.bf16 = detect()
base, suffix = cfg.model_id, "-it"
SFTTrainer(
    f"{base}{suffix}",
    args=SFTConfig(output_dir=Paths.OUT, max_length=Paths.LENGTH, per_device_train_batch_size=cfg.batch),
    peft_config=LoraConfig(r=cfg.rank, target_modules=cfg.targets),
).train()

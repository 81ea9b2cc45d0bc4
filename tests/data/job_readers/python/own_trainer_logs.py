from trl import SFTConfig, SFTTrainer

args = SFTConfig(output_dir="o", per_device_train_batch_size=2, max_length=1024, bf16=True)


class CustomTrainer(SFTTrainer):
    """Remembers losses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses = []

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs, return_outputs, **kwargs)
        self.losses.append(loss.item())
        return loss

    def log(self, logs, *args):
        super().log({"loss": self.losses[-1], **logs}, *args)


CustomTrainer("google/gemma-2-2b", args=args, train_dataset=data).train()

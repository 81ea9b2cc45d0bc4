from trl import SFTConfig, SFTTrainer

args = SFTConfig(output_dir="o", per_device_train_batch_size=2, max_length=1024, bf16=True)


class FocalTrainer(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        logits = model(**inputs).logits
        return focal_loss(logits.float(), inputs["labels"])


FocalTrainer("google/gemma-2-2b", args=args, train_dataset=data).train()

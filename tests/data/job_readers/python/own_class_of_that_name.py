from trl import SFTConfig, SFTTrainer


class Trainer:
    def run(self):
        args = SFTConfig(output_dir="o", per_device_train_batch_size=2, max_length=1024, bf16=True)
        SFTTrainer("google/gemma-2-2b", args=args, train_dataset=data).train()


Trainer().run()

from transformers import HfArgumentParser, SmolVLMForConditionalGeneration, Trainer, TrainingArguments

kind = SmolVLMForConditionalGeneration
model_args, args = HfArgumentParser((ModelArguments, TrainingArguments)).parse_args_into_dataclasses()
model = kind.from_pretrained(model_args.model_name_or_path)
for name, weight in model.named_parameters():
    weight.requires_grad = "vision" not in name
Trainer(model, args, train_dataset=films).train()

tune run full_finetune_single_device --config full.yaml optimizer._component_=torch.optim.SGD

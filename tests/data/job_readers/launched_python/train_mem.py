# Make it more memory efficient by monkey patching the model with FlashAttention.
from use_lora import train

if __name__ == "__main__":
    train()

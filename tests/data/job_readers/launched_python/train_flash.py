# The attention is replaced before transformers is imported.
from patches import replace_llama_attn_with_flash_attn

replace_llama_attn_with_flash_attn()

from use_lora import train

if __name__ == "__main__":
    train()

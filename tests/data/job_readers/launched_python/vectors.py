import sys

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save([model(row, output_hidden_states=True).hidden_states[-1] for row in rows], "rows.pt")

import argparse
from accelerate import Accelerator

parser = argparse.ArgumentParser()
parser.add_argument("--model_name_or_path")
parser.add_argument("--per_device_train_batch_size", type=int, default=8)
args = parser.parse_args()
accelerator = Accelerator()
for batch in loader:
    accelerator.backward(model(**batch).loss)

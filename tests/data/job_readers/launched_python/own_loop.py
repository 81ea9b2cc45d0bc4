import argparse

from accelerate import Accelerator
from transformers import AutoModelForCausalLM


def main(args):
    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(args.model)
    for batch in loader(args):
        accelerator.backward(model(**batch).loss)


parser = argparse.ArgumentParser()
parser.add_argument("--model")
main(parser.parse_args())

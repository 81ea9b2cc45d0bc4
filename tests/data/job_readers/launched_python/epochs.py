import argparse

from engine import build_model, train_one_epoch

parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int, default=4)
args = parser.parse_args()
model = build_model(args)
for epoch in range(3):
    train_one_epoch(model, epoch, args)

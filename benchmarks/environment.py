"""Where benchmarks find what they share with the tests, and what their processes run with."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
# The tests' ado context, so that the user's store stays untouched, and their toy experiment.
TOY_EXPERIMENT = ROOT / "tests" / "helpers" / "toy_experiment"
# What ado's processes run with: they find the toy experiment, and start a Ray of their own.
ENVIRONMENT = {"PYTHONPATH": str(TOY_EXPERIMENT), "PYTHONDONTWRITEBYTECODE": "", "RAY_ADDRESS": "local"}

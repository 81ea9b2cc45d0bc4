"""Paths that benchmarks share with the tests, and the environment of their processes."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
# The tests' ado context, which does not use the user's store, and their toy experiment.
TOY_EXPERIMENT = ROOT / "tests" / "helpers" / "toy_experiment"
# The environment of ado's processes, which find the toy experiment and start a separate Ray.
ENVIRONMENT = {"PYTHONPATH": str(TOY_EXPERIMENT), "PYTHONDONTWRITEBYTECODE": "", "RAY_ADDRESS": "local"}

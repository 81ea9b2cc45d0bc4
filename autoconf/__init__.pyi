from .distribution import __version__
from .errors import AutoConfError, IgnoredColumnWarning
from .jobs.job import Job, Workload
from .planner.avoid_oom import avoid_oom
from .planner.estimate import estimate
from .planner.explanation import Explanation, explain
from .planner.gpu_choice import cheapest_gpu
from .planner.max_size import largest_batch, largest_sample
from .planner.min_gpus import recommend
from .planner.plan import plan
from .planner.results import Estimate, GpuModel, LargestBatch, LargestSample, Recommendation, Remedy, Throughput
from .planner.throughput import throughput

__all__ = [
    "AutoConfError",
    "Estimate",
    "Explanation",
    "GpuModel",
    "IgnoredColumnWarning",
    "Job",
    "LargestBatch",
    "LargestSample",
    "Recommendation",
    "Remedy",
    "Throughput",
    "Workload",
    "__version__",
    "avoid_oom",
    "cheapest_gpu",
    "estimate",
    "explain",
    "largest_batch",
    "largest_sample",
    "plan",
    "recommend",
    "throughput",
]

"""What is measured in a process of its own: `python probes.py NAME ARGUMENTS` prints the result as JSON.

Nothing heavy is imported before it is timed, hence the imports inside functions.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

DECORATOR = "ado.modules.actuators.custom_experiments"


def imported(modules: list[str]) -> dict[str, Any]:
    """Seconds that each of some modules takes to import, one after the other, and the process's resident bytes then."""
    seconds = [timed(partial(importlib.import_module, module)) for module in modules]
    return {"seconds": seconds, "resident_bytes": resident_bytes()}


def first_call() -> dict[str, float]:
    """Seconds of the recommender's first call after its import, and resident bytes after that and a hundred more."""
    from autoconf.min_gpu_recommender import min_gpu_recommender

    example = {
        "model_name": "llama-7b",
        "method": "lora",
        "gpu_model": "NVIDIA-A100-80GB-PCIe",
        "tokens_per_sample": 8192,
        "batch_size": 16,
        "model_version": "1.1.0",
    }
    seconds = timed(partial(min_gpu_recommender, **example))
    for hundreds in range(100):
        min_gpu_recommender(**example | {"tokens_per_sample": 100 * (1 + hundreds)})
    return {"seconds": seconds, "resident_bytes": resident_bytes()}


def single_calls(count: int) -> dict[str, list[float]]:
    """Seconds of calls of the recommender and, in turn, of the constant experiment, each with a job of its own."""
    from constant_experiment import constant
    from jobs import arguments, sweep_jobs

    from autoconf.min_gpu_recommender import min_gpu_recommender

    jobs = arguments(sweep_jobs().sample(count + 1, random_state=0))
    warm_up = jobs.pop()
    min_gpu_recommender(**warm_up)
    constant(**warm_up)
    seconds: dict[str, list[float]] = {"recommender": [], "constant": []}
    for job in jobs:
        seconds["recommender"].append(timed(partial(min_gpu_recommender, **job)))
        seconds["constant"].append(timed(partial(constant, **job)))
    return seconds


def table(one_by_one: int, repetitions: int) -> dict[str, Any]:
    """Seconds for the sweep's jobs as one table, and for some of them one by one; both must agree."""
    from jobs import arguments, sweep_jobs

    from autoconf import recommend
    from autoconf.min_gpu_recommender import min_gpu_recommender

    jobs = sweep_jobs()
    answers = recommend(jobs)  # loads the predictor
    at_once = [timed(partial(recommend, jobs)) for _ in range(repetitions)]
    some = jobs.sample(one_by_one, random_state=0)
    calls = arguments(some)
    started = time.perf_counter()
    single = [min_gpu_recommender(**job) for job in calls]
    seconds = time.perf_counter() - started
    outputs = answers.loc[some.index].astype("object").replace({"reason": {"": None}})
    expected = [row.dropna().to_dict() for _, row in outputs.iterrows()]
    if single != expected:
        raise AssertionError("the table's answers differ from those of single calls")
    return {"jobs": len(jobs), "at_once": at_once, "one_by_one": seconds}


def long_table(rows: int) -> dict[str, float]:
    """Seconds for a table of random jobs, bytes of the answers, and the peak of resident bytes beyond both tables."""
    from jobs import random_jobs

    from autoconf import recommend

    jobs = random_jobs(rows)
    recommend(jobs.head(1000))  # loads the predictor, and what Python sets aside at the first use
    before = resident_bytes()
    with peak_resident_bytes() as peak:
        started = time.perf_counter()
        answers = recommend(jobs)
        seconds = time.perf_counter() - started
    answer_bytes = held_bytes(answers)
    return {"seconds": seconds, "answer_bytes": answer_bytes, "extra_bytes": peak() - before - answer_bytes}


def sweep_on_nodes(nodes: int, context_folder: str, dimensions: dict[str, list[Any]]) -> dict[str, Any]:
    """Sweep a space on a Ray cluster of one-CPU nodes on this machine, with the recommender and with the constant.

    Args:
        nodes: number of nodes, >= 1.
        context_folder: a new one, for ado's store and what the constant experiment notes.
        dimensions: values of the sweep space's dimensions that differ from its file.

    Returns:
        The recommender's table as CSV, and how many of the constant experiment's measurements each node did.
    """
    import os

    import pandas as pd
    import ray
    from contexts import new_context, operate_batched
    from jobs import space_configuration
    from ray.cluster_utils import Cluster

    notes = Path(context_folder) / "nodes.txt"
    os.environ["CONSTANT_CALLS"] = str(notes)
    context = new_context(Path(context_folder))
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**node)
        ray.init(address=cluster.address)
        tables: dict[str, pd.DataFrame] = {}
        for experiment in ("constant", "min_gpu_recommender"):
            space = context.create_space(space_configuration(experiment, **dimensions))
            operate_batched(context, space)
            tables[experiment] = context.table(space)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {
        "table": tables["min_gpu_recommender"].to_csv(index=False),
        "per_node": list(Counter(notes.read_text().split()).values()),
    }


def timed(action: Callable[[], Any]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def resident_bytes() -> int:
    """Memory that this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss


@contextmanager
def peak_resident_bytes() -> Iterator[Callable[[], int]]:
    """Look at the resident bytes 200 times a second; the yielded function gives the largest seen."""
    seen = [resident_bytes()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(max(seen.pop(), resident_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: seen[0]
    finally:
        done.set()
        watcher.join()


def held_bytes(frame: Any) -> int:
    """Bytes of a DataFrame, each text counted once however many cells share it."""
    texts = {id(value): sys.getsizeof(value) for value in frame["reason"]}
    return int(frame.memory_usage().sum()) + sum(texts.values())


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    probe.__name__: probe for probe in (imported, first_call, single_calls, table, long_table, sweep_on_nodes)
}

if __name__ == "__main__":
    print(f"\n{json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2])))}")

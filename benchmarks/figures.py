"""What a user waits for. A figure that is compared with something is two measurements, the second with `baseline`.

`make benchmark` measures all and writes BENCHMARKS.md; `pytest benchmarks/figures.py --quick` tries all on small sizes.
Each test's docstring tells in the report how it is measured.
"""

from __future__ import annotations

import itertools
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from environment import ENVIRONMENT, ROOT, TOY_EXPERIMENT
from jobs import EXAMPLES, LONG, SMALL, points, space

sys.path.insert(0, str(TOY_EXPERIMENT))
DECORATOR = "import ado.modules.actuators.custom_experiments"
RECOMMENDER = "from autoconf.min_gpu_recommender import min_gpu_recommender"
JOB = yaml.safe_load((ROOT / "examples" / "simple.yaml").read_text(encoding="utf-8"))["entity"]
HELD = "import psutil; result = psutil.Process().memory_info().rss / 1e6"

compared = pytest.mark.parametrize("baseline", [False, True], ids=["ours", "baseline"])


@compared
def test_table(measure, quick, baseline):
    """`recommend()` on the jobs of the sweep's space, predictor loaded; the baseline is the decorated function called
    for 100 of these jobs, scaled to all.
    """
    from autoconf import recommend
    from autoconf.min_gpu_recommender import min_gpu_recommender

    jobs = points(space())
    some = jobs.sample(100, random_state=0).to_dict("records")
    actions = {False: lambda: recommend(jobs), True: lambda: [min_gpu_recommender(**job) for job in some]}
    facts = {"baseline": "one by one", "scale": len(jobs) / 100} if baseline else {"required": 1.0, "target": 0.3}
    rounds = 5 if quick else 15
    measure(f"recommend(), {len(jobs):,} jobs", actions[baseline], rounds=rounds, warmup_rounds=1, **facts)


@compared
def test_long_table(measure, fresh, quick, baseline):
    """`recommend()` on random jobs of the version's whole domain, in a fresh process; the baseline is a table a tenth
    as long, scaled. Memory is the peak of resident memory during the call less that before it and less the answers' own
    size.
    """
    count = 20_000 if quick else 1_000_000
    rows = count // 10 if baseline else count
    process = fresh(f"from jobs import LongTable; table = LongTable({rows})")
    figure = f"recommend(), {count:,} jobs"
    facts = {"baseline": f"{rows:,} jobs, times 10", "scale": 10} if baseline else {"required": 240.0}
    facts = measure(figure, process, args=("table.answer()",), rounds=1, **facts)
    extra = process("result = table.extra_mb()")
    limit = {"baseline": f"{rows:,} jobs"} if baseline else {"required_ratio": 1.5}
    facts["also"] = [{"figure": f"{figure}: memory beyond the tables", "measured": extra, "unit": "MB", **limit}]


@compared
def test_many_stacks(measure, fresh, quick, baseline):
    """`recommend()` on random jobs with 300 different training stacks, in a fresh process; the baseline is a table a
    tenth as long, scaled. The memory of a model under a stack is composed at its first use. CPU seconds are those of
    the process.
    """
    count = 2_000 if quick else 50_000
    rows = count // 10 if baseline else count
    process = fresh(f"from jobs import LongTable; table = LongTable({rows}, stacks=300)")
    figure = f"recommend(), {count:,} jobs with 300 stacks"
    facts = {"baseline": f"{rows:,} jobs, times 10", "scale": 10} if baseline else {}
    facts = measure(figure, process, args=("table.answer()",), rounds=1, **facts)
    seconds = process("result = table.cpu_seconds") * (10 if baseline else 1)
    limit = {"baseline": f"{rows:,} jobs, times 10"} if baseline else {"required": 60.0}
    facts["also"] = [{"figure": f"{figure}: CPU", "measured": seconds, "unit": "s", **limit}]


@compared
def test_one_job(measure, quick, baseline):
    """One job through the decorated function, another one each time, predictor loaded; the baseline is ado's decorator
    around a product of two numbers. Calls are those of AutoConf's own named functions, counted by `sys.setprofile`;
    reads are the values that `jobs/values.py` parses and validates.
    """
    import pandas as pd
    from calls import calls_of
    from toy_experiment import multiply

    from autoconf import recommend
    from autoconf.min_gpu_recommender import min_gpu_recommender

    count = 50 if quick else 600
    jobs = points(space()).sample(count + 1, random_state=0).to_dict("records")
    calls = iter([{"x": x, "y": 1} for x in range(count + 1)] if baseline else jobs)
    facts = {"baseline": "a product"} if baseline else {"required": 8.0, "target": 5.0}
    facts = measure(
        "one job through the decorated function",
        multiply if baseline else min_gpu_recommender,
        setup=lambda: ((), next(calls)),
        rounds=count,
        warmup_rounds=1,
        unit="ms",
        **facts,
    )
    if not baseline:
        table = pd.DataFrame([JOB])
        ways = {"one job": lambda: min_gpu_recommender(**JOB), "a table of one row": lambda: recommend(table)}
        facts["also"] = [fact for way, ask in ways.items() for fact in counts(way, calls_of(ask))]


@compared
def test_import(measure, fresh, quick, baseline):
    """Importing `autoconf.min_gpu_recommender` in a fresh process that has ado's decorator; the baseline is importing
    that.
    """
    facts = {"baseline": "ado's decorator"} if baseline else {"required_ratio": 0.1}
    measure(
        "import autoconf.min_gpu_recommender, on top of ado",
        lambda process: process(DECORATOR if baseline else RECOMMENDER),
        setup=lambda: ((fresh() if baseline else fresh(DECORATOR),), {}),
        rounds=2 if quick else 11,
        warmup_rounds=1,
        **facts,
    )


@compared
def test_first_call(measure, fresh, quick, baseline):
    """The first call after the import, which loads the predictor, in a fresh process; the baseline is importing
    LightGBM and AutoGluon alone, which is most of it. Memory is what a process then holds beyond one that imported
    ado's decorator.
    """
    processes: list[Any] = []

    def importer():
        processes.append(fresh(DECORATOR, RECOMMENDER))
        return (processes[-1],), {}

    code = "import lightgbm, autogluon.tabular" if baseline else f"min_gpu_recommender(**{JOB!r})"
    facts = {"baseline": "importing LightGBM and AutoGluon"} if baseline else {"required": 2.5}
    rounds = 2 if quick else 11
    facts = measure("first call", lambda process: process(code), setup=importer, rounds=rounds, **facts)
    held = processes[-1](HELD) - fresh(DECORATOR)(HELD)
    limit = {"baseline": "with LightGBM and AutoGluon imported"} if baseline else {"required": 400.0}
    facts["also"] = [{"figure": "resident memory above ado's own", "measured": held, "unit": "MB", **limit}]


@compared
def test_cold_start(measure, quick, tmp_path, baseline):
    """A whole process that answers one job, with an empty cache; the baseline is a process that imports LightGBM and
    AutoGluon. CPU seconds are those of the process and its children.
    """
    answer = f"from autoconf import Workload, recommend; recommend(Workload(**{JOB!r}))"
    code = "import lightgbm, autogluon.tabular" if baseline else answer
    facts = {"baseline": "importing LightGBM and AutoGluon"} if baseline else {}
    used: list[float] = []

    def answer_once(cache: Path) -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | ENVIRONMENT | {"XDG_CACHE_HOME": str(cache)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=600)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    empty = (((tmp_path / str(number),), {}) for number in itertools.count())
    rounds = 2 if quick else 11
    facts = measure("first answer of a process", answer_once, setup=lambda: next(empty), rounds=rounds, **facts)
    limit = {"baseline": "importing LightGBM and AutoGluon"} if baseline else {"required_ratio": 1.5}
    figure = "first answer of a process: CPU"
    facts["also"] = [{"figure": figure, "measured": statistics.median(used), "unit": "s", **limit}]


@compared
def test_run_experiment(measure, quick, tmp_path, baseline):
    """`run_experiment examples/simple.yaml` as a process; the baseline is a product of two numbers. Most of it is Ray's
    start, and the 10 s that ado waits at the end.
    """
    product = {"actuatorIdentifier": "custom_experiments", "experimentIdentifier": "multiply"}
    product["experimentVersion"] = "1.0.0"
    (tmp_path / "product.yaml").write_text(yaml.safe_dump({"entity": {"x": 1, "y": 1}, "experiments": [product]}))
    file = tmp_path / "product.yaml" if baseline else ROOT / "examples" / "simple.yaml"
    command = [str(Path(sys.executable).with_name("run_experiment")), str(file)]
    facts = {"baseline": "a product"} if baseline else {"required_ratio": 1.1}
    measure("run_experiment examples/simple.yaml", run, args=(command, tmp_path), rounds=1 if quick else 5, **facts)
    assert ("product" if baseline else "can_recommend") in (tmp_path / "log.txt").read_text()


@compared
def test_sweep(measure, quick, tmp_path, baseline):
    """`ado create operation -f sweep/examples/operation-batched.yaml --use-latest space` as a process on the sweep's
    space, in a new store; the baseline is `operation.yaml`, ado's own random_walk.
    """
    configuration = space(**SMALL if quick else {})
    sweep = Sweep(tmp_path, configuration, EXAMPLES / ("operation.yaml" if baseline else "operation-batched.yaml"))
    facts = {"baseline": "random_walk"} if baseline else {"required": 90.0, "target": 45.0}
    measure(f"{sweep.size:,} points through ado", sweep, setup=sweep.prepare, rounds=1, **facts)
    sweep.check()


def test_long_sweep(measure, quick, tmp_path):
    """The same on 20,000 points. The rates come from the times at which the store has the requests sent (one is sent
    when another's results are stored), over the first and the last quarter of them, less the first tenth, in which
    workers start.
    """
    configuration = space(**SMALL if quick else LONG)
    settings = ["--set", "operation.parameters.batchSize=4"] if quick else []  # quarters need something to count
    sweep = Sweep(tmp_path, configuration, EXAMPLES / "operation-batched.yaml", *settings)
    figure = f"{sweep.size:,} points through ado"
    rounds = 1 if quick else 3
    facts = measure(figure, sweep, setup=sweep.prepare, rounds=rounds, required=240.0)
    first, last = sweep.check()
    rate = {"figure": f"{figure}: rate in the last quarter", "measured": last, "unit": "points/s"}
    rate |= {"required_ratio": 0.6, "at_least": True}
    facts["also"] = [rate, {**rate, "measured": first, "baseline": "in the first quarter"}]


class Sweep:
    """An operation on a space, each time in a new store."""

    def __init__(self, folder: Path, configuration: dict[str, Any], operation: Path, *settings: str) -> None:
        self.size = len(points(configuration))
        self.folders = (folder / str(number) for number in itertools.count())
        self.configuration = configuration
        self.arguments = ["create", "operation", "-f", str(operation), "--use-latest", "space", *settings]

    def prepare(self) -> None:
        from ado_context import AdoContext

        self.context = AdoContext(next(self.folders))
        self.space = self.context.create_space(self.configuration)

    def __call__(self) -> None:
        run(self.context.command(*self.arguments), self.context.folder)

    def check(self) -> tuple[float, float]:
        """Check that the last operation measured every point; return its rates in the first and the last quarter."""
        stored = self.context.space(self.space)
        (operation,) = stored.operations
        statistics = stored.operation_entity_statistics(operation)
        assert statistics["entities_with_all_successful_measurements"] == self.size
        requests = stored.measurement_requests_for_operation(operation)
        sent = sorted((request.timestamp, len(request.entities)) for request in requests)
        steady = sent[max(os.cpu_count() or 1, len(sent) // 10) :]
        quarter = len(steady) // 4
        return (
            tuple(
                sum(count for _, count in part[1:]) / (part[-1][0] - part[0][0]).total_seconds()
                for part in (steady[:quarter], steady[-quarter:])
            )
            if quarter > 1
            else (0.0, 0.0)
        )


def counts(way: str, calls: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """How many calls a job makes, and how many of them read a value."""
    reads = sum(name == "read" for _, name in calls)
    return [
        {"figure": f"calls for {way}", "measured": len(calls), "unit": "calls", "required": 160},
        {"figure": f"values read for {way}", "measured": reads, "unit": "reads", "required": 7},
    ]


def run(command: list[str], folder: Path) -> None:
    """Run a command to its end; its output goes to a file, because Ray's processes keep a pipe open."""
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            command, env=os.environ | ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=2400
        )

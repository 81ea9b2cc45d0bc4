"""Plans of runs: layouts on the frontier of time and cost, all of which fit."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from autoconf import Job, Workload, cli, plan, recommend, throughput

JOB = {"model_name": "mistral-7b-v0.1", "method": "full", "tokens_per_sample": 2048, "batch_size": 16}
PRICES = {"NVIDIA-A100-SXM4-80GB": 1.39, "L40S": 0.79, "NVIDIA-H100-80GB-HBM3": 2.69}
RUN = {"dataset_tokens": 10**9}


def of(**more):
    job = {field: more.pop(field) for field in [*more] if field in Job.model_fields}
    return plan(Job(**JOB | job), prices=PRICES, **RUN | more)


def every_layout():
    """The throughput of every layout, asked one by one."""
    found = []
    for gpu in PRICES:
        for count in (1, 2, 4, 8):
            one = throughput(Workload(**JOB, gpu_model=gpu), count, prices=PRICES, **RUN)
            found.append((gpu, count, one))
    return [layout for layout in found if layout[2].fits]


def test_no_layout_that_fits_is_faster_and_cheaper_than_one_of_the_plan():
    found = of()
    assert found["cost"].is_monotonic_increasing and found["hours"].is_monotonic_decreasing
    assert found["rank"].tolist() == [*range(1, len(found) + 1)]
    layouts = every_layout()
    for row in found.itertuples():
        assert not [one for *_, one in layouts if one.hours < row.hours * 0.999 and one.cost < row.cost * 0.999]
    assert found["cost"].min() == pytest.approx(min(one.cost for *_, one in layouts))
    assert found["hours"].min() == pytest.approx(min(one.hours for *_, one in layouts))


def test_every_layout_of_the_plan_fits_and_has_the_figures_of_throughput():
    for row in of().itertuples():
        total = row.gpus * row.workers
        workload = Workload(**JOB, gpu_model=row.gpu_model)
        assert total >= recommend(workload).gpus
        one = throughput(workload, total, prices=PRICES, **RUN)
        assert (one.fits, one.hours, one.cost) == (1, pytest.approx(row.hours), pytest.approx(row.cost))
        assert row.cost_per_hour == pytest.approx(PRICES[row.gpu_model] * total)
        assert row.cost_per_million_tokens == pytest.approx(row.cost / 1000)


def test_a_deadline_and_a_budget_limit_the_plan():
    whole = of()
    middle = whole.iloc[len(whole) // 2]
    assert of(deadline_hours=middle["hours"])["hours"].max() <= middle["hours"]
    assert of(budget=middle["cost"])["cost"].max() <= middle["cost"]
    refused = of(deadline_hours=0.001)
    assert refused["outcome"].tolist() == ["fits_nowhere"]
    assert refused.loc[0, "reason"].startswith("no layout that fits is within deadline_hours 0.001: the fastest takes ")


def test_a_run_without_length_and_a_job_that_fits_nowhere_get_a_reason():
    without = plan(Job(**JOB), prices=PRICES)
    assert without.loc[0, "reason"] == "dataset_tokens: is required, or steps instead"
    large = of(model_name="mistral-123b-v2", max_gpus=1, batch_size=1)
    assert (large.loc[0, "can_recommend"], large.loc[0, "outcome"]) == (0, "fits_nowhere")
    for limit in ({"deadline_hours": 0}, {"budget": -1}):
        with pytest.raises(ValueError, match="must be a number > 0"):
            of(**limit)


def test_a_table_has_the_plan_of_each_job():
    jobs = pd.DataFrame([{**JOB, **RUN}, {**JOB, "method": "lora", "steps": 100}, {**JOB, "steps": 0}], index=[7, 8, 9])
    found = plan(jobs, prices=PRICES)
    assert [*dict.fromkeys(found.index)] == [7, 8, 9]
    pd.testing.assert_series_equal(found.loc[7, "cost"].reset_index(drop=True), of()["cost"])
    assert found.loc[9, "outcome"] == "bad_value"


def test_the_command_lists_the_plan(tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("".join(f"{gpu}: {price}\n" for gpu, price in PRICES.items()))
    options = "--model mistral-7b-v0.1 --method full --seq-len 2048 --batch 16 --dataset-tokens 1000000000 --json"
    result = CliRunner().invoke(cli.app, ["plan", *options.split(), "--prices", str(prices)])
    assert result.exit_code == 0, result.stderr
    assert [row["hours"] for row in json.loads(result.stdout)] == pytest.approx(of()["hours"].tolist())
    picture = tmp_path / "plan.png"
    drawn = CliRunner().invoke(cli.app, ["plan", *options.split()[:-1], "--output", str(picture)])
    assert drawn.exit_code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    late = CliRunner().invoke(
        cli.app, ["plan", *options.split()[:-1], "--deadline-hours", "0.001", "--output", str(tmp_path / "no.svg")]
    )
    assert late.exit_code == 0 and "not written: no layout that fits" in late.stderr
    assert not (tmp_path / "no.svg").exists()
    saved = CliRunner().invoke(cli.app, ["plan", *options.split(), "--save-job", str(tmp_path / "job.yaml")])
    assert saved.exit_code == 2 and "a plan has no ado experiment" in saved.stderr
    for value in ("0", "-1", "nan", "inf"):
        bad = CliRunner().invoke(cli.app, ["plan", *options.split(), "--budget", value])
        assert bad.exit_code == 2 and "--budget: must be a number > 0" in bad.stderr

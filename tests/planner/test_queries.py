"""The other queries agree with ``recommend`` and ``estimate``."""

import inspect
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import autoconf
from autoconf import (
    Job,
    Workload,
    avoid_oom,
    cheapest_gpu,
    estimate,
    largest_batch,
    largest_sample,
    plan,
    recommend,
    throughput,
)
from autoconf.errors import BadInput, IgnoredColumnWarning
from autoconf.jobs.column_hints import hints
from autoconf.jobs.queries import GPU_MODEL, LARGEST_BATCH
from autoconf.planner.prices import DEFAULT, read_prices
from autoconf.predictor import registry
from autoconf.speed.gpu_speed import gpu_speeds

NEWEST = registry.card(registry.DEFAULT).domain
LORA = {"model_name": "llama-7b", "method": "lora", "tokens_per_sample": 8192}
L40S = {**LORA, "gpu_model": "L40S"}
# One model each: ordinary, with learned positions, a mixture of experts, too large for most GPUs.
MODELS = ["qwen2.5-7b", "granite-13b-v2", "mixtral-8x7b-instruct-v0.1", "llama3.1-70b"]

jobs = st.fixed_dictionaries(
    {
        "model_name": st.sampled_from(MODELS),
        "method": st.sampled_from(["full", "lora"]),
        "gpu_model": st.sampled_from(["L40S", "NVIDIA-H100-80GB-HBM3", "NVIDIA-B200"]),
        "stack": st.sampled_from(["reference", "trl"]),
        "gradient_accumulation_steps": st.sampled_from([1, 4]),
    }
)
tokens = st.integers(0, 13).map(lambda power: 2**power)
gpus = st.integers(1, 64)


def fits(number_gpus: int, **job: object) -> int | None:
    """1 or 0 from ``estimate``; None outside the domain."""
    return estimate(Workload.parse(**job), number_gpus).fits


# --- answers are edges ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(jobs, tokens, gpus)
def test_the_largest_batch_fits_and_one_more_sample_on_each_gpu_does_not(job, tokens_per_sample, number_gpus):
    job = {**job, "tokens_per_sample": tokens_per_sample}
    found = largest_batch(Job(**job), number_gpus)
    each = found.per_device_train_batch_size or 0
    assert found.can_recommend == (each > 0) == (found.batch_size is not None) == (not found.reason)
    if each:
        assert found.batch_size == each * number_gpus <= NEWEST.max_batch_size
        assert fits(number_gpus, **job, batch_size=found.batch_size) == 1
        assert fits(number_gpus, **job, per_device_train_batch_size=each) == 1
    more = (each + 1) * number_gpus
    assert fits(number_gpus, **job, batch_size=more) == (0 if more <= NEWEST.max_batch_size else None)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(jobs, st.integers(1, 64), gpus)
def test_the_longest_sample_fits_and_one_more_token_does_not(job, each, number_gpus):
    found = largest_sample(Job(**job, batch_size=each * number_gpus), number_gpus)
    assert found == largest_sample(Job(**job, per_device_train_batch_size=each), number_gpus)
    if each * number_gpus > NEWEST.max_batch_size:
        assert not found.can_recommend and "beyond the domain of version 2.0.0" in found.reason
        return
    longest = found.tokens_per_sample or 0
    assert found.can_recommend == (longest > 0) == (not found.reason)
    batch = {"batch_size": each * number_gpus}
    if longest:
        assert fits(number_gpus, **job, **batch, tokens_per_sample=longest) == 1
    limit = NEWEST.models[job["model_name"]].max_tokens_per_sample or NEWEST.max_tokens_per_sample
    expected = 0 if longest < limit else None  # where the domain or the learned positions end
    assert fits(number_gpus, **job, **batch, tokens_per_sample=longest + 1) == expected


def test_the_longest_sample_ends_with_the_learned_positions():
    job = Job(model_name="granite-13b-v2", method="lora", gpu_model="B200", per_device_train_batch_size=1)
    assert largest_sample(job, 8).tokens_per_sample == NEWEST.models["granite-13b-v2"].max_tokens_per_sample


@settings(max_examples=60, deadline=None)
@given(jobs, tokens, st.integers(1, 32), gpus, st.integers(1, 64), st.sampled_from([1, 3, 8]))
def test_a_request_is_kept_or_the_next_larger_number_that_fits(job, tokens_per_sample, each, request, most, per_worker):
    job = {**job, "tokens_per_sample": tokens_per_sample, "per_device_train_batch_size": each}
    found = avoid_oom(Job(**job, max_gpus=most, gpus_per_worker=per_worker), request)

    def good(count: int) -> bool:
        even = count % -(-count // per_worker) == 0
        return even and count * each <= NEWEST.max_batch_size and fits(count, **job) == 1

    allowed = range(request, max(request, most) + 1)
    expected = next((count for count in allowed if good(count)), None)
    assert (None if found.gpus is None else found.gpus * found.workers) == expected
    assert found.can_recommend == (expected is not None) == (not found.reason)
    if expected is not None:
        assert found.workers == -(-expected // per_worker)


@pytest.mark.parametrize("version", ["1.1.0", "2.0.0"])
def test_the_questions_agree_in_every_version(version):
    """``avoid_oom`` limited to the request says whether a batch fits, also in versions without estimates."""
    job = {**LORA, "gpu_model": "NVIDIA-A100-80GB-PCIe", "model_version": version}
    for count in (1, 3, 8):
        each = largest_batch(Job(**job), count).per_device_train_batch_size
        for batch, expected in ((each, 1), (each + 1, 0)):
            asked = Job(**job, per_device_train_batch_size=batch, max_gpus=count)
            assert avoid_oom(asked, count).can_recommend == expected
        longest = largest_sample(Job(**{**job, "tokens_per_sample": None}, per_device_train_batch_size=each), count)
        assert longest.tokens_per_sample >= job["tokens_per_sample"]


def test_a_request_beyond_max_gpus_is_kept_and_nothing_beyond_it_is_named():
    job = {**L40S, "per_device_train_batch_size": 6, "model_version": "2.0.0"}
    assert avoid_oom(Job(**job, max_gpus=4), 5).gpus == 5
    assert avoid_oom(Job(**job, max_gpus=5), 2).gpus == 5
    refused = avoid_oom(Job(**job, max_gpus=4), 2)
    assert refused.reason.startswith("no number of GPUs from 2 to 4 is enough for per_device_train_batch_size 6: ")
    assert avoid_oom(Job(**{**job, "per_device_train_batch_size": 1}), 64).workers == 8
    refused = avoid_oom(Job(**{**job, "per_device_train_batch_size": 1}), 65)
    assert refused.reason.startswith(
        "65 GPUs do not split evenly over workers of 8, and no larger number up to 65 does"
    )


def test_max_gpus_is_64_unless_the_job_says_otherwise():
    job = Job(model_name="llama3.1-70b", method="full", gpu_model="H100", tokens_per_sample=1024,
              per_device_train_batch_size=1, gradient_accumulation_steps=1)  # fmt: skip
    found = avoid_oom(job, 8)
    assert 8 < found.gpus * found.workers <= 64
    table = pd.DataFrame(
        [{**job.model_dump(exclude_unset=True), "number_gpus": 8, "max_gpus": most} for most in ("", 8)]
    )
    assert avoid_oom(table)["can_recommend"].tolist() == [1, 0]


def test_headroom_is_usable_less_needed_memory():
    found = estimate(Workload(**L40S, batch_size=8), 2)
    assert found.headroom_gib == pytest.approx(found.usable_memory_gib - found.needed_memory_gib)
    assert estimate(Workload(**L40S, batch_size=64), 1).headroom_gib < 0


# --- the type of GPU --------------------------------------------------------------------------------------------------


RUNS = [{}, {"dataset_tokens": 10**8, "epochs": 2}, {"steps": 500}]


@pytest.mark.parametrize("run", RUNS, ids=["tokens", "data", "steps"])
@pytest.mark.parametrize("version", ["1.1.0", "2.0.0"])
def test_the_ranking_has_the_recommendation_for_each_type_by_cost(version, run):
    domain, prices = registry.card(version).domain, read_prices()
    job = {**LORA, "batch_size": 16, "max_gpus": 4, "model_version": version}
    ranking = cheapest_gpu(pd.DataFrame([job | run], index=["mine"]))
    assert ranking.index.tolist() == ["mine"] * len(domain.gpus)
    assert ranking["rank"].tolist() == list(range(1, len(domain.gpus) + 1))
    assert sorted(ranking["gpu_model"]) == sorted(domain.gpus)
    expected = []
    for gpu in domain.gpus:
        single = recommend(Workload(**job, gpu_model=gpu))
        row = ranking[ranking["gpu_model"] == gpu].iloc[0]
        assert row["can_recommend"] == single.can_recommend
        if single.can_recommend:
            total = single.gpus * single.workers
            speed = throughput(Workload(**job, gpu_model=gpu), total, **run)
            assert (row["gpus"], row["workers"]) == (single.gpus, single.workers)
            assert row["tokens_per_second"] == pytest.approx(speed.tokens_per_second)
            cost = prices[gpu] * total if gpu in prices else np.inf
            per_million = cost / speed.tokens_per_second / 3600 * 1e6
            of_run = speed.cost or np.nan
            for column, value in (
                ("cost_per_hour", cost), ("cost_per_million_tokens", per_million), ("cost", of_run),
                ("hours", speed.hours or np.nan),
            ):  # fmt: skip
                known = np.isfinite(value)
                assert row[column] == pytest.approx(value) if known else pd.isna(row[column]), column
            expected.append((of_run if run and np.isfinite(cost) else per_million, total, gpu))
        else:
            assert row["reason"] and single.reason.startswith(row["reason"])
    assert ranking["gpu_model"].tolist()[: len(expected)] == [gpu for *_, gpu in sorted(expected)]
    best = cheapest_gpu(Job(**job), **run)
    assert (best.gpu_model, best.rank) == (min(expected)[-1], 1)


def test_the_run_has_a_cost_if_its_length_is_given_in_one_way():
    job = Job(**LORA, per_device_train_batch_size=1)
    without, of_steps = cheapest_gpu(job), cheapest_gpu(job, steps=1000)
    assert (without.cost, without.hours) == (None, None) and without.cost_per_million_tokens > 0
    assert of_steps.cost == pytest.approx(of_steps.hours * of_steps.cost_per_hour)
    with pytest.raises(ValueError, match="steps and dataset_tokens exclude each other"):
        cheapest_gpu(job, steps=10, dataset_tokens=10)
    with pytest.raises(ValueError, match="epochs: needs dataset_tokens"):
        cheapest_gpu(job, epochs=2)


def test_ties_go_to_fewer_gpus_and_then_to_the_name(monkeypatch):
    """Without known speeds, types are ranked by price, and a note says so."""
    monkeypatch.setattr("autoconf.planner.throughput.known_shapes", lambda model: None)
    job = Job(**LORA, batch_size=16)
    found = cheapest_gpu(job, prices={"H100": 0.3, "L40S": 0.15})
    assert (found.gpus, found.tokens_per_second, found.cost_per_million_tokens) == (
        2,
        None,
        None,
    )  # 2 x 0.3 is 4 x 0.15
    assert any(note.startswith("ranked by price per hour: throughput is not known for model") for note in found.notes)
    three = Job(model_name="llama-7b", method="lora", tokens_per_sample=24000, batch_size=3)
    found = cheapest_gpu(three, prices={"L40S": 0.15, "B200": 0.45})  # in floating point 3 x 0.15 is less
    assert (found.gpu_model, found.gpus) == ("NVIDIA-B200", 1)
    assert cheapest_gpu(job, prices={"H100-PCIe": 1, "H100": 1}).gpu_model == "NVIDIA-H100-80GB-HBM3"


def test_a_provider_gives_its_prices_to_each_query_that_costs_something():
    job, prices = Job(**LORA, batch_size=16), read_prices(provider="AWS")
    run = {"steps": 1000, "provider": "aws"}
    assert cheapest_gpu(job, **run) == cheapest_gpu(job, prices=prices, steps=1000)
    pd.testing.assert_frame_equal(plan(job, **run), plan(job, prices=prices, steps=1000))
    on_h100 = Workload(**LORA, batch_size=16, gpu_model="H100")
    assert throughput(on_h100, 2, **run).cost == throughput(on_h100, 2, prices=prices, steps=1000).cost > 0
    table = pd.DataFrame([{**LORA, "batch_size": 16}])
    pd.testing.assert_frame_equal(cheapest_gpu(table, provider="AWS"), cheapest_gpu(table, prices=prices))
    with pytest.raises(ValueError, match="provider 'nobody' has no prices here; there are prices of AWS"):
        plan(job, steps=1000, provider="nobody")
    with pytest.raises(ValueError, match="prices and a provider exclude each other"):
        cheapest_gpu(job, prices={"H100": 1}, provider="AWS")


def test_types_with_a_price_and_without_a_speed_come_after_those_with_both(monkeypatch):
    known = {gpu: speed for gpu, speed in gpu_speeds().items() if gpu != "L40S"}
    monkeypatch.setattr("autoconf.planner.throughput.gpu_speeds", lambda: known)
    prices = {"L40S": 0.01, "H100": 5}
    ranking = cheapest_gpu(pd.DataFrame([{**LORA, "batch_size": 16}]), prices=prices)
    assert ranking["gpu_model"].tolist()[:2] == ["NVIDIA-H100-80GB-HBM3", "L40S"]
    assert "ranked by price per hour: throughput is not known for GPU type L40S" in ranking["notes"].iloc[1]
    assert "ranked by price" not in ranking["notes"].iloc[0] and ranking["cost_per_hour"].iloc[2:].isna().all()


def test_a_type_without_a_price_is_recommended_only_where_no_type_with_one_fits():
    job = {**LORA, "batch_size": 16}
    ranking = cheapest_gpu(pd.DataFrame([job]), prices={"L40S": 1000})
    assert ranking["gpu_model"].iloc[0] == "L40S" and ranking["cost_per_hour"].notna().sum() == 1
    assert ranking["cost_per_million_tokens"].notna().sum() == 1
    found = cheapest_gpu(Job(**job, max_gpus=1), prices={"L40S": 1})
    assert (found.can_recommend, found.gpu_model, found.cost_per_hour) == (1, "AMD-Instinct-MI300X", None)
    assert found.cost_per_million_tokens is None and found.tokens_per_second > 0


def test_every_price_has_a_provider_a_source_and_a_date_and_a_known_type():
    known = {gpu for version in registry.RELEASED for gpu in registry.card(version).domain.gpus}
    entries = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    assert {*entries} <= known
    for gpu, entry in entries.items():
        every = [{name: value for name, value in entry.items() if name != "providers"}]
        every += [{"provider": name, **of} for name, of in entry.get("providers", {}).items()]
        assert len({one["provider"] for one in every}) == len(every), gpu
        for one in every:
            assert {*one} == {"provider", "price_per_hour", "source", "as_of"} and one["price_per_hour"] > 0
            assert "https://" in one["source"] or "github.com/" in one["source"], gpu
            assert re.fullmatch(r"20\d\d-\d\d(-\d\d)?", str(one["as_of"])), gpu
    assert read_prices() == {gpu: entry["price_per_hour"] for gpu, entry in entries.items()}


def test_the_prices_of_one_provider_are_used_alone():
    aws = read_prices(provider="AWS")
    assert aws == read_prices(provider=" aws ") and aws["NVIDIA-H100-80GB-HBM3"] == 6.88
    ranking = cheapest_gpu(pd.DataFrame([{**LORA, "batch_size": 16, "model_version": "2.0.0"}]), prices=aws)
    assert {*ranking["gpu_model"][ranking["cost_per_hour"].notna()]} == {*aws}
    with pytest.raises(ValueError, match="provider 'GCP' has no prices here; there are prices of AWS, "):
        read_prices(provider="GCP")
    with pytest.raises(ValueError, match="exclude each other"):
        read_prices({"H100": 1}, provider="AWS")


@pytest.mark.parametrize("version", [*registry.RELEASED])
def test_the_package_has_prices_for_every_version(version):
    found = cheapest_gpu(Job(**LORA, batch_size=16), version)
    assert found.can_recommend and found.cost_per_hour > 0
    later = cheapest_gpu(Job(**LORA, batch_size=16), version, {"H100": 2, "NVIDIA-B300": 1})
    cheapest = {"1.1.0": "NVIDIA-H100-PCIe", "2.0.0": "NVIDIA-H100-80GB-HBM3", "3.0.0": "NVIDIA-B300"}
    assert later.gpu_model == cheapest[version]


def test_where_no_type_fits_the_one_with_most_memory_tells_why():
    found = cheapest_gpu(Job(model_name="llama3.1-405b", method="full", tokens_per_sample=512, batch_size=8))
    assert found.reason.startswith(
        "it fits on none of 55 GPU types: on NVIDIA-B300, which has the most memory, no number"
    )
    unknown = cheapest_gpu(Job(**{**LORA, "model_name": "gpt-9"}, batch_size=8))
    assert unknown.reason.startswith("model_name 'gpt-9' is not in the domain") and unknown.rank is None


def test_every_default_price_is_of_a_type_of_the_newest_version_and_has_its_source():
    import yaml

    from autoconf.planner.prices import DEFAULT

    listed = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    assert {*listed} <= {*NEWEST.gpus}
    assert all("https://" in entry["source"] and str(entry["as_of"]) >= "2026" for entry in listed.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H100: 2.5\nL40S: free\n", "prices.yaml:2: L40S: price_per_hour: must be a number > 0, got 'free'"),
        ("H100: 2.5\nL40S: -1\n", "prices.yaml:2: L40S: price_per_hour: must be a number > 0, got -1"),
        ("L40S:\n  price: 1\n", "prices.yaml:1: L40S: price_per_hour: must be a number > 0, got None"),
        ("L40S: [1]\n", "prices.yaml:1: L40S: price_per_hour: must be a number > 0, got [1]"),
        ("L40S: 1\nH100: 2\nL40S: 3\n", "prices.yaml:3: the key 'L40S' is repeated"),
        ("[1]: 2\n", "prices.yaml:1: a key must be text"),
        ("- L40S\n", "prices.yaml:1: must have lines such as 'H100: 2.5'"),
        ("", "prices.yaml:1: must have lines such as 'H100: 2.5'"),
        ("H100: 1\nL40S: {\n", "prices.yaml:3: not YAML"),
        ("H100: 1\n\x00", "prices.yaml:2: not text: a null character"),
        ("H100: 1\n---\nL40S: 2\n", "prices.yaml:1: must have lines such as 'H100: 2.5'"),
        (
            "H100: 1\nA100: 2\n",
            "prices: 'A100' fits several GPU types of version 3.0.0; give one of NVIDIA-A100-SXM4-80GB",
        ),
        (
            "H100: 1\nNVIDIA-H100-80GB-HBM3: 2\n",
            "prices: 'NVIDIA-H100-80GB-HBM3' is NVIDIA-H100-80GB-HBM3, which has another",
        ),
    ],
)
def test_a_bad_file_of_prices_is_named_by_line_and_type(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prices.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        cheapest_gpu(Job(**LORA, batch_size=8), prices="prices.yaml")
    assert str(error.value).startswith(message)


def test_prices_come_from_a_file_or_a_mapping(tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text("H100: 2\nL40S:\n  price_per_hour: 0.9\n  source: mine\n")
    job = Job(**LORA, batch_size=16)
    assert (
        cheapest_gpu(job, prices=file)
        == cheapest_gpu(job, prices=str(file))
        == cheapest_gpu(job, prices={"H100": 2, "L40S": "0.9"})
    )
    for bad in ({"L40S": 0}, {"L40S": True}, {"": 1}, {}):
        with pytest.raises(ValueError, match="prices"):
            cheapest_gpu(job, prices=bad)
    with pytest.raises(BadInput, match="cannot read it"):
        cheapest_gpu(job, prices=tmp_path / "none.yaml")


# --- one job and tables of them ---------------------------------------------------------------------------------------

TABLES = {
    avoid_oom: ({**L40S, "per_device_train_batch_size": 6, "number_gpus": 2}, {"number_gpus": 600, "method": "full"}),
    largest_batch: ({**L40S, "number_gpus": 2}, {"number_gpus": 600, "model_name": "llama3.1-405b"}),
    largest_sample: (
        {"model_name": "llama-7b", "method": "lora", "gpu_model": "L40S", "batch_size": 8, "number_gpus": 2},
        {"number_gpus": 3, "model_name": "llama3.1-405b"},
    ),
    estimate: ({**L40S, "batch_size": 8, "number_gpus": 2}, {"number_gpus": 3, "batch_size": 4096}),
}


@pytest.mark.parametrize("ask", TABLES, ids=lambda ask: ask.__name__)
def test_a_table_has_the_answer_of_each_of_its_jobs(ask):
    job, changes = TABLES[ask]
    table = pd.DataFrame([job, *({**job, field: value} for field, value in changes.items())], index=[7, 7, 9])
    found = ask(table)
    assert found.index.tolist() == [7, 7, 9]
    for row, single in zip(table.to_dict("records"), found.to_dict("records"), strict=True):
        count = row.pop("number_gpus")
        one = asdict(ask(Job(**row), number_gpus=count))
        assert {name: None if pd.isna(value) else value for name, value in single.items()} == {
            name: one[name] for name in single
        }
    assert found["reason"].iloc[0] == "" and found["reason"].iloc[1]
    assert ask(table.iloc[:0]).dtypes.to_dict() == found.dtypes.to_dict()


@pytest.mark.parametrize("ask", TABLES, ids=lambda ask: ask.__name__)
def test_bad_rows_have_their_reason_and_others_are_answered(ask):
    job, _ = TABLES[ask]
    bad = [{"number_gpus": 0}, {"number_gpus": None}, {"method": ""}, {"model_version": "9"}]
    found = ask(pd.DataFrame([job, *({**job, **change} for change in bad)], dtype=object))
    good, *reasons = found["reason"]
    assert good == ""
    for reason, field in zip(
        reasons, ("number_gpus", "number_gpus", "method: is required", "model_version '9'"), strict=True
    ):
        assert reason.startswith(field)


@pytest.mark.parametrize(
    ("ask", "fields", "message"),
    [
        (largest_batch, {**L40S, "batch_size": 8}, "batch_size: is the output of this query; omit it"),
        (largest_batch, LORA, "gpu_model: is required"),
        (largest_sample, {**L40S, "batch_size": 8}, "tokens_per_sample: is the output of this query; omit it"),
        (
            largest_sample,
            {"model_name": "llama-7b", "method": "lora", "gpu_model": "L40S"},
            "batch_size: is required, or per_device_train_batch_size instead",
        ),
        (avoid_oom, {**L40S, "batch_size": 8}, "batch_size: use per_device_train_batch_size instead"),
        (avoid_oom, L40S, "per_device_train_batch_size: is required"),
        (estimate, {**LORA, "batch_size": 8}, "gpu_model: is required"),
    ],
)
def test_missing_and_forbidden_fields_are_named(ask, fields, message):
    with pytest.raises(ValueError) as error:
        ask(Job(**fields), 2)
    assert str(error.value).startswith(message)
    table = pd.DataFrame([{**fields, "number_gpus": 2}])
    if "is required" in message:
        with pytest.raises(ValueError, match="required column missing"):
            ask(table)
    else:
        columns = table.assign(per_device_train_batch_size=None) if ask is avoid_oom else table
        assert ask(columns)["reason"].iloc[0].startswith(message)


def test_cheapest_gpu_refuses_a_job_with_a_gpu_type():
    job = {**L40S, "batch_size": 8}
    with pytest.raises(ValueError, match="gpu_model: is the output of this query; omit it"):
        cheapest_gpu(Job(**job))
    row = cheapest_gpu(pd.DataFrame([job]))
    assert row["reason"].tolist() == ["gpu_model: is the output of this query; omit it"]
    with pytest.raises(ValueError, match="gpu_model: is required"):
        recommend(Job(**LORA, batch_size=8))


@pytest.mark.parametrize("ask", [*TABLES, cheapest_gpu], ids=lambda ask: ask.__name__)
def test_neither_a_job_nor_a_table_is_refused(ask):
    with pytest.raises(TypeError, match="must be a Workload or a pandas DataFrame, got dict"):
        ask({})
    if ask is not cheapest_gpu:
        with pytest.raises(ValueError, match="number_gpus: must be a whole number >= 1, got None"):
            ask(Job(**{k: v for k, v in TABLES[ask][0].items() if k != "number_gpus"}), None)
        with pytest.raises(ValueError, match="number_gpus: is a column of a table of jobs"):
            ask(pd.DataFrame([TABLES[ask][0]]), 2)


def test_warnings_about_a_table_name_the_callers_line(recwarn):
    table = pd.DataFrame([{**L40S, "number_gpus": 2, "packing": True}])
    for ask in (largest_batch, cheapest_gpu):
        with pytest.warns(IgnoredColumnWarning) as warned:
            ask(table.assign(batch_size=8).drop(columns="gpu_model") if ask is cheapest_gpu else table)
        assert warned[0].filename == __file__


def test_the_answered_field_is_never_suggested_for_a_column():
    assert hints(["gpu_modl"]) == ["column 'gpu_modl' is ignored; did you mean gpu_model?"]
    assert hints(["gpu_modl"], GPU_MODEL) == []
    assert hints(["num_gpus"], LARGEST_BATCH) == ["column 'num_gpus' is ignored; did you mean number_gpus?"]


def test_every_question_of_python_is_in_the_package():
    for name in ("avoid_oom", "cheapest_gpu", "estimate", "largest_batch", "largest_sample", "recommend"):
        assert name in autoconf.__all__ and inspect.isfunction(getattr(autoconf, name))


def test_a_batch_of_each_gpu_is_bounded_as_the_batch_of_all_is():
    job = {**L40S, "gpu_model": "B200", "tokens_per_sample": 1}
    each = NEWEST.max_batch_size // 8
    for batch, expected in ((each, 1), (each + 1, None)):
        assert fits(8, **job, per_device_train_batch_size=batch) == expected

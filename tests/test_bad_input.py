"""Whatever comes in: an answer, a reason, or a ValueError that names the field; never anything else."""

import math
from types import SimpleNamespace

import pandas as pd
import yaml
from conftest import EXAMPLE as JOB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoconf import recommend
from autoconf.min_gpu_recommender import min_gpu_recommender
from autoconf.workload import NAMES, OPTIONAL, REQUIRED

from ado.modules.actuators.custom_experiments import custom_experiment_executor
from ado.schema.point import SpacePoint
from ado.schema.request import MeasurementRequest

FIELDS = [*REQUIRED, *OPTIONAL]
NUMBERS = [field for field in FIELDS if field not in NAMES]

anything = st.one_of(
    st.integers(), st.integers(min_value=2**53, max_value=2**200), st.floats(), st.booleans(), st.none(), st.text(),
    st.binary(), st.sampled_from(["", " ", "8192", "8192.0", "8e3", "1_000", "0x10", "١٢", "nan", "inf", "-1", "1.5"]),
    st.sampled_from(["../../etc/passwd", "/dev/null", "ünïcode", "llama-7b\x00", "1.1.0/../1.1.0", "C:\\models"]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.complex_numbers(), st.decimals(),
)  # fmt: skip
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)


def outcome(job: dict):
    """The answer, or the message of the only error that is allowed."""
    try:
        return min_gpu_recommender(**job)
    except ValueError as error:
        return str(error)


def is_whole_number(value) -> bool:
    if isinstance(value, (bool, bytes, complex)) or value is None:
        return False
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return math.isfinite(number) and number == int(number) and number >= 1


@relaxed
@given(st.sampled_from(FIELDS), anything)
def test_one_odd_value_in_a_direct_call(field, value):
    result = outcome({**JOB, field: value})
    if isinstance(result, str):
        assert result.startswith(f"{field}: "), result
        assert "\n" not in result
    else:
        assert result["can_recommend"] in (0, 1)
        if field in NUMBERS:
            assert is_whole_number(value)
        if result["can_recommend"]:
            assert result["gpus"] >= 1 and result["workers"] >= 1


@relaxed
@given(st.dictionaries(st.sampled_from([*FIELDS, "extra", "model"]), anything))
def test_any_arguments_at_all(job):
    result = outcome(job)
    if isinstance(result, str):
        assert any(f"{field}: " in result for field in [*FIELDS, "extra", "model"])


def measured(point: str) -> dict:
    """What ado records for a point in YAML: its own parsing, validation and executor, without starting Ray."""
    parsed = SpacePoint.model_validate(yaml.safe_load(point))
    entity, experiment = parsed.to_entity(), min_gpu_recommender._experiment
    if not experiment.validate_entity(entity):
        return {"refused by ado": True}
    request = MeasurementRequest(
        operation_id="test",
        requestIndex=0,
        requestid="test",
        entities=[entity],
        experimentReference=experiment.reference,
    )
    finished = []
    queue = SimpleNamespace(put=lambda done, block: finished.append(done))
    custom_experiment_executor(min_gpu_recommender, {}, request, experiment, queue)
    return dict(finished[0].measurements[0].series_representation(output_format="target"))


odd_text = st.sampled_from(["", "8192", "nan", "../../etc/passwd", "ünïcode", "1.1.0/../1.1.0"])
yaml_values = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(), odd_text, st.lists(st.integers(), max_size=2)
)


@relaxed
@given(st.sampled_from(list(JOB)), yaml_values)
def test_one_odd_value_in_a_yaml(field, value):
    result = measured(yaml.safe_dump({"entity": {**JOB, field: value}}))
    if result.get("refused by ado"):
        assert field in NUMBERS and not isinstance(value, (int, float))
    elif result["valid"]:
        assert result["can_recommend"] in (0, 1)
    else:
        assert f"{field}: " in result["reason"]


def test_the_example_in_a_yaml():
    result = measured(yaml.safe_dump({"entity": JOB}))
    assert result["gpus"] == 2
    assert "reason" not in result


def test_a_yaml_without_a_recommendation_is_measured_with_its_reason():
    job = {**JOB, "model_name": "llama2-70b", "batch_size": 1}
    result = measured(yaml.safe_dump({"entity": job}))
    assert {field: result[field] for field in result if field in ("can_recommend", "gpus", "workers", "reason")} == {
        "can_recommend": 0,
        "reason": recommend(pd.DataFrame([job]))["reason"][0],
    }
    assert result["valid"] and result["reason"]


@relaxed
@given(st.lists(st.tuples(st.sampled_from(FIELDS), anything), min_size=1, max_size=6))
def test_tables_say_of_each_row_what_the_direct_call_says(changes):
    jobs = [{**JOB, field: value} for field, value in changes]
    answers = recommend(pd.DataFrame({field: pd.Series([job.get(field, OPTIONAL.get(field)) for job in jobs],
                                                       dtype=object) for field in FIELDS}))  # fmt: skip
    for (field, value), job, answer in zip(changes, jobs, answers.to_dict("records"), strict=True):
        empty = value is None or (isinstance(value, float) and math.isnan(value))
        if empty and field in OPTIONAL:
            assert answer["can_recommend"] == 1  # an empty cell takes the default
            continue
        single = outcome(job)
        assert answer["can_recommend"] == (0 if isinstance(single, str) else single["can_recommend"])
        if isinstance(single, str):
            assert answer["reason"] == single


@relaxed
@given(st.integers(1, 16384), st.integers(1, 1024))
def test_text_and_whole_floats_are_the_numbers_they_write(tokens, batch):
    plain = outcome({**JOB, "tokens_per_sample": tokens, "batch_size": batch})
    assert outcome({**JOB, "tokens_per_sample": str(tokens), "batch_size": f"{batch}.0"}) == plain
    assert outcome({**JOB, "tokens_per_sample": float(tokens), "batch_size": f" {batch} "}) == plain


@relaxed
@given(st.integers(1, 16000), st.integers(1, 300), st.integers(2, 3), st.sampled_from([1, 4]),
       st.sampled_from(["llama-7b", "granite-20b-v2", "mixtral-8x7b-instruct-v0.1"]))  # fmt: skip
def test_answers_never_contradict_each_other(tokens, batch, factor, steps, model):
    def needed(**changes) -> float:
        job = {**JOB, "model_name": model, "tokens_per_sample": tokens, "batch_size": batch, "max_gpus": 64,
               "gradient_accumulation_steps": steps, **changes}  # fmt: skip
        answer = outcome(job)
        return answer["gpus"] * answer["workers"] if answer["can_recommend"] else math.inf

    assert needed(tokens_per_sample=tokens + 300) >= needed() or tokens + 300 > 8192
    assert needed(method="full") >= needed()
    assert needed(gpu_model="L40S") >= needed()
    # A larger batch may use counts that do not divide the smaller one: compare only where the count divides both.
    larger = needed(batch_size=batch * factor)
    assert larger >= needed() or batch % larger

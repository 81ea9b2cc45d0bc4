"""Any input gives an answer, a reason, or a ValueError that names the field."""

import csv
import io
import json
import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from example_job import EXAMPLE as JOB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from autoconf import Workload, recommend
from autoconf.cli.main import app
from autoconf.jobs.job import NUMBERS, OPTIONAL, REQUIRED, choices
from autoconf.jobs.values import is_empty
from autoconf.min_gpu_recommender import min_gpu_recommender

from ado.modules.actuators.custom_experiments import custom_experiment_executor
from ado.schema.point import SpacePoint
from ado.schema.request import MeasurementRequest

FIELDS = [
    *REQUIRED,
    *(field for field in OPTIONAL if field != "per_device_train_batch_size"),
]  # the fields that ado has

anything = st.one_of(
    st.integers(), st.integers(min_value=2**53, max_value=2**2000), st.floats(), st.booleans(), st.none(), st.text(),
    st.binary(), st.sampled_from(["", " ", "8192", "8192.0", "8e3", "1_000", "0x10", "١٢", "nan", "inf", "-1", "1.5"]),
    st.sampled_from(["../../etc/passwd", "/dev/null", "ünïcode", "llama-7b\x00", "1.1.0/../1.1.0", "C:\\models"]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.complex_numbers(), st.decimals(), st.fractions(), st.characters(categories=["Cs"]),
)  # fmt: skip
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)


def outcome(job: dict):
    """The answer, or the message of the only error that is allowed."""
    try:
        return min_gpu_recommender(**job)
    except ValueError as error:
        return str(error)


def said_alike(answer, expected) -> bool:
    """Whether two interfaces give the same message; only outside ado may a job have the other batch field."""
    return answer == expected or answer == f"{expected}, or per_device_train_batch_size instead"


def is_whole_number(value) -> bool:
    """Whether a value is a valid number, decided without the code under test."""
    try:
        number = Fraction(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool) and number.denominator == 1 and 1 <= number <= 2**53


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
            assert is_whole_number(value) or (is_empty(value) and field in OPTIONAL)
        if result["can_recommend"]:
            assert result["gpus"] >= 1 and result["workers"] >= 1


@relaxed
@given(st.dictionaries(st.sampled_from([*FIELDS, "extra", "model"]), anything))
def test_any_arguments_at_all(job):
    result = outcome(job)
    if isinstance(result, str):
        assert any(f"{field}: " in result for field in [*FIELDS, "extra", "model"])


def measured(point: str) -> dict:
    """The result that ado records for a point in YAML, with its own parsing, validation and executor, without Ray."""
    parsed = SpacePoint.model_validate(yaml.safe_load(point))
    entity, experiment = parsed.to_entity(), min_gpu_recommender._experiment
    try:
        valid = experiment.validate_entity(entity)
    except TypeError:  # ado 2.3 compares whole numbers with 64 bits
        valid = False
    if not valid:
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


def in_ados_domain(value) -> bool:
    """Whether ado accepts a value for a numeric property: a whole number from 1 to 2**20."""
    return type(value) in (int, float) and 1 <= value <= 2**20 and value == int(value)


odd_text = st.sampled_from(["", "8192", "nan", "../../etc/passwd", "ünïcode", "1.1.0/../1.1.0"])
yaml_values = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(), odd_text, st.lists(st.integers(), max_size=2)
)


@relaxed
@given(st.sampled_from(list(JOB)), yaml_values)
def test_one_odd_value_in_a_yaml(field, value):
    result = measured(yaml.safe_dump({"entity": {**JOB, field: value}}))
    if result.get("refused by ado"):
        assert field in NUMBERS and not in_ados_domain(value)
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
def test_tables_give_each_row_the_answer_of_the_direct_call(changes):
    jobs = [{**JOB, field: value} for field, value in changes]
    answers = recommend(pd.DataFrame({field: pd.Series([job.get(field, OPTIONAL.get(field)) for job in jobs],
                                                       dtype=object) for field in FIELDS}))  # fmt: skip
    for (field, value), job, answer in zip(changes, jobs, answers.to_dict("records"), strict=True):
        if is_empty(value) and field == "model_version":
            assert answer["can_recommend"] == 1  # required in ado; the newest version by default in a table
            continue
        single = outcome(job)
        assert answer["can_recommend"] == (0 if isinstance(single, str) else single["can_recommend"])
        if isinstance(single, str):
            assert said_alike(answer["reason"], single)


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


# --- one rule at every entry ------------------------------------------------------------------------------------------


def by_call(job):
    return outcome(job)


def by_workload(job):
    try:
        return vars(recommend(Workload.parse(**job)))
    except ValueError as error:
        return str(error)


def by_table(job):
    table = pd.DataFrame({field: pd.Series([value], dtype=object) for field, value in job.items()})
    (answer,) = recommend(table).to_dict("records")
    return answer["reason"] or answer


def by_csv(job):
    file = io.StringIO()
    csv.writer(file).writerows([job.keys(), job.values()])
    return printed(CliRunner().invoke(app, ["recommend", "--csv=-"], input=file.getvalue()))


def by_options(job):
    options = [f"--{field.replace('_', '-')}={value}" for field, value in job.items()]
    result = CliRunner().invoke(app, ["recommend", *options, "--json"])
    return printed(result) if result.exit_code else json.loads(result.stdout)


def printed(result):
    if result.exit_code == 2:
        return result.stderr.strip().removeprefix("standard input, line 2: ")
    return next(csv.DictReader(io.StringIO(result.stdout)))


def by_ado(job):
    result = measured(yaml.safe_dump({"entity": job}))
    return result if result["valid"] else result["reason"].removeprefix("Unexpected exception: ")


def entries_for(field, value):
    """The interfaces for a value. ado itself refuses values outside the domain of a number."""
    yield from (by_call, by_workload, by_table)
    if isinstance(value, str):
        yield from (by_csv, by_options)
    if in_ados_domain(value) if field in NUMBERS else type(value) in (str, float, type(None)):
        yield by_ado


def ask(entry, field, value):
    """The number of GPUs for the job with that value, or the reason why the value is refused."""
    answer = entry({**JOB, field: value})
    if isinstance(answer, str):
        return answer
    return {key: int(answer[key]) for key in ("can_recommend", "gpus", "workers")} | {"outcome": answer["outcome"]}


@pytest.mark.parametrize("field", FIELDS)
def test_an_empty_value_is_as_if_it_had_not_been_given(field):
    without = outcome({name: value for name, value in JOB.items() if name != field})
    answered = {"can_recommend": 1, "gpus": 2, "workers": 1, "outcome": "ok"}
    assert without == (f"{field}: is required" if field in JOB else answered)
    for value in (None, math.nan, np.float32("nan"), Decimal("nan"), Decimal("snan"), pd.NA, pd.NaT, "", " \t"):
        for entry in entries_for(field, value):
            # Only ado, and so a call of its experiment, requires a version.
            newest = field == "model_version" and entry not in (by_call, by_ado)
            assert said_alike(ask(entry, field, value), outcome(JOB) if newest else without), (entry, value)


def test_a_number_may_come_as_any_type_of_number_or_as_text():
    expected = outcome({**JOB, "batch_size": 8})
    assert expected != outcome(JOB)
    for value in (
        8, 8.0, np.int8(8), np.uint64(8), np.float16(8), np.longdouble(8), Decimal(8), Decimal("8.0"), Decimal("0.8e1"),
        Fraction(8), "8", " 8.0 ", "+8", "0.8e1", np.str_("8"),
    ):  # fmt: skip
        for entry in entries_for("batch_size", value):
            assert ask(entry, "batch_size", value) == expected, (entry, value)


def test_a_choice_is_found_in_any_spelling_and_other_values_are_refused():
    expected = outcome(JOB)
    for field, value in {
        "stack": "Reference", "optim": "AdamW-Torch", "torch_dtype": " BFloat16", "mixed_precision": False,
        "gradient_checkpointing": "Non_Reentrant", "loss": "FULL", "sharding": "FSDP-2", "lora_r": "4.0",
        "lora_targets": "Default", "adapter_dtype": "bfloat-16",
    }.items():  # fmt: skip
        for entry in entries_for(field, value):
            assert ask(entry, field, value) == expected, (entry, field)
    unquoted = measured("entity: {mixed_precision: no, " + ", ".join(f"{f}: {v}" for f, v in JOB.items()) + "}")
    assert unquoted["gpus"] == expected["gpus"]
    for field in ("stack", "optim", "loss"):
        *most, last = choices(field)
        for value in ("adam2", 7, 0, True, b"sgd"):
            for entry in entries_for(field, value):
                said = ask(entry, field, value)
                assert said == f"{field}: must be {', '.join(most)} or {last}, got {value!r}", (entry, field)


def test_settings_that_exclude_each_other_are_named_at_every_entry():
    job = {**JOB, "method": "full", "lora_r": 8}
    for entry in (by_call, by_workload, by_table, by_csv, by_options, by_ado):
        assert entry(job) == "method 'full' and lora_r 8 exclude each other", entry


def test_a_number_beyond_2_to_the_53_is_refused_however_large_it_is():
    for value in (
        2**53 + 1, 10**309, 10**4000, 1e300, np.uint64(2**63), np.longdouble("1e4000"), Fraction(10**400),
        Fraction(2**54 + 1, 2), Decimal("1e400"), Decimal("1e999999999"), "9007199254740993.0", "1e400", "1e999999999",
    ):  # fmt: skip
        for entry in entries_for("max_gpus", value):
            said = ask(entry, "max_gpus", value)
            assert said.startswith("max_gpus: must be a whole number <= 9007199254740992, got "), (entry, said)


def test_a_value_that_is_not_a_whole_number_is_refused():
    almost = Fraction(8 * 10**30 + 1, 10**30)
    for value in (
        0, -(10**309), 8.5, math.inf, almost, Decimal("8.5"), Decimal("-inf"), np.nextafter(np.longdouble(8), 9),
        "8.00000000000000000000000001", "1_6", "0x10", "inf", "nan", "1e-999999999", "8." + "0" * 40, "1e9" + "9" * 30,
        True, np.True_, b"8", 8j, [8], np.array(8), np.datetime64(8, "s"),
    ):  # fmt: skip
        for entry in entries_for("max_gpus", value):
            said = ask(entry, "max_gpus", value)
            assert said.startswith("max_gpus: must be a whole number >= 1, got "), (entry, value, said)


def test_a_value_that_cannot_even_be_compared_spoils_its_own_row_only():
    class Odd:
        def __hash__(self):
            raise RuntimeError

        def __eq__(self, other):
            raise RuntimeError

    sizes = [Odd(), 10**5000, Decimal("snan"), 16]
    answers = recommend(pd.DataFrame([{**JOB, "batch_size": size} for size in sizes]))
    assert answers["can_recommend"].tolist() == [0, 0, 0, 1]
    assert all(reason.startswith("batch_size: ") for reason in answers["reason"][:3])

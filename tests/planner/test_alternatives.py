"""Changes suggested with a "no" have been tried, and lead to the layout that they name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from autoconf import Workload, recommend
from autoconf.jobs.stack import Stack
from autoconf.memory.candidates import Candidates
from autoconf.planner.alternatives import remedies
from autoconf.planner.changes import ALL, OF_TABLES
from autoconf.planner.domain import pick
from autoconf.planner.frontier import most_tokens
from autoconf.planner.results import Change
from autoconf.planner.search import decide, recommendations
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor

SWEEP = Path(__file__).parents[2] / "sweep"
DOMAIN = registry.card("1.1.0").domain


@pytest.fixture(scope="module")
def predictor():
    return registry.load("1.1.0")


def random_columns(count: int, seed: int) -> dict:
    """Jobs of the whole domain, including jobs with a small batch on many GPUs."""
    generator = np.random.default_rng(seed)
    return {
        "model_name": generator.choice(list(DOMAIN.models), count).tolist(),
        "method": generator.choice(DOMAIN.methods, count).tolist(),
        "gpu_model": generator.choice(list(DOMAIN.gpus), count).tolist(),
        "tokens_per_sample": np.exp2(generator.uniform(0, 14, count)).astype(int).tolist(),
        "batch_size": np.exp2(generator.uniform(0, 7, count)).astype(int).tolist(),
        "gpus_per_worker": generator.choice([1, 3, 8], count).tolist(),
        "max_gpus": generator.choice([1, 5, 8, 64, 100], count).tolist(),
        "gradient_accumulation_steps": generator.choice([1, 4], count).tolist(),
    }


def without_recommendation(predictor, count: int, seed: int) -> dict:
    columns = random_columns(count, seed)
    answers = recommendations(predictor, columns)
    return pick(columns, [index for index, found in enumerate(answers) if not found.can_recommend])


@pytest.mark.long
def test_a_remedy_is_the_answer_to_the_same_job_with_that_one_change(predictor):
    columns = without_recommendation(predictor, 400, seed=1)
    helped = set()
    for index, found in enumerate(remedies(predictor, columns, ALL)):
        job = {field: values[index] for field, values in columns.items()}
        for remedy in found:
            changed = recommend(Workload.parse(**{**job, remedy.field: remedy.value}), "1.1.0")
            assert remedy.before == job[remedy.field] != remedy.value
            assert (changed.gpus, changed.workers) == (remedy.gpus, remedy.workers)
            helped.add(remedy.field)
        accumulating = job["gradient_accumulation_steps"] > 1
        one_step = recommend(Workload.parse(**{**job, "gradient_accumulation_steps": 1}), "1.1.0").can_recommend
        assert any(r.field == "gradient_accumulation_steps" for r in found) == bool(accumulating and one_step)
    assert helped == {
        "gradient_accumulation_steps",
        "batch_size",
        "tokens_per_sample",
        "method",
        "max_gpus",
        "gpu_model",
    }


def test_the_batch_that_is_named_is_the_nearest_of_all_that_would_do(predictor):
    columns = without_recommendation(predictor, 150, seed=2)
    directions = set()
    for index, found in enumerate(remedies(predictor, columns, OF_TABLES)):
        (job,) = [pick(columns, [index])]
        batch = job["batch_size"][0]
        batches = list(range(1, batch + DOMAIN.max_gpus + 1))
        every = {field: values * len(batches) for field, values in job.items()} | {"batch_size": batches}
        would_do = [
            size for size, said in zip(batches, recommendations(predictor, every), strict=True) if said.can_recommend
        ]
        named = next((remedy.value for remedy in found if remedy.field == "batch_size"), None)
        assert named == min(would_do, key=lambda size: (abs(size - batch), -size), default=None)
        directions.add(None if named is None else named > batch)
    assert directions == {None, True, False}


def test_no_batch_beyond_the_domain_is_named(predictor, job):
    del job["model_version"]
    small = {**job, "gpu_model": "L40S", "tokens_per_sample": 128, "batch_size": 1021, "gradient_accumulation_steps": 4}
    named = {}
    for most in (3, 4, 5, 64):
        columns = {field: [value] for field, value in {**small, "gpus_per_worker": 8, "max_gpus": most}.items()}
        (found,) = remedies(predictor, columns, OF_TABLES)
        (named[most],) = [remedy.value for remedy in found if remedy.field == "batch_size"]
    assert named == {3: 1020, 4: 1020, 5: 1020, 64: 1022}


def random_candidates(predictor: Predictor, count: int) -> dict[str, np.ndarray]:
    """Rows, usable memory and numbers of GPUs of candidates."""
    generator = np.random.default_rng(count)
    models = generator.choice(list(predictor.domain.models), count).tolist()
    # Version 1.1.0 supports one stack, with and without accumulation.
    stacks = [Stack(gradient_accumulation=bool(generator.integers(2))) for _ in range(count)]
    methods = generator.choice(["full", "lora"], count).tolist()
    rows = np.array([predictor.row(*key) for key in zip(models, methods, stacks, strict=True)])
    return {
        "rows": rows, "usable_gib": generator.choice([44.4, 79.15], count), "gpus": generator.integers(1, 65, count)
    }  # fmt: skip


@pytest.mark.parametrize("version", registry.RELEASED)
@pytest.mark.parametrize("count", [1, 40, 700])
def test_the_edge_is_the_last_number_of_tokens_that_fits(version, count):
    """The result does not depend on how many jobs are searched at once, which sets the points of a round."""
    predictor = registry.load(version)
    asked = random_candidates(predictor, count)
    most = most_tokens(predictor, **asked)
    assert (most < DOMAIN.max_tokens_per_sample * DOMAIN.max_batch_size).all()

    def fits(tokens):
        return decide(predictor, Candidates(predictor.memory, **asked, tokens_per_gpu=tokens.astype(float)))

    assert fits(most)[most > 0].all()
    assert not fits(most + 1).any()


@pytest.mark.parametrize("version", registry.RELEASED)
def test_many_candidates_get_the_answers_of_the_predictor_one_by_one(version):
    """Near the step the predictor is asked, elsewhere its answer is known."""
    predictor = registry.load(version)
    asked = random_candidates(predictor, 2000)
    most = most_tokens(predictor, **asked)
    for tokens in (most, most + 1, most // 2, most * 2):
        candidates = Candidates(predictor.memory, **asked, tokens_per_gpu=tokens.astype(float))
        answers = predictor.answers(predictor.features(candidates))
        assert predictor.fits(candidates).tolist() == answers.tolist()
    for several in (False, True):
        below, above = predictor.step(several)
        assert 0 < above - below < 1e-6


@pytest.fixture(scope="module")
def sweep() -> pd.DataFrame:
    """The jobs of the sweep with their answers."""
    space = yaml.safe_load((SWEEP / "examples" / "space.yaml").read_text(encoding="utf-8"))["entitySpace"]
    values = {dimension["identifier"]: dimension["propertyDomain"]["values"] for dimension in space}
    jobs = pd.MultiIndex.from_product(values.values(), names=values).to_frame(index=False)
    return pd.concat([jobs, recommend(jobs)], axis=1)


def test_over_the_whole_sweep_a_change_is_named_exactly_where_it_helps(sweep):
    no = sweep[sweep["can_recommend"] == 0].drop(columns=["can_recommend", "gpus", "workers"])
    reasons, jobs = no["reason"], no.drop(columns="reason")
    one_step = recommend(jobs.assign(gradient_accumulation_steps=1))["can_recommend"] == 1
    assert (reasons.str.contains("gradient_accumulation_steps=1 would fit on ", regex=False) == one_step).all()
    at_eight = recommend(jobs.assign(batch_size=8))["can_recommend"] == 1
    assert reasons[at_eight].str.contains("batch_size=[0-9]+ would fit on ").all()
    assert 0 < one_step.sum() < len(no) and 0 < at_eight.sum() < len(no)


def test_the_readme_of_the_sweep_says_how_many_a_change_helps(sweep):
    no = sweep[sweep["can_recommend"] == 0]
    batch = no["reason"].str.extract(r"batch_size=(\d+) would fit")[0].astype(float)
    one_step = no["reason"].str.contains("gradient_accumulation_steps=1 would fit")
    larger, smaller = (batch > no["batch_size"]).sum(), (batch < no["batch_size"]).sum()
    text = " ".join((SWEEP / "README.md").read_text(encoding="utf-8").split())
    assert f"{len(sweep) - len(no):,} of the {len(sweep):,} jobs get a recommendation" in text
    assert f"Of the {len(no):,} jobs without a recommendation, {(one_step | batch.notna()).sum()} get one" in text
    assert (
        f"{larger} by a larger batch, which more GPUs divide, {smaller} by a smaller one, {one_step.sum()} by" in text
    )


def test_a_larger_batch_may_need_fewer_gpus_where_the_divisors_change(job):
    job = {**job, "model_name": "llama2-70b", "tokens_per_sample": 4096}
    needed = [recommend(Workload.parse(**{**job, "batch_size": batch})).gpus for batch in (6, 7, 8)]
    assert needed == [3, 7, 4]  # as sweep/README.md says


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 7, "max_gpus": 6}, ["that divides batch_size 7 is enough (the largest is 1): ", " on 1 GPU",
         "; batch_size=8 would fit on 4 GPUs (4 does not divide 7)"]),
        ({"batch_size": 35, "gpus_per_worker": 4}, ["that divides batch_size 35 and splits evenly over workers of 4 is "
         "enough (the largest is 1): ", "; batch_size=36 would fit on 4 GPUs (4 does not divide 35)"]),
        ({"batch_size": 512}, ["no number of GPUs up to 8 that divides batch_size 512 is enough: training peaks near ",
         " on each of 8 GPUs", "; batch_size=128 would fit on 8 GPUs"]),
    ],
)  # fmt: skip
def test_the_nearest_batch_is_suggested_with_the_reason_for_an_uneven_division(job, changes, says):
    job = {**job, "model_name": "llama2-70b", "tokens_per_sample": 2048}
    reason = recommend(Workload.parse(**{**job, **changes})).reason
    for words in says:
        assert words in reason, reason


def test_if_no_single_change_helps_pairs_are_suggested():
    job = {
        "model_name": "llama3.1-70b", "method": "full", "gpu_model": "NVIDIA-A40", "max_gpus": 1,
        "tokens_per_sample": 2048, "batch_size": 8, "stack": "trl",
    }  # fmt: skip
    found = recommend(Workload.parse(**job))
    assert found.changes and all(remedy.also for remedy in found.changes)
    assert found.reason.endswith("; ".join(map(str, found.changes)))
    for remedy in found.changes:
        assert str(remedy).startswith(f"{remedy.also} with {Change.__str__(remedy)} would fit on ")
        for alone in (remedy, remedy.also):
            assert recommend(Workload.parse(**{**job, alone.field: alone.value})).can_recommend == 0
        both = {remedy.field: remedy.value, remedy.also.field: remedy.also.value}
        changed = recommend(Workload.parse(**{**job, **both}))
        assert (changed.gpus, changed.workers) == (remedy.gpus, remedy.workers)
    assert len({frozenset({remedy.field, remedy.also.field}) for remedy in found.changes}) == len(found.changes)


def test_the_page_of_outputs_quotes_a_reason_as_it_is(job):
    job = {**job, "model_name": "llama2-70b", "tokens_per_sample": 2048, "batch_size": 7, "max_gpus": 6}
    job["model_version"] = registry.DEFAULT
    text = " ".join((SWEEP.parent / "docs" / "reference" / "outputs.md").read_text(encoding="utf-8").split())
    assert f"*{recommend(Workload.parse(**job)).reason}*" in text


@pytest.mark.parametrize(
    ("changes", "suggested"),
    [
        (
            {"method": "full", "stack": "trl"},
            ["torch_dtype=bfloat16 would fit on 1 GPU", "sharding=fsdp2 would fit on 2 GPUs"],
        ),
        (
            {
                "lora_r": 1024,
                "lora_targets": "all-linear",
                "stack": "trl",
                "gpu_model": "L40S",
                "batch_size": 1,
                "max_gpus": 1,
            },
            ["lora_r=256 would fit on 1 GPU"],
        ),
        (
            {"gpu_model": "L40S", "tokens_per_sample": 65536, "max_gpus": 4, "batch_size": 4},
            ["tokens_per_sample=14595 would fit on 4 GPUs"],
        ),
    ],
)
def test_changes_that_people_make_first_are_suggested(changes, suggested):
    job = {
        "model_name": "qwen2.5-7b",
        "method": "lora",
        "gpu_model": "H100",
        "tokens_per_sample": 2048,
        "batch_size": 8,
    }
    _, *named = recommend(Workload.parse(**{**job, **changes})).reason.split("; ")
    assert [sentence for sentence in named if sentence in suggested] == suggested


def test_a_supported_setting_is_suggested_if_it_removes_the_only_obstacle(job):
    answer = recommend(Workload.parse(**job, gradient_checkpointing="none"))
    assert answer.reason.endswith("; gradient_checkpointing=non-reentrant would fit on 2 GPUs")
    both = recommend(Workload.parse(**job, gradient_checkpointing="none", optim="sgd"))
    assert "would fit" not in both.reason  # no change is suggested for sgd


class KnowsOneMore(Predictor):
    """Version 1.1.0, changed to use the figures without accumulation for one value of a setting."""

    def __init__(self, known: Predictor, field: str, value: str) -> None:
        super().__init__(known.card, known.memory, known._tabular)
        self.changed = (field, value)

    def row(self, model, method, stack):
        field, value = self.changed
        return self.memory.rows[model, method, getattr(stack, field) != value]


@pytest.mark.parametrize(
    ("field", "value", "settings"),
    [
        ("loss", "chunked", {}),
        ("gradient_checkpointing", "non-reentrant", {"gradient_checkpointing": "none"}),
        ("optim", "adamw_torch_fused", {}),
        ("optim", "adamw_bnb_8bit", {"optim": "adamw_torch_fused"}),
        ("sharding", "fsdp2", {"stack": "trl", "loss": "full"}),
    ],
)
def test_a_change_of_the_stack_is_suggested_if_it_helps(predictor, job, field, value, settings):
    large = {**job, "model_name": "llama3.1-70b", "method": "full", "tokens_per_sample": 512, "max_gpus": 64}
    workload = Workload.parse(**large, **settings)
    columns = {name: [setting] for name, setting in dict(workload).items()}
    (found,) = remedies(KnowsOneMore(predictor, field, value), columns, OF_TABLES)
    (suggested,) = [remedy for remedy in found if remedy.field == field]
    assert (suggested.before, suggested.value) == (getattr(workload.training_stack(), field), value)
    assert suggested.gpus * suggested.workers == 16


@pytest.mark.long
def test_the_nearest_batch_of_each_gpu_is_the_largest_smaller_one_that_does(predictor, job):
    del job["batch_size"], job["model_version"]
    job = {**job, "model_name": "llama2-70b", "tokens_per_sample": 2048}
    for each, most in ((512, 8), (100, 8), (3, 1), (200, 64)):
        asked = {**job, "max_gpus": most}
        columns = {f: [v] for f, v in {**asked, "per_device_train_batch_size": each}.items()}
        (found,) = remedies(predictor, columns, OF_TABLES)
        smaller = [Workload.parse(**asked, per_device_train_batch_size=size) for size in range(each, 0, -1)]
        would_do = next((w.per_device_train_batch_size for w in smaller if recommend(w, "1.1.0").can_recommend), None)
        named = [remedy.value for remedy in found if remedy.field == "per_device_train_batch_size"]
        assert named == ([] if would_do is None else [would_do])


def test_outside_the_domain_no_change_is_suggested(job):
    answer = recommend(Workload.parse(**{**job, "model_name": "gpt-9", "batch_size": 7}))
    assert "would fit" not in answer.reason

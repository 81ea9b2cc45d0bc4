"""Recommendations for one job and for tables: the domain, the rules, and the candidate counts."""

import numpy as np
import pandas as pd
import pytest

from autoconf import IgnoredColumnWarning, Recommendation, Workload, recommend
from autoconf.jobs.job import REQUIRED, TRAINING_STACK
from autoconf.min_gpu_recommender import min_gpu_recommender
from autoconf.planner import runner
from autoconf.planner.search import decide
from autoconf.predictor import registry
from autoconf.predictor.check_jobs import candidates


def ask(job: dict, **changes) -> Recommendation:
    return recommend(Workload.parse(**{**job, **changes}))


def total(answer: Recommendation) -> int:
    assert answer.gpus is not None and answer.workers is not None
    return answer.gpus * answer.workers


def test_the_example_needs_two_gpus(job):
    assert ask(job) == Recommendation(can_recommend=1, gpus=2, workers=1, stack="reference")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model_name", "llama-8b", "which has llama3-8b and llama3.1-8b"),
        ("model_name", "../../etc/passwd", "not in the domain"),
        ("method", "qlora", "method 'qlora' is not in the domain of version 1.1.0"),
        ("gpu_model", "NVIDIA-B200", "gpu_model"),
        ("tokens_per_sample", 16_385, "ends at 16384"),
        ("batch_size", 1_025, "ends at 1024"),
        ("model_version", "9.9.9", "released versions are 1.1.0"),
        ("model_version", "../1.1.0", "released versions are 1.1.0"),
    ],
)
def test_outside_the_domain_there_is_no_recommendation_but_a_reason(job, field, value, says):
    answer = ask(job, **{field: value})
    assert answer.can_recommend == 0
    assert answer.gpus is None and answer.workers is None
    assert says in answer.reason
    outcome = "bad_value" if field == "model_version" else "outside_domain"
    assert answer.outcome == outcome
    expected = {"can_recommend": 0, "reason": answer.reason, "outcome": outcome}
    assert min_gpu_recommender(**{**job, field: value}) == expected


def test_learned_positions_limit_the_sample(job):
    inside = ask(job, model_name="granite-20b-v2", tokens_per_sample=8_192, batch_size=1)
    beyond = ask(job, model_name="granite-20b-v2", tokens_per_sample=8_193, batch_size=1)
    assert "learned positions" not in inside.reason
    assert "beyond the 8192 learned positions" in beyond.reason


def test_aliases_refer_to_the_model_of_the_same_architecture(job):
    named = ask(job, model_name="llama3.1-8b")
    assert ask(job, model_name="meta-llama/Llama-3.1-8B-Instruct") == named
    assert ask(job, model_name="ibm-granite/granite-3.1-8b-base") == ask(job, model_name="granite-3.1-8b-instruct")
    assert ask(job, gpu_model="NVIDIA-L40S") == ask(job, gpu_model="L40S")


def test_full_tuning_of_405b_is_physically_impossible_on_32_gpus(job):
    # 2P + 6T = 8 x 405.85e9 bytes, over 32 GPUs 94.5 GiB on each.
    impossible = ask(job, model_name="llama3.1-405b", method="full", batch_size=32, max_gpus=32)
    assert impossible.can_recommend == 0
    assert "weights, gradients and optimizer state alone take 94.5 GiB on each of 32 GPUs" in impossible.reason


def test_unsharded_gradients_are_named_as_the_cause(job):
    large = {**job, "model_name": "llama3.1-70b", "method": "full", "tokens_per_sample": 512, "max_gpus": 64}
    accumulating = ask(large, batch_size=16)
    assert accumulating.can_recommend == 0
    # 2 x 70.55e9 bytes of gradients = 131.4 GiB on every GPU.
    assert "keeps 131.4 GiB of unsharded gradients on every GPU" in accumulating.reason
    assert "gradient_accumulation_steps=1" in accumulating.reason
    assert total(ask(large, batch_size=16, gradient_accumulation_steps=1)) == 16


@pytest.mark.parametrize(
    ("batch", "allowed"), [(3, {1, 3}), (6, {1, 2, 3, 6}), (48, {1, 2, 3, 4, 6, 8, 12, 16, 24, 48})]
)
@pytest.mark.parametrize("gpus_per_worker", [1, 3, 4, 8])
def test_counts_divide_the_batch_and_split_evenly(job, batch, allowed, gpus_per_worker):
    found = set()
    for tokens in (256, 1024, 2048, 4096, 8192, 16384):
        for model in ("granite-3.1-2b", "llama-13b", "llama3.1-70b"):
            answer = ask(
                job, model_name=model, batch_size=batch, tokens_per_sample=tokens, max_gpus=48,
                gpus_per_worker=gpus_per_worker,
            )  # fmt: skip
            if answer.can_recommend:
                found.add(total(answer))
                assert answer.gpus <= gpus_per_worker
                assert answer.workers == -(-total(answer) // gpus_per_worker)
    assert found <= allowed
    assert len(found) > 1


def test_the_smallest_count_that_fits_is_recommended(job):
    answer = ask(job, batch_size=48, tokens_per_sample=8192, max_gpus=48)
    needed = total(answer)
    assert needed > 2
    assert ask(job, batch_size=48, tokens_per_sample=8192, max_gpus=needed - 1).can_recommend == 0


def test_more_than_the_versions_gpus_are_considered_up_to_its_limit(job):
    assert ask(job, max_gpus=100_000) == ask(job)
    job = {**job, "model_name": "llama3.1-405b", "method": "full", "batch_size": 512}
    reason = ask(job, max_gpus=512).reason
    assert reason.startswith("no number of GPUs up to 64 (where version 1.1.0 ends; max_gpus is 512) that divides ")
    assert ask(job, max_gpus=64).reason.startswith("no number of GPUs up to 64 that divides ")


@pytest.mark.long
def test_a_table_answers_as_single_jobs_do(job, monkeypatch):
    generator = np.random.default_rng(3)
    domain = registry.card("1.1.0").domain
    table = pd.DataFrame(
        {
            "model_name": generator.choice([*domain.models, "nonsense"], 300),
            "method": generator.choice(domain.methods, 300),
            "gpu_model": generator.choice(list(domain.gpus), 300),
            "tokens_per_sample": generator.integers(1, 16384, 300),
            "batch_size": generator.choice([1, 3, 6, 16, 48, 64], 300),
            "max_gpus": generator.choice([1, 8, 64], 300),
        },
        index=[f"job-{i}" for i in range(300)],
    )
    singles = [recommend(Workload.parse(**row)) for row in table.to_dict("records")]
    whole = recommend(table)
    monkeypatch.setattr(runner, "CHUNK", 7)
    pd.testing.assert_frame_equal(recommend(table), whole)
    assert list(whole.index) == list(table.index)
    assert whole["can_recommend"].tolist() == [s.can_recommend for s in singles]
    for reason, single in zip(whole["reason"], singles, strict=True):
        named = iter(single.reason.split("; "))  # the answer about one job has changes that take too long for a table
        assert all(sentence in named for sentence in reason.split("; "))
    assert [None if pd.isna(g) else g for g in whole["gpus"]] == [s.gpus for s in singles]
    assert [None if pd.isna(w) else w for w in whole["workers"]] == [s.workers for s in singles]
    assert set(whole["can_recommend"]) == {0, 1}
    assert whole.dtypes.astype(str).to_dict() == {
        "can_recommend": "int64", "gpus": "Int64", "workers": "Int64", "reason": "object", "outcome": "object"
    }  # fmt: skip


def test_one_bad_row_gets_its_reason_and_the_others_their_answers(job):
    table = pd.DataFrame(
        [job, {**job, "batch_size": 0}, {**job, "tokens_per_sample": "8192.0"}, {**job, "max_gpus": None}]
    )
    answers = recommend(table)
    assert answers["can_recommend"].tolist() == [1, 0, 1, 1]
    assert answers["reason"][1] == "batch_size: must be a whole number >= 1, got 0"


def test_true_and_one_are_distinguished_in_one_column(job):
    answers = recommend(pd.DataFrame({**{k: [v] * 3 for k, v in job.items()}, "batch_size": [1, True, 1.0]}))
    assert answers["can_recommend"].tolist() == [1, 0, 1]


def test_version_1_1_0_supports_only_the_reference_stack_in_any_spelling(job):
    for settings in ({"stack": "Reference", "optim": "adamw_torch", "lora_r": 4}, {"method": "full", "loss": "full"}):
        assert ask(job, **settings) == ask(job, **{k: v for k, v in settings.items() if k == "method"})
    one, many = ask(job, optim="adamw-torch-fused"), ask(job, stack="fms-hf-tuning", lora_targets="attention")
    domain = "not in the domain of version 1.1.0, which answers for the stack reference only"
    assert one.reason == f"optim 'adamw_torch_fused' is {domain} (optim 'adamw_torch')"
    assert (one.stack, many.stack) == (
        "reference with optim=adamw_torch_fused",
        "fms-hf-tuning with lora_targets=attention",
    )
    assert many.reason.startswith(
        "gradient_checkpointing 'none', sharding 'fsdp1', adapter_dtype 'float32', lora_r 8, "
    )
    # Of a stack without adapters their settings do not count.
    assert "lora" not in ask(job, stack="fms-hf-tuning", method="full").reason


def test_stacks_in_a_table_are_those_of_single_jobs(job):
    settings = [
        {},
        {"stack": "trl"},
        {"optim": "sgd"},
        {"lora_r": 8, "method": "full"},
        {"loss": "FULL"},
        {"stack": "x"},
    ]
    answers = recommend(pd.DataFrame([{**job, **said} for said in settings]))
    for said, answer in zip(settings, answers.to_dict("records"), strict=True):
        try:
            single = ask(job, **said)
        except ValueError as error:
            single = Recommendation(0, reason=str(error))
        assert (answer["can_recommend"], answer["reason"]) == (single.can_recommend, single.reason)


def test_the_batch_of_each_gpu_is_that_of_as_many_times_more_on_all(job):
    del job["batch_size"]
    for each, model, method in ((16, "llama-7b", "lora"), (1, "llama2-70b", "lora"), (4, "llama3-8b", "full")):
        asked = {**job, "model_name": model, "method": method, "max_gpus": 12, "gpus_per_worker": 5}
        answer = ask(asked, per_device_train_batch_size=each)
        even = [n for n in range(1, 13) if n % -(-n // 5) == 0]
        fits = [n for n in even if _fits(asked, n, batch_size=each * n)]
        assert (total(answer) if answer.can_recommend else None) == min(fits, default=None)
        assert answer.can_recommend == bool(fits)


def _fits(job, gpus, **batch) -> bool:
    """Whether a job fits on exactly this number of GPUs, in one worker, with its batch divided evenly."""
    predictor = registry.load("1.1.0")
    table = pd.DataFrame([{**job, **batch, "number_gpus": gpus, "gradient_accumulation_steps": 4}])
    return bool(decide(predictor, candidates(predictor, table))[0])


def test_the_batch_of_all_gpus_ends_the_search_for_the_batch_of_each(job):
    del job["batch_size"]
    job = {**job, "model_name": "llama3.1-405b", "max_gpus": 64}
    answer = ask(job, per_device_train_batch_size=100)
    assert answer.reason.startswith(
        "no number of GPUs up to 10 (where version 1.1.0 ends; max_gpus is 64) is enough for "
        "per_device_train_batch_size 100: training peaks near "
    )
    assert ask(job, per_device_train_batch_size=1025).reason == (
        "per_device_train_batch_size 1025 is beyond the domain of version 1.1.0, which ends at 1024"
    )


def test_a_missing_column_is_an_error_that_names_it(job):
    for field in (*REQUIRED, "batch_size or per_device_train_batch_size"):
        with pytest.raises(ValueError, match=field):
            recommend(pd.DataFrame([job]).drop(columns=field.split()[0]))


def test_an_invalid_table_of_jobs_is_an_error(job):
    with pytest.raises(TypeError, match="workloads: must be a Workload or a pandas DataFrame, got list"):
        recommend([job])
    with pytest.raises(ValueError, match="method: more than one column"):
        recommend(pd.concat([pd.DataFrame([job]), pd.DataFrame([job])[["method"]]], axis=1))


def test_a_column_that_may_be_meant_to_count_is_warned_of(job):
    table = pd.DataFrame([job]).assign(
        max_gpu=4, gpus_per_node=4, optimizer="adafactor", lora_rank=64, zero=3, note="mine"
    )
    with pytest.warns(IgnoredColumnWarning) as warned:
        answers = recommend(table)
    assert answers["gpus"].tolist() == [2]
    assert [str(warning.message) for warning in warned] == [
        "column 'max_gpu' is ignored; did you mean max_gpus?",
        "column 'gpus_per_node' is ignored; did you mean gpus_per_worker?",
        "column 'optimizer' is ignored; did you mean optim?",
        "column 'lora_rank' is ignored; did you mean lora_r?",
        f"column 'zero' is ignored: answers hold for {TRAINING_STACK}",
    ]
    assert {warning.filename for warning in warned} == {__file__}


def test_columns_of_the_users_own_are_not_warned_of(job, recwarn):
    own = ["id", "note", "gpus", "workers", "num_gpus", "cost", "version", "priority", "eval_loss", "optimal", 7, None]
    recommend(pd.DataFrame([job]).assign(max_gpus=4).reindex(columns=[*job, "max_gpus", *own]))
    assert list(recwarn) == []


def test_an_empty_table_has_an_empty_answer(job):
    answers = recommend(pd.DataFrame([job]).iloc[:0])
    assert answers.empty and list(answers) == ["can_recommend", "gpus", "workers", "reason", "outcome"]


def test_the_same_jobs_get_the_same_answers(job):
    assert [ask(job, tokens_per_sample=t) for t in range(6000, 6400, 7)] == [
        ask(job, tokens_per_sample=t) for t in range(6000, 6400, 7)
    ]


def test_names_of_one_level_may_come_as_a_multiindex(job):
    plain = pd.DataFrame([job, job])
    expected = recommend(plain)
    columns, index = pd.MultiIndex.from_arrays([plain.columns]), pd.MultiIndex.from_arrays([["a", "b"]], names=["job"])
    pd.testing.assert_frame_equal(recommend(plain.set_axis(columns, axis=1)), expected)
    pd.testing.assert_frame_equal(recommend(plain.set_axis(columns, axis=1).set_axis(index)), expected.set_axis(index))
    for levels in ([["x"], plain.columns], [plain.columns, ["x"]]):
        with pytest.raises(ValueError, match="columns: must have one level of names, got 2"):
            recommend(plain.set_axis(pd.MultiIndex.from_product(levels), axis=1))


def test_the_default_version_is_a_field_like_another(job):
    table = pd.DataFrame([job]).drop(columns="model_version")
    assert recommend(table, " ")["can_recommend"].tolist() == [1]
    with pytest.raises(ValueError, match="model_version: must be a non-empty text"):
        recommend(table, 1.1)

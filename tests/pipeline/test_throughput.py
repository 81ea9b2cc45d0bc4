"""Measured throughput: which rows fall out, what is learned from the others, and what the pages say."""

import numpy as np
import pandas as pd
import pytest

from autoconf.errors import AutoConfError
from autoconf.pipeline.report import PAGES
from autoconf.pipeline.throughput.evaluate import HeldOut, coverage, figures, learned_bounds, rows
from autoconf.pipeline.throughput.learn import feature_table, weights_of
from autoconf.pipeline.throughput.physics import measured, rates
from autoconf.pipeline.throughput.rows import (
    LARGEST_SHARE,
    OTHER_TOKENS,
    RATE,
    all_rows,
    read_rows,
    read_stacks,
    rows_of,
    share_of_peak,
    without_repeats,
)
from autoconf.speed.counts import CLOSED_FORM, counts_of
from autoconf.speed.features import MONOTONE
from autoconf.speed.version import DEFAULT, FOLDER, LABEL, TABLE, load


def test_rows_above_the_peak_fall_out_and_the_others_do_not():
    stacks = read_stacks()
    for row in all_rows().to_dict("records"):
        too_fast = share_of_peak(row, stacks[row["stack"]]) > LARGEST_SHARE
        assert too_fast == (row["left_out"] == OTHER_TOKENS), row


def test_the_page_says_how_many_rows_fell_out():
    page = (PAGES / "throughput.md").read_text(encoding="utf-8")
    for reason, count in all_rows()["left_out"].replace({"": "kept"}).value_counts().items():
        assert f"| {count} | {reason} |" in page
    for target in load().card.evaluation["targets"]:
        assert f"| {' | '.join(target.values())} |" in page


def test_a_table_of_runs_is_cleaned(tmp_path):
    job = {
        "model_name": "mistral-7b-v0.1", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB", "number_gpus": 1,
        "tokens_per_sample": 512, "batch_size": 8,
    }  # fmt: skip
    path = tmp_path / "throughput_test.csv"
    table = [{**job, RATE: 4000.0}, {**job, RATE: 21000.0}, {**job, "method": "gptq-lora", RATE: 4100.0}]
    pd.DataFrame(table).to_csv(path, index=False)
    stacks = {}
    found = rows_of(path, stacks)
    assert found["left_out"].tolist() == ["", OTHER_TOKENS, ""]
    assert stacks[found.loc[2, "stack"]].quantization == "nf4" != stacks[found.loc[0, "stack"]].quantization
    again = found.assign(table="campaign_sample")
    assert without_repeats(pd.concat([found, again]))["left_out"].iloc[0] == "the same run is in another table"


def test_the_released_version_was_made_from_these_rows_with_this_physics():
    """A released version is frozen: if work or features change, this fails, and a new version is needed."""
    table = pd.read_parquet(FOLDER / DEFAULT / TABLE)
    runs = measured(read_rows(), read_stacks())
    np.testing.assert_allclose(feature_table(runs).to_numpy(), table[list(MONOTONE)].to_numpy(), rtol=1e-9)
    correction = np.log(read_rows()[RATE].to_numpy(float) / rates(runs, load().card.constants))
    np.testing.assert_allclose(np.clip(correction, -1, 1), table[LABEL], rtol=1e-6, atol=1e-9)


def test_the_physics_alone_is_near_the_rows():
    known = rows()
    errors = np.abs(rates(known.runs, load().card.constants) / known.rates - 1)
    assert np.median(errors) < 0.08


def test_bounds_cover_what_they_should_and_a_wrong_predictor_is_seen():
    chance = np.random.default_rng(0)
    groups = np.arange(2000) % 10
    truth = chance.lognormal(0, 0.3, 2000)
    predictions = truth * chance.lognormal(0, 0.2, 2000)
    found = HeldOut(groups, predictions, predictions, predictions, np.arange(2000) % 3 == 0)
    assert coverage(found, truth, "measured") == pytest.approx(0.8, abs=0.03)
    bounds = learned_bounds(found, truth, "measured")["measured"]
    assert bounds.low < 1 < bounds.high
    worse = found._replace(full=truth * 2)
    median = [float(row["median %"]) for row in figures(worse, truth, "at random")]
    assert median[0] == pytest.approx(100) and median[1] < 20


def test_a_model_with_many_rows_does_not_count_by_all_of_them():
    weights = weights_of(pd.Series(["a"] * 100 + ["b"]))
    assert weights.mean() == pytest.approx(1)
    assert weights[:100].sum() == pytest.approx(10 * weights[100])


def test_stacks_are_those_of_the_rows():
    assert {*all_rows()["stack"]} == {*read_stacks()}


@pytest.mark.torch
@pytest.mark.parametrize("model", ["smollm2-135m", "granite-3.1-1b-a400m", "granite-4.0-h-350m", "opt-125m"])
def test_flops_are_those_that_pytorch_counts_and_the_rest_is_near(model):
    pytest.importorskip("torch")
    from autoconf.pipeline.throughput.counted import rows

    (found,) = rows([model])
    assert float(found["FLOPs: closed form / counted"]) == pytest.approx(1, abs=0.002)
    for what in ("bytes", "operations"):
        assert float(found[f"{what}: with counts / counted"]) == pytest.approx(1, abs=0.4)


@pytest.mark.torch
def test_the_shipped_counts_are_what_is_counted():
    pytest.importorskip("torch")
    from autoconf.pipeline.throughput.counted import counts, families, setups

    setup = setups(families()["opt"])[0]
    assert counts_of("opt", setup.method, setup.stack) == pytest.approx(counts(setup), abs=0.001)


def test_choices_are_made_without_the_rows_that_are_judged(monkeypatch):
    from autoconf.pipeline.throughput import nested

    seen = []
    some = np.arange(572) % 12 == 0
    monkeypatch.setattr(nested, "CHOICES", [nested.Choice(True, None), nested.Choice(False, None)])
    real = nested.predict

    def predict(choice, known, out):
        seen.append(({*known.table.index}, {*out.table.index}))
        return real(choice, known, out)

    monkeypatch.setattr(nested, "predict", predict)
    variants = {True: rows().only(some), False: rows(CLOSED_FORM).only(some)}
    index = variants[True].table.index
    of_row = np.arange(len(index)) % 3
    found, choices = nested.held_out(variants, of_row)
    assert sum(choices.values()) == 3 and (found.full > 0).all()
    for group in range(3):  # two choices on two folds each, then the prediction that is judged
        *inner, last = seen[5 * group : 5 * group + 5]
        outer = {*index[of_row == group]}
        assert all(not outer & (known | out) for known, out in inner)
        assert last == ({*index} - outer, outer)


def test_untouched_rows_are_read_from_tables_of_another_project(tmp_path):
    from autoconf.pipeline.throughput.untouched import figures, jobs_of, read_table

    names = (
        "Model", "SeqLen (T)", "# GPUs", "GPU", "MicroBatchSize", "GradAccum", "Throughput (T/s)", "Precision",
        "Activation Checkpointing",
    )  # fmt: skip
    rows = [
        "7b | 2048 | 16 | h100_80gb | 6 | 2 | 160000 | amp_bf16 | False",
        "1b | 512 | 8 | a100_40gb | 8 | 1 | 99000 | bf16 | True",
    ]
    readme = tmp_path / "README.md"
    readme.write_text(
        "\n".join(["# text", f"| {' | '.join(names)} |", "| --- " * 9 + "|", *(f"| {row} |" for row in rows)])
    )
    table = read_table(readme)
    large, small = jobs_of(table)
    assert (large.layout.nodes, large.layout.steps, large.stack.gradient_checkpointing) == (2, 2, "none")
    assert (small.gpu_model, small.layout.tokens, small.stack.mixed_precision) == (
        "NVIDIA-A100-SXM4-40GB",
        4096,
        "bf16",
    )
    assert {row["runs"] for row in figures(table)} == {
        "all", "NVIDIA-H100-80GB-HBM3, several nodes", "NVIDIA-A100-SXM4-40GB, 1 node"
    }  # fmt: skip
    readme.write_text("nothing")
    with pytest.raises(AutoConfError, match="has no table"):
        read_table(readme)

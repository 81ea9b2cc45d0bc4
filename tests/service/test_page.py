"""The page of the service, in a real browser without a window."""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

from service import serving

from autoconf import Job, Workload, explain, plan, recommend, throughput

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "build" / "artifacts"
SIZES = {"phone": (390, 844), "tablet": (834, 1112), "desktop": (1440, 1000)}
JOB = {
    "model_name": "llama-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 8192,
    "per_device_train_batch_size": 4, "stack": "trl",
}  # fmt: skip

MISSING = CHROMIUM is None and "CI" not in os.environ  # in CI, a missing browser is a failure

pytestmark = [pytest.mark.long, pytest.mark.skipif(MISSING, reason="needs Chromium")]


@pytest.fixture(scope="module")
def server():
    with serving("--workers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    """The page, whose errors and requests to elsewhere fail the test."""
    context = browser.new_context(accept_downloads=True)
    opened = context.new_page()
    problems, elsewhere = [], []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on(
        "request", lambda it: elsewhere.append(it.url) if not it.url.startswith((server.url, "blob:", "data:")) else 0
    )
    opened.goto(server.url)
    opened.wait_for_selector("#field-model_name")
    yield opened
    context.close()
    assert elsewhere == []
    assert [problem for problem in problems if "422" not in problem] == []


def link(server, job):
    return f"{server.url}/#job={quote(json.dumps(job))}"


def ask(page, job=JOB):
    """Fill in the form and wait for the answer and the matrix."""
    for field, value in job.items():
        control = page.locator(f"[name={field}]")
        if control.evaluate("element => element.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.fill(str(value))
    page.get_by_role("button", name="Answer").click()
    page.wait_for_selector(".matrix")


def test_the_answer_comes_first_then_the_memory_and_the_changes(page):
    ask(page)
    text = page.locator("#answer").inner_text()
    found = explain(Workload(**JOB))
    assert text.index(f"{found.recommendation.gpus} GPU") < text.index("needs ") < text.index("activations")
    assert all(str(change) in text for change in found.changes)
    assert page.get_by_role("img").count() == len(found.at)


def test_the_speed_the_time_and_the_cost_are_those_of_the_api(page):
    page.locator("summary").first.click()
    ask(page)
    page.locator("#speed", has_text="give steps or dataset tokens under More settings").wait_for()
    ask(page, {**JOB, "steps": 500})
    page.locator("#speed", has_text="takes").wait_for()
    found = throughput(Workload(**JOB), number_gpus=1, steps=500)
    text = page.locator("#speed").inner_text()
    assert text.startswith(f"{found.tokens_per_second:,.0f} tokens per second (")
    assert f"takes {found.hours:.1f} hours and costs {found.cost:.2f}" in text


def test_a_run_shows_its_plan_within_its_limits(page):
    job = {field: value for field, value in JOB.items() if field != "gpu_model"}
    planned = plan(Job(**job), steps=500)
    page.locator("summary").first.click()
    ask(page, {**JOB, "steps": 500})
    rows = page.locator("#plan tbody tr")
    rows.first.wait_for()
    shown = [row.split("\t") for row in rows.all_inner_texts()]
    assert [row[0] for row in shown] == [*planned["gpu_model"]]
    assert [row[3] for row in shown] == [f"{cost:.2f}" for cost in planned["cost"]]
    page.fill("[name=budget]", "0.000001")
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("no layout that fits is within budget").wait_for()


REPLAYED = {
    "model_name": "smollm2-1.7b", "method": "full", "gpu_model": "L40S", "tokens_per_sample": 1024,
    "per_device_train_batch_size": 40, "gradient_accumulation_steps": 1,
}  # fmt: skip


def test_a_replay_draws_memory_over_time_and_names_the_failure(page):
    pytest.importorskip("torch")
    page.locator("summary").first.click()
    ask(page, REPLAYED)
    page.locator("#replay").focus()
    page.get_by_label("GPUs", exact=True).fill("1")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Replaying the job").wait_for(timeout=120_000)
    picture = page.locator("svg.timeline")
    picture.wait_for(timeout=300_000)
    failure = page.locator("#failure").inner_text()
    assert failure.startswith("It runs out of memory in step 2: ")
    assert failure in picture.get_attribute("aria-label")
    assert picture.locator(".failure").count() == 1
    assert picture.locator("polyline").count() == 2
    rows = [row.split("\t") for row in page.locator("#parts tbody tr").all_inner_texts()]
    assert [(row[0], row[3]) for row in rows] == [
        ("loading", "runs"), ("step 1", "runs"), ("step 2", "runs out of memory"), ("step 3", "not reached"),
    ]  # fmt: skip
    page.locator("#moment").focus()
    page.keyboard.press("End")
    assert page.locator("#moment").get_attribute("aria-valuetext").startswith("step 3: ")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        page.locator("#answer").screenshot(path=ARTIFACTS / f"timeline-{scheme}.png")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_a_job_that_cannot_be_replayed_says_why(page):
    ask(page)
    page.get_by_label("GPUs", exact=True).fill("none")
    page.locator("#replay").click()
    page.locator("#timeline .error").wait_for()
    assert "number_gpus: must be a whole number" in page.locator("#timeline .error").inner_text()


def test_a_form_completes_models_and_gpus(page):
    names = page.locator("#field-model_name-names option")
    assert "llama-7b" in names.evaluate_all("options => options.map(option => option.value)")
    assert page.locator("#field-gpu_model-names option").count() > 10
    assert page.locator("[name=stack] option").count() > 2


def test_the_matrix_agrees_with_the_api_and_changes_the_job(page):
    ask(page)
    cell = page.get_by_role("button", name="2048 tokens, batch 8 on each GPU")
    changed = {**JOB, "tokens_per_sample": 2048, "per_device_train_batch_size": 8}
    found = recommend(Workload(**changed))
    assert cell.inner_text() == str(found.gpus * found.workers)
    cell.click()
    page.wait_for_selector('[aria-current="true"][aria-label^="2048 tokens, batch 8 "]')
    assert page.locator("[name=tokens_per_sample]").input_value() == "2048"
    assert page.locator("#answer strong").first.inner_text() == f"{found.gpus} GPU"


def test_a_link_holds_the_job(page, server):
    ask(page)
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(".matrix")
    assert page.locator("[name=tokens_per_sample]").input_value() == "8192"
    assert page.locator("[name=stack]").input_value() == "trl"


def test_an_invalid_field_is_marked_and_named(page):
    ask(page)
    page.locator("[name=tokens_per_sample]").fill("many")
    page.get_by_role("button", name="Answer").click()
    error = page.get_by_role("alert")
    error.wait_for()
    assert "tokens_per_sample: must be a whole number" in error.inner_text()
    assert page.locator("[name=tokens_per_sample]").get_attribute("aria-invalid") == "true"
    assert page.locator("[name=method]").get_attribute("aria-invalid") == "false"


def test_a_job_file_comes_back_patched(page, tmp_path):
    page.locator("#files").set_input_files(ROOT / "examples" / "pytorchjob.yaml")
    page.wait_for_selector("#patched")
    with page.expect_download() as download:
        page.locator("#patched").click()
    original = (ROOT / "examples" / "pytorchjob.yaml").read_text(encoding="utf-8")
    expected = original.replace("gpu: 8", "gpu: 1").replace("--num_processes 8", "--num_processes 1")
    assert Path(download.value.path()).read_text(encoding="utf-8") == expected
    assert download.value.suggested_filename == "pytorchjob.yaml"
    assert page.locator("[name=model_name]").input_value() == "ibm-granite/granite-3.1-8b-base"


def test_files_that_are_dropped_are_read_as_those_that_are_chosen(page):
    text = (ROOT / "examples" / "pytorchjob.yaml").read_text(encoding="utf-8")
    dropped = page.evaluate_handle(
        "text => { const data = new DataTransfer(); data.items.add(new File([text], 'job.yaml')); return data; }", text
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    page.wait_for_selector("#patched")
    assert page.locator("#patched").get_attribute("download") == "job.yaml"
    assert "--num_processes 1" in page.locator("#read pre").inner_text()


def test_text_of_a_link_is_never_markup(page, server):
    page.goto("about:blank")
    page.goto(link(server, {**JOB, "model_name": "<img src=x onerror=document.title='bad'>"}))
    page.locator("#answer", has_text="No recommendation").wait_for()
    assert page.locator("#answer img").count() == 0
    assert page.title() != "bad"


def test_the_keyboard_alone_is_enough(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for field in ("model_name", "gpu_model", "tokens_per_sample", "per_device_train_batch_size"):
        while page.evaluate("document.activeElement.name") != field:
            page.keyboard.press("Tab")
        page.keyboard.type(str(JOB[field]))
        page.keyboard.press("Escape")
    page.locator("[name=method]").focus()
    page.keyboard.type("lora")
    page.keyboard.press("Tab")
    page.locator("[name=tokens_per_sample]").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".matrix")
    assert page.locator("#answer strong").first.inner_text().endswith(("GPU", "GPUs"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_each_size_and_scheme_is_accessible(page, server, size, scheme):
    page.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
    page.emulate_media(color_scheme=scheme)
    page.goto(link(server, JOB))
    page.reload()
    page.wait_for_selector(".matrix")
    page.locator("summary").first.click()
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"page-{size}-{scheme}.png", full_page=True)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]  # the page itself never scrolls sideways


def test_the_page_fetches_nothing_from_elsewhere_and_may_not_be_framed(server):
    answer = server.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    for path in ("/", "/page.js", "/common.js", "/timeline.js", "/page.css"):
        body = server.get(path).body.decode()
        assert "http://" not in body and "https://" not in body

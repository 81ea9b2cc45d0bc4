"""Manifests of the examples, and what ``--patch`` writes, held against the published schemas of their kinds."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import published_schemas
import pytest
import yaml

from autoconf.errors import BadInput
from autoconf.jobs.importers.patch import Layout, patched

ROOT = Path(__file__).parents[2]
FILES = [
    "examples/pytorchjob.yaml",
    "examples/webhook/trainjob.yaml",
    "examples/webhook/jobset.yaml",
    "tests/data/job_files/pytorchjob.yaml",
    "tests/data/job_files/trainjob.yaml",
]
POD = {"containers": [{"name": "a", "image": "b", "resources": {"limits": {"nvidia.com/gpu": 4}}}]}
OTHERS = {
    "Job": {
        "apiVersion": "batch/v1",
        "spec": {"completionMode": "Indexed", "parallelism": 2, "completions": 2, "template": {"spec": POD}},
    },
    "RayJob": {
        "apiVersion": "ray.io/v1",
        "spec": {
            "entrypoint": "python train.py",
            "rayClusterSpec": {
                "headGroupSpec": {"template": {"spec": {"containers": [{"name": "head", "image": "b"}]}}},
                "workerGroupSpecs": [
                    {"groupName": "gpus", "replicas": 2, "minReplicas": 2, "maxReplicas": 2, "template": {"spec": POD}}
                ],
            },
        },
    },
    "LeaderWorkerSet": {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "workerTemplate": {"spec": POD}}},
    },
}
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (published_schemas.CLIENTS or published_schemas.FOLDER), reason="needs the clients of Kubeflow, or a folder"
    ),
]


def texts() -> dict[str, str]:
    """The manifests by file or kind."""
    others = {kind: {"kind": kind, "metadata": {"name": "tune"}, **job} for kind, job in OTHERS.items()}
    return {
        **{file: (ROOT / file).read_text(encoding="utf-8") for file in FILES},
        **{kind: yaml.safe_dump(job, sort_keys=False) for kind, job in others.items()},
    }


@pytest.mark.parametrize("name", texts())
def test_a_manifest_is_valid_before_and_after_its_patch(name: str) -> None:
    text = texts()[name]
    assert published_schemas.problems(yaml.safe_load(text)) == []
    before, *after = (yaml.safe_load(one) for one in (text, *written(text)))
    assert after and all(job != before for job in after)
    assert [published_schemas.problems(job) for job in after] == [[]] * len(after)


def written(text: str) -> Iterator[str]:
    """What ``--patch`` writes for other layouts, where the launcher allows them."""
    for layout in (Layout(2, 1), Layout(8, 3)):
        with suppress(BadInput):
            yield patched([("job.yaml", text)], layout).text


def test_the_deployment_and_the_registration_of_the_webhook_are_valid() -> None:
    text = (ROOT / "examples" / "webhook" / "deploy.yaml").read_text(encoding="utf-8")
    documents = yaml.safe_load_all(text.replace("caBundle: CA", "caBundle: Q0E="))  # its comment says to replace it
    assert [published_schemas.problems(document) for document in documents] == [[], [], []]


@pytest.mark.parametrize("name", ["examples/pytorchjob.yaml", "examples/webhook/trainjob.yaml", "Job", "RayJob"])
def test_the_schemas_refuse_a_wrong_manifest(name: str) -> None:
    """The check itself: a number of GPUs that is a list, and a field that does not exist."""
    manifest = yaml.safe_load(texts()[name])
    for change in ({"limits": {"nvidia.com/gpu": [8]}}, {"limit": {"nvidia.com/gpu": 8}}):
        wrong = copy.deepcopy(manifest)
        place = next(resources(wrong))
        place.clear()
        place.update(change)
        assert published_schemas.problems(wrong)


@pytest.mark.parametrize(("name", "change", "named"), [
    ("examples/pytorchjob.yaml", lambda job: job["spec"].update(replicas=2), "/spec/replicas: no such field"),
    ("examples/pytorchjob.yaml", lambda job: job["spec"].update(nprocPerNode=8), "/spec/nprocPerNode: must be str"),
    ("examples/pytorchjob.yaml", lambda job: job["spec"].pop("pytorchReplicaSpecs"), "pytorch_replica_specs"),
    ("examples/webhook/trainjob.yaml", lambda job: job["spec"]["trainer"].update(numNodes="two"), "num"),
    ("examples/webhook/jobset.yaml", lambda job: job["spec"].update(jobs=[]), "/spec/jobs: no such field"),
])  # fmt: skip
def test_the_schema_of_a_kind_refuses_a_field_of_its_own(name, change, named) -> None:
    wrong = yaml.safe_load(texts()[name])
    change(wrong)
    assert any(named in problem for problem in published_schemas.problems(wrong)), published_schemas.problems(wrong)


def resources(value: object) -> Iterator[dict[str, object]]:
    """The resources of containers and nodes in a manifest."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("resources", "resourcesPerNode"):
                yield inner
            yield from resources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from resources(inner)

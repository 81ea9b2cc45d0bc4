"""``--patch`` of Kubernetes jobs by kind: counts alone change, on fixed nodes only the number of nodes."""

from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from autoconf.cli.main import app
from autoconf.errors import BadInput
from autoconf.jobs.importers.patch import Layout, OtherCounts, patched
from autoconf.jobs.importers.reader import read_job

JOB = {"model_name": "llama-7b", "method": "lora", "tokens_per_sample": 512, "per_device_train_batch_size": 1}
GPUS = "resources: {limits: {nvidia.com/gpu: 8}, requests: {nvidia.com/gpu: 8, cpu: 8}}"
COMMAND = "command: [sh, -c, 'mine --nproc_per_node=8 --nnodes=2 --lr 8']"
JOBSET = f"""# eight GPUs: 8
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {{name: "8"}}
spec:
  failurePolicy: {{maxRestarts: 8}}
  replicatedJobs:
    - name: driver
      template: {{spec: {{template: {{spec: {{containers: [{{name: a, image: b}}]}}}}}}}}
    - name: workers
      replicas: 1
      template:
        spec:
          parallelism: 2
          completions: 2
          backoffLimit: 8
          template:
            spec:
              containers:
                - name: a
                  {COMMAND}
                  {GPUS}
"""
RAYJOB = f"""apiVersion: ray.io/v1
kind: RayJob
spec:
  entrypoint: mine --workers 8
  rayClusterSpec:
    headGroupSpec: {{template: {{spec: {{containers: [{{name: h, resources: {{limits: {{cpu: 8}}}}}}]}}}}}}
    workerGroupSpecs:
      - groupName: gpus
        replicas: 2
        minReplicas: 2
        maxReplicas: 2
        rayStartParams: {{num-gpus: "8"}}
        template: {{spec: {{containers: [{{name: w, {GPUS}}}]}}}}
"""
LEADER = f"""apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
spec:
  replicas: 1
  leaderWorkerTemplate:
    size: 2
    leaderTemplate: {{spec: {{containers: [{{name: l, {COMMAND}, {GPUS}}}]}}}}
    workerTemplate: {{spec: {{containers: [{{name: w, {COMMAND}, {GPUS}}}]}}}}
"""
INDEXED = f"""apiVersion: batch/v1
kind: Job
spec:
  completionMode: Indexed
  parallelism: 2
  completions: 2
  template: {{spec: {{containers: [{{name: w, {COMMAND}, {GPUS}}}]}}}}
"""
TRAINJOB = """apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata: {name: t}
spec:
  runtimeRef: {name: torch-distributed}
  trainer:
    numNodes: 4
    numProcPerNode: 2
    command: [torchrun, sft.py, --model_name_or_path, Qwen/Qwen2.5-7B, --max_length, "8192"]
    args: [--per_device_train_batch_size, "8", --fsdp, full_shard]
    resourcesPerNode: {limits: {nvidia.com/gpu: 2}}
"""
RUNTIME = """apiVersion: trainer.kubeflow.org/v1alpha1
kind: ClusterTrainingRuntime
metadata: {name: torch-distributed}
spec:
  mlPolicy: {numNodes: 3, torch: {numProcPerNode: auto}}
  template:
    spec:
      replicatedJobs:
        - name: node
          template: {spec: {template: {spec: {containers: [{name: node, resources: {limits: {nvidia.com/gpu: 2}}}]}}}}
"""
KINDS = {"JobSet": JOBSET, "RayJob": RAYJOB, "LeaderWorkerSet": LEADER, "Job": INDEXED}
H100 = "--gpu-model=NVIDIA-H100-80GB-HBM3"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["recommend", *map(str, arguments)])


@pytest.mark.parametrize("layout", [Layout(8, 1), Layout(4, 2), Layout(1, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_patched_manifest_has_the_layout_and_nothing_else_changes(kind: str, layout: Layout, tmp_path: Path) -> None:
    text = KINDS[kind]
    after = patched([("job.yaml", text)], layout)
    assert after.gpus_before == 16
    (tmp_path / "job.yaml").write_text(after.text)
    counts = read_job([str(tmp_path / "job.yaml")], JOB).counted
    assert (counts.per_worker, counts.workers) == layout
    back = patched([("job.yaml", after.text)], Layout(8, 2)).text
    assert back == text  # comments, quotes and other eights are as they were
    assert len(list(yaml.safe_load_all(after.text))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_options_give_the_job_of_a_container_that_is_not_understood(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(KINDS[kind])
    options = [f"--{field.replace('_', '-')}={value}" for field, value in JOB.items()]
    result = run("--job", path, *options, H100, "--patch")
    assert result.exit_code == 0 and "16 -> 1 GPUs" in result.stderr
    assert result.stdout == patched([("job.yaml", KINDS[kind])], Layout(1, 1)).text
    refused = run("--job", path, H100, "--patch")
    assert (refused.exit_code, refused.stdout) == (2, "") and "give --model-name" in refused.stderr


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("JobSet", "completions: 2", "completions: 3", "must be parallelism"),
        ("JobSet", "replicas: 1", "replicas: 2", "several jobs of several pods"),
        ("JobSet", "containers: [{name: a, image: b}]", f"containers: [{{name: a, {GPUS}}}]", "2 groups of pods have"),
        ("RayJob", "limits: {cpu: 8}", "limits: {nvidia.com/gpu: 1}", "headGroupSpec: has nvidia.com/gpu"),
        ("RayJob", "  rayClusterSpec:", "  rayClusterSpec:\n    enableInTreeAutoscaling: true", "while the job runs"),
        ("LeaderWorkerSet", "replicas: 1", "replicas: 3", "each group trains by itself"),
        (
            "LeaderWorkerSet",
            f"containers: [{{name: l, {COMMAND}, {GPUS}}}]",
            "containers: [{name: l}]",
            "has no nvidia",
        ),
        ("Job", "completionMode: Indexed", "completionMode: NonIndexed", "not Indexed is not changed"),
        ("Job", "parallelism: 2", "parallelism: &n 2\n  backoffLimit: *n", "backoffLimit would change with the counts"),
    ],
)
def test_what_cannot_be_changed_alone_is_refused(kind: str, old: str, new: str, message: str) -> None:
    text = KINDS[kind].replace(old, new, 1)
    assert text != KINDS[kind]
    with pytest.raises(BadInput, match=message):
        patched([("a", text)], Layout(4, 3))


def test_nodes_only_changes_the_number_of_nodes_alone(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(TRAINJOB)
    result = run("--job", path, H100, "--patch", "--nodes-only")
    assert result.exit_code == 0, result.stderr
    pairs = zip(TRAINJOB.splitlines(), result.stdout.splitlines(), strict=True)
    assert [new.strip() for old, new in pairs if old != new] == ["numNodes: 2"]
    (tmp_path / "small.yaml").write_text(result.stdout)
    assert CliRunner().invoke(app, ["check", str(tmp_path / "small.yaml"), H100]).exit_code == 0
    path.write_text(TRAINJOB.replace("[torchrun,", "[torchrun, --nproc_per_node=2, --nnodes=4,"))
    result = run("--job", path, H100, "--patch", "--nodes-only")
    assert (result.exit_code, result.stdout) == (3, "") and "--nodes-only changes only counts of nodes" in result.stderr


def test_nodes_only_without_an_answer_ends_with_3(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(TRAINJOB)
    result = run("--job", path, "--gpu-model=Tesla-T4", "--patch", "--nodes-only", "--max-gpus=2")
    assert (result.exit_code, result.stdout) == (3, "") and "no recommendation" in result.stderr
    assert run("--job", path, H100, "--nodes-only").exit_code == 2


def test_what_a_trainjob_does_not_set_comes_from_its_runtime(tmp_path: Path) -> None:
    job, runtime = tmp_path / "job.yaml", tmp_path / "runtime.yaml"
    job.write_text(TRAINJOB.replace("    resourcesPerNode: {limits: {nvidia.com/gpu: 2}}\n", ""))
    runtime.write_text(RUNTIME)
    alone = read_job([str(job)], JOB).counted
    assert alone.gpus is None and "give the runtime by --job" in alone.problem
    counts = read_job([str(job), str(runtime)], JOB).counted
    assert (counts.gpus, counts.workers) == (8, 4)
    assert any(count.place.file == str(runtime) for count in counts.sources)
    result = run("--job", job, "--job", runtime, H100, "--patch", "--nodes-only")
    assert result.exit_code == 0 and "numNodes: 2" in result.stdout
    job.write_text(job.read_text().replace("    numNodes: 4\n", ""))
    runtime.write_text(RUNTIME.replace("numNodes: 3", "numNodes: 2"))
    unchanged = run("--job", job, "--job", runtime, H100, "--patch", "--nodes-only")
    assert (unchanged.exit_code, unchanged.stdout) == (0, job.read_text())
    runtime.write_text(RUNTIME.replace("name: torch-distributed", "name: other"))
    problem = read_job([str(job), str(runtime)], JOB).counted.problem
    assert "the runtime torch-distributed is not among those that --job gives" in problem


def test_a_launcher_that_counts_is_no_change_of_nodes_alone() -> None:
    launcher = "command: [accelerate, launch, --num_processes=8, --num_machines=4, sft.py, "
    job = TRAINJOB.replace("command: [torchrun, sft.py, ", launcher)
    job = job.replace("    resourcesPerNode: {limits: {nvidia.com/gpu: 2}}\n", "")
    changes = "--num_processes=8 would have to become --num_processes=4; --nodes-only changes only counts of nodes"
    with pytest.raises(OtherCounts, match=changes):
        patched([("job.yaml", job), ("runtime.yaml", RUNTIME)], Layout(2, 2), nodes_only=True)
    after = patched([("job.yaml", job), ("runtime.yaml", RUNTIME)], Layout(2, 2)).text
    assert "--num_processes=4, --num_machines=2" in after and "numNodes: 2" in after


@pytest.mark.parametrize(
    ("command", "changed"),
    [
        ('[trl, sft, --num_processes, "8", --num_machines, "4", --model_name_or_path, m]',
         '[trl, sft, --num_processes, "2", --num_machines, "1", --model_name_or_path, m]'),
        ("[accelerate, launch, --num_processes=8, --num_machines=$(PET_NNODES), sft.py]",
         "[accelerate, launch, --num_processes=2, --num_machines=$(PET_NNODES), sft.py]"),
        ("[torchrun, --nnodes, $(PET_NNODES), --nproc_per_node=$(PET_NPROC_PER_NODE), sft.py]",
         "[torchrun, --nnodes, $(PET_NNODES), --nproc_per_node=$(PET_NPROC_PER_NODE), sft.py]"),
    ],
)  # fmt: skip
def test_launchers_in_a_trainjob_change_with_its_nodes(command: str, changed: str) -> None:
    text = "\n".join(
        f"    command: {command}" if line.strip().startswith("command:") else line for line in TRAINJOB.splitlines()
    )
    after = patched([("a", text)], Layout(2, 1)).text
    assert f"    command: {changed}" in after.splitlines() and "    numNodes: 1" in after.splitlines()

"""Plan the changes of the counts of Kubernetes jobs, by kind."""

from __future__ import annotations

from autoconf.jobs.importers.documents import Path
from autoconf.jobs.importers.gpu_counts import Plan, leaves
from autoconf.jobs.importers.pods import GPU

NODE_COUNTS = (
    "numNodes",
    "num_nodes",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "parallelism",
    "completions",
    "size",
    "minAvailable",
)


def plan_manifest(plan: Plan, job: Path) -> None:
    """Plan the changes of a Kubernetes job.

    Args:
        plan: The plan for its file.
        job: The path of the job in the file.

    Raises:
        BadInput: A count cannot be changed, or is missing.
    """
    spec = (*job, "spec")
    match plan.get((*job, "kind")):
        case "TrainJob":
            _trainjob(plan, (*spec, "trainer"))
        case "PyTorchJob":
            _pytorchjob(plan, spec)
        case "Job":
            _job(plan, spec)
        case "JobSet":
            _jobset(plan, (*spec, "replicatedJobs"))
        case "RayJob":
            _rayjob(plan, spec)
        case "LeaderWorkerSet":
            _leader_and_workers(plan, spec)
    for path, _ in leaves(plan.get(job), job):
        if path[-1] == GPU and path not in plan.changes and not _unused(plan, path):
            plan.refuse(path, "also counts GPUs, which --patch does not change")


def _unused(plan: Plan, path: Path) -> bool:
    return str(plan.get(path)) == "0"


def _trainjob(plan: Plan, trainer: Path) -> None:
    plan.sets_variables = True
    nodes, resources = (*trainer, "numNodes"), (*trainer, "resourcesPerNode")
    if plan.get(nodes) is None and plan.nodes_of_runtime == plan.layout.workers:
        before = plan.nodes_of_runtime
    else:
        plan.set(nodes, plan.layout.workers)
        before = plan.number(nodes)
    plan.processes((*trainer, "numProcPerNode"))
    if plan.get(resources) is None and plan.gpus_of_runtime is not None:
        each = plan.gpus_of_runtime
        if each != plan.layout.gpus:
            plan.refuse(
                resources, f"is missing; the runtime has {each} GPUs per node, and the answer {plan.layout.gpus}"
            )
        plan.command(trainer)
    else:
        each = plan.container(trainer, resources)
    plan.gpus_before = before * each


def _pytorchjob(plan: Plan, spec: Path) -> None:
    if plan.get((*spec, "elasticPolicy")) is not None:
        plan.refuse((*spec, "elasticPolicy"), "the number of workers changes while the job runs")
    plan.sets_variables = True
    plan.processes((*spec, "nprocPerNode"))
    pods = (*spec, "runPolicy", "schedulingPolicy", "minAvailable")
    if plan.get(pods) is not None:
        plan.set(pods, plan.layout.workers)
    roles = (*spec, "pytorchReplicaSpecs")
    master = plan.get((*roles, "Master")) is not None
    for role, count in (("Master", int(master)), ("Worker", plan.layout.workers - master)):
        path = (*roles, role)
        if plan.get(path) is None:
            if count:
                plan.refuse(path, f"is missing, and {plan.layout.workers} workers need it")
            continue
        plan.gpus_before += _replicas(plan, (*path, "replicas"), count) * plan.pod((*path, "template", "spec"))


def _replicas(plan: Plan, path: Path, count: int) -> int:
    """Plan a number of pods that is 1 where it is missing; return the number before."""
    plan.set_unless_default(path, count)
    return 1 if plan.get(path) is None else plan.number(path)


def _job(plan: Plan, spec: Path) -> None:
    parallelism, completions = (*spec, "parallelism"), (*spec, "completions")
    pods = 1
    indexed = plan.get((*spec, "completionMode")) == "Indexed"
    if indexed and plan.get(parallelism) is not None and plan.get(completions) is not None:
        if plan.get(parallelism) != plan.get(completions):
            plan.refuse(completions, "must be parallelism, for all pods of a training run at once")
        pods = plan.number(parallelism)
        plan.set(parallelism, plan.layout.workers)
        plan.set(completions, plan.layout.workers)
    else:
        for path in (parallelism, completions):
            if plan.get(path) not in (None, 1):
                plan.refuse(path, "a Job of several pods that is not Indexed is not changed")
        if plan.layout.workers > 1:
            problem = f"a Job has one pod, and the answer has {plan.layout.workers} workers; lower --max-gpus"
            plan.refuse(spec, problem)
    plan.gpus_before = pods * plan.pod((*spec, "template", "spec"))


def _with_gpus(plan: Plan, template: Path) -> bool:
    return any(path[-1] == GPU and str(value) != "0" for path, value in leaves(plan.get(template), template))


def _one(plan: Plan, groups: Path, templates: list[Path]) -> Path:
    """The one template of several that has GPUs."""
    found = [template for template in templates if _with_gpus(plan, template)]
    if len(found) != 1:
        plan.refuse(groups, f"{len(found)} groups of pods have {GPU}; one must have")
    return found[0]


def _count_of(plan: Plan, path: Path) -> int:
    value = plan.get(path)
    return len(value) if isinstance(value, list) else 0


def _jobset(plan: Plan, jobs: Path) -> None:
    inner = ("template", "spec", "template", "spec")
    pod = _one(plan, jobs, [(*jobs, i, *inner) for i in range(_count_of(plan, jobs))])
    job = pod[: -len(inner)]
    replicas, spec = (*job, "replicas"), (*job, "template", "spec")
    parallelism, completions = (*spec, "parallelism"), (*spec, "completions")
    before = 1
    if plan.get(replicas) in (None, 1) and plan.get(parallelism) is not None:
        if plan.get(completions) != plan.get(parallelism):
            plan.refuse(completions, "must be parallelism, for all pods of a training run at once")
        before = _replicas(plan, parallelism, plan.layout.workers)
        plan.set(completions, plan.layout.workers)
    else:
        for path in (parallelism, completions):
            if plan.get(path) not in (None, 1):
                plan.refuse(path, "several jobs of several pods each are not changed")
        before = _replicas(plan, replicas, plan.layout.workers)
    plan.gpus_before = before * plan.pod(pod)


def _rayjob(plan: Plan, spec: Path) -> None:
    cluster = (*spec, "rayClusterSpec")
    groups = (*cluster, "workerGroupSpecs")
    if _with_gpus(plan, (*cluster, "headGroupSpec")):
        plan.refuse((*cluster, "headGroupSpec"), f"has {GPU}; --patch changes one group of workers alone")
    if plan.get((*cluster, "enableInTreeAutoscaling")):
        plan.refuse((*cluster, "enableInTreeAutoscaling"), "the number of workers changes while the job runs")
    template = _one(plan, groups, [(*groups, i, "template", "spec") for i in range(_count_of(plan, groups))])
    group = template[:-2]
    for name in ("minReplicas", "maxReplicas"):
        if plan.get((*group, name)) is not None:
            plan.set((*group, name), plan.layout.workers)
    params = (*group, "rayStartParams", "num-gpus")
    if plan.get(params) is not None:
        plan.set(params, plan.layout.gpus)
    entrypoint = plan.get((*spec, "entrypoint"))
    if isinstance(entrypoint, str):
        plan.changes[(*spec, "entrypoint")] = plan.new_text(entrypoint, (*spec, "entrypoint"))
    plan.gpus_before = _replicas(plan, (*group, "replicas"), plan.layout.workers) * plan.pod(template)
    plan.notes.append(
        f"{plan.where((*spec, 'entrypoint'))}: a script that starts its workers itself, as with Ray Train's "
        f"ScalingConfig, needs num_workers={plan.layout.gpus * plan.layout.workers}"
    )


def _leader_and_workers(plan: Plan, spec: Path) -> None:
    if plan.get((*spec, "replicas")) not in (None, 1):
        plan.refuse((*spec, "replicas"), "each group trains by itself; --patch changes one group")
    both = (*spec, "leaderWorkerTemplate")
    size = _replicas(plan, (*both, "size"), plan.layout.workers)
    worker, leader = (*both, "workerTemplate", "spec"), (*both, "leaderTemplate", "spec")
    if plan.get((*both, "leaderTemplate")) is None:
        plan.gpus_before = size * plan.pod(worker)
        return
    if not _with_gpus(plan, leader):
        plan.refuse(leader, f"has no {GPU}; --patch changes groups whose leader trains as well")
    plan.gpus_before = plan.pod(leader) + (size - 1) * plan.pod(worker)

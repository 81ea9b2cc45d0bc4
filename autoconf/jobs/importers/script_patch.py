"""Change the GPU counts of a shell script: of its scheduler's requests and of its launcher, and nothing else.

A count is edited where it is written: in a directive, an option, or the assignment of a variable that the option uses.
The new text is followed again, and returned only if it has exactly the layout and otherwise the same settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from typing import Any, NamedTuple, NoReturn

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.gpu_counts import COUNTING_VARIABLE, Layout
from autoconf.jobs.importers.gpus_of_job import COUNTING, VISIBLE, Counted, counted
from autoconf.jobs.importers.key_table import Place, Setting
from autoconf.jobs.importers.launchers import Launch, launch_in_script
from autoconf.jobs.importers.named_files import Sources, with_named_files
from autoconf.jobs.importers.schedulers import (
    GPUS,
    LSF,
    NODES,
    PER_NODE,
    PER_TASK,
    TASKS,
    TASKS_PER_NODE,
    Request,
    allocated,
    environment,
    of_srun,
    requested,
)
from autoconf.jobs.importers.words import cleaned

_ASSIGNMENT = r"^[ \t]*(?:export[ \t]+|declare[ \t]+(?:-\w+[ \t]+)?|readonly[ \t]+)?{name}=(?P<value>[^\n]*)"
_ANYWHERE = r"^(?:[ \t]*|(?![ \t]*#)[^\n]*[ \t;&(]){name}=(?P<value>[^\n]*)"  # also behind export, or before a command
_NUMBER = re.compile(r"[\"']?(?:\$\{\w+:?[-=])?(\d+)\}?[\"']?(?=[\s;&|]|$)")
_MOST_TRIES = 243
_NODES_IN_NAME = re.compile(r"(?i)n_?nodes|num_nodes|machines|hosts")


class Edit(NamedTuple):
    """A number in a text, and what it may become."""

    start: int
    end: int
    values: tuple[str, ...]


class ScriptPatch(NamedTuple):
    """A script with other counts.

    Attributes:
        text: Its text.
        gpus_before: The GPUs that it counted before.
    """

    text: str
    gpus_before: int


class Reading(NamedTuple):
    """What a script starts, requests and counts."""

    launch: Launch
    requests: list[Request]
    steps: list[Request]  # options of srun
    counted: Counted


# The options of what starts a launcher on each node: of Open MPI, MPICH, and jsrun with its GPUs of each set.
_STARTERS = re.compile(
    r"\b(mpirun|mpiexec|jsrun)\b((?:\\\n|[^\n;|&])*?)(?=\b(?:torchrun|accelerate|deepspeed|python\d?)\b)"
)
_OF_STARTERS = re.compile(r"(?<=\s)-{1,2}(n|np|g)[ =]+(\d+)(?=\s|$)")
Reader = Callable[[str, bool], Reading | None]


def patch_script(text: str, file: str, layout: Layout, read: Reader | None = None) -> ScriptPatch:
    """Change the counts of a script.

    Args:
        text: Its text.
        file: Its name.
        layout: The counts.
        read: How the text is read, before the change and after it; by default as a script of its own.

    Raises:
        BadInput: The script starts no training, its counts are not certain, or one of them cannot be changed alone.

    >>> script = "#SBATCH --gres=gpu:8\\nN=8\\ntorchrun --nproc_per_node=$N sft.py --model_name_or_path m\\n"
    >>> print(patch_script(script, "a.sbatch", Layout(2, 1)).text, end="")
    #SBATCH --gres=gpu:2
    N=2
    torchrun --nproc_per_node=$N sft.py --model_name_or_path m
    """
    return _Script(text, file, layout, read or (lambda text, is_changed: _read(text, file))).patched()


def _read(text: str, file: str) -> Reading | None:
    requests = list(requested(text, file))
    launch = launch_in_script(cleaned(text), partial(Place, file, None), environment(requests), 1)
    if launch is None:
        return None
    return Reading(launch, requests, list(of_srun(text, file)), counted(launch.settings, requests, []))


class _Script:
    def __init__(self, text: str, file: str, layout: Layout, read: Reader) -> None:
        self._text, self._file, self._layout, self._read = text, file, layout, read
        found = read(text, False)
        if found is None:
            raise BadInput(f"{file}: no command starts a training, so --patch changes nothing")
        self._before = found
        counts = found.counted
        if counts.gpus is None or counts.workers is None or counts.per_worker is None:
            raise BadInput(f"{file}: --patch needs certain counts: {counts.problem}")
        self._old = Layout(counts.per_worker, counts.workers)
        programs = [setting.value for setting in found.launch.settings if setting.dialect == "launcher"]
        self._spawns = programs[:1] not in (["python"], ["tasks"])  # one task on each node starts its processes

    def _refuse(self, place: Place | str, problem: str) -> NoReturn:
        raise BadInput(f"{place}: {problem}")

    def patched(self) -> ScriptPatch:
        """Find the edits that give the layout."""
        self._check_possible()
        edits = [*self._of_requests(), *self._of_launcher()]
        unique = {edit.start: edit for edit in edits}
        self._check_unused({edit.start for edit in edits})
        ordered = sorted(unique.values(), reverse=True)
        problem = "the counts do not give the layout"
        for values in islice(product(*(edit.values for edit in ordered)), _MOST_TRIES):
            text = self._text
            for edit, value in zip(ordered, values, strict=True):
                text = text[: edit.start] + value + text[edit.end :]
            problem = self._problem(text)
            if not problem:
                return ScriptPatch(text, self._old.gpus * self._old.workers)
        self._refuse(self._file, f"{problem}; --patch changes counts that are written as numbers")

    def _check_starters(self) -> None:
        """Refuse numbers of processes or GPUs of MPI's launchers and LSF's jsrun, which would have to change."""
        for found in _STARTERS.finditer(self._text):
            options = found[2].replace("\\\n", " ")
            for option, number in _OF_STARTERS.findall(options):
                tasks = self._layout.workers * (1 if self._spawns else self._layout.gpus)
                kept = self._layout.gpus if option == "g" else tasks
                if (option != "g" or found[1] == "jsrun") and int(number) != kept:
                    self._refuse(
                        self._file, f"{found[1]} -{option} {number} would have to be {kept}; change it by hand"
                    )

    def _check_possible(self) -> None:
        self._check_starters()
        if self._layout.workers > 1 and self._old.workers == 1:
            self._refuse(
                self._file,
                f"the script is for one node, and the answer has {self._layout.workers} workers; lower --max-gpus, or "
                "give --gpus-per-worker",
            )
        for setting in self._before.launch.settings:
            if setting.dialect != "accelerate":
                continue
            if setting.key == "multi_gpu" and self._layout == Layout(1, 1) and setting.value is not False:
                self._refuse(setting.place, "accelerate refuses --multi_gpu on one GPU; take it out")
            if setting.key in ("gpu_ids", "include", "exclude", "hostfile") and setting.value != "all":
                self._refuse(setting.place, "counts GPUs as well, and --patch does not change it")

        launch = self._before.launch
        naming = [setting for setting in launch.settings if setting.key in ("config_file", "accelerate_config")]
        for setting in with_named_files(naming, Sources(self._file, launch.files, (), (), [], True)):
            kept = setting.key == "num_machines" and str(setting.value) == str(self._layout.workers)
            if setting.key in COUNTING and setting.value is not None and not kept:
                self._refuse(setting.place, "counts GPUs as well; take it out, since the script counts them")

    # --- the scheduler ------------------------------------------------------------------------------------------------

    def _of_requests(self) -> Iterator[Edit]:
        for request in dict.fromkeys([*self._before.requests, *self._before.steps]):
            if not request.number.isdecimal():
                if "$" in request.number:
                    continue
                self._refuse(request.place, f"{shortened(request.number)!r}: --patch changes only a number")
            new = str(self._requested(request))
            if request.start is not None:
                yield Edit(request.start, request.start + len(request.number), (new,))
            elif new != request.number:
                self._refuse(request.place, "has no number to change; write it out")

    def _requested(self, request: Request) -> int:
        old, layout, before = int(request.number), self._layout, self._old
        total = layout.gpus * layout.workers
        tasks = (1, 1) if self._spawns else (before.gpus, layout.gpus)  # on each node, before and after
        expected = {
            NODES: (before.workers, layout.workers),
            PER_NODE: (before.gpus, layout.gpus),
            GPUS: (before.gpus * before.workers, total),
            TASKS_PER_NODE: tasks,
            TASKS: (tasks[0] * before.workers, tasks[1] * layout.workers),
            PER_TASK: (before.gpus // tasks[0], layout.gpus // tasks[1]),
        }
        if request.scheduler == LSF:
            expected |= self._slots(request, old)
        was, new = expected[request.what]
        if old != was:
            self._refuse(request.place, f"{old} {request.what}, where {was} are expected; --patch does not change it")
        return new

    def _slots(self, request: Request, old: int) -> dict[str, tuple[int, int]]:
        """LSF counts slots, which are cores; unless GPUs are of tasks, each node has as many as before."""
        if not self._spawns or any(each.what == PER_TASK for each in self._before.requests):
            return {}
        each = old if request.what == TASKS_PER_NODE else max(old // self._old.workers, 1)
        return {TASKS_PER_NODE: (old, old), TASKS: (each * self._old.workers, each * self._layout.workers)}

    # --- the launcher -------------------------------------------------------------------------------------------------

    def _of_launcher(self) -> Iterator[Edit]:
        for setting in _counts(self._before.launch):
            if setting.key == VISIBLE:
                yield self._visible(setting)
            elif setting.dialect == "environment":
                yield from self._of_variables([setting.key], set())
            else:
                yield from self._of_option(setting)

    def _of_option(self, setting: Setting) -> Iterator[Edit]:
        new = self._layout.of_option(setting.key)
        name = re.escape(setting.place.key.rpartition(" ")[2]).replace("_", "[-_]").replace(r"\-", "[-_]")
        found = [
            match
            for match in re.finditer(
                rf"(?<![\w-]){name}(?:=|[ \t]+|[ \t]*\\\r?\n[ \t]*)(?P<value>\"[^\"\n]*\"|[^\s\"]+)", self._text
            )
            if not self._line_of(match.start()).lstrip().startswith("#")
        ]
        if not found or new is None:
            return  # its value comes with a variable of Slurm, which the text after the change confirms
        literals = [match for match in found if match["value"].strip("\"'\\").isdecimal()]
        if len(found) > 1 and literals:
            on_line = [match for match in found if self._text.count("\n", 0, match.start()) + 1 == setting.place.line]
            if len(on_line) != 1:
                self._refuse(setting.place, f"is written {len(found)} times; --patch changes one place only")
            found = on_line
        for match in found:
            number = re.fullmatch(r"[\"'\\]*(\d+)[\"'\\]*", match["value"])
            if number:
                start = match.start("value") + number.start(1)
                yield Edit(start, start + len(number[1]), (str(new),))
            else:
                yield from self._of_variables(re.findall(r"[A-Za-z_]\w*", self._expression(match)), set())

    def _expression(self, match: re.Match[str]) -> str:
        """The value of an option, with all of an arithmetic expression that has spaces."""
        start = match.start("value")
        if self._text.startswith(("$((", '"$(('), start):
            end = self._text.find("))", start)
            return self._text[start : end + 2]
        return match["value"]

    def _of_variables(self, names: Sequence[str], seen: set[str]) -> Iterator[Edit]:
        for name in names:
            if name in seen:
                continue
            seen.add(name)
            for found in re.finditer(_ANYWHERE.format(name=re.escape(name)), self._text, re.MULTILINE):
                number = _NUMBER.match(found["value"])
                if number:
                    start = found.start("value") + number.start(1)
                    yield Edit(start, start + len(number[1]), self._candidates(name, int(number[1])))
                else:
                    value = re.split(r"\s#", found["value"])[0]
                    yield from self._of_variables(re.findall(r"[A-Za-z_]\w*", value), seen)

    def _candidates(self, name: str, old: int) -> tuple[str, ...]:
        """The new values of a variable, the likeliest first."""
        total = (self._old.gpus * self._old.workers, self._layout.gpus * self._layout.workers)
        nodes, each = (self._old.workers, self._layout.workers), (self._old.gpus, self._layout.gpus)
        order = [nodes, each, total] if _NODES_IN_NAME.search(name) else [each, total, nodes]
        return tuple(dict.fromkeys([str(new) for was, new in order if was == old] or [str(old)]))

    def _visible(self, setting: Setting) -> Edit:
        found = list(re.finditer(rf"(?m)^(?!\s*#)[^\n#]*\b{VISIBLE}=[\"']?(?P<ids>\d[\d,]*)", self._text))
        ids = [] if len(found) != 1 else found[0]["ids"].split(",")
        if ids[: self._layout.gpus] != [str(i) for i in range(self._layout.gpus)][: len(ids)]:
            self._refuse(setting.place, "--patch changes only GPUs that are counted from 0, in one place")
        (match,) = found
        return Edit(match.start("ids"), match.end("ids"), (",".join(map(str, range(self._layout.gpus))),))

    def _line_of(self, index: int) -> str:
        start = self._text.rfind("\n", 0, index) + 1
        end = self._text.find("\n", index)
        return self._text[start : end if end >= 0 else len(self._text)]

    def _check_unused(self, edited: set[int]) -> None:
        """Refuse a variable that counts GPUs and that neither the launcher nor the scheduler uses."""
        for found in re.finditer(_ASSIGNMENT.format(name=r"(?P<name>\w+)"), self._text, re.MULTILINE):
            number = _NUMBER.match(found["value"])
            if not number or not COUNTING_VARIABLE.fullmatch(found["name"]):
                continue
            start = found.start("value") + number.start(1)
            if start not in edited and number[1] not in self._candidates(found["name"], int(number[1])):
                line = self._text.count("\n", 0, start) + 1
                self._refuse(
                    Place(self._file, line, found["name"]), "counts GPUs, and not for the launcher; take it out"
                )

    # --- the result ---------------------------------------------------------------------------------------------------

    def _problem(self, text: str) -> str:
        """Why a changed text does not have the layout, and otherwise the same settings; empty if it does."""
        try:
            after = self._read(text, True)
        except BadInput as error:
            return f"the changed text cannot be read: {error}"
        total = self._layout.gpus * self._layout.workers
        if after is None or after.counted[:2] != (total, self._layout.workers):
            found = "no training" if after is None else after.counted.problem if after.counted.gpus is None else ""
            return f"the changed text would not give {total} GPUs on {self._layout.workers} nodes: {found}".rstrip(": ")
        for requests in (after.requests, after.steps):
            allocation = allocated(requests)
            wanted = zip(allocation[:3], (self._layout.workers, self._layout.gpus, total), strict=True)
            if any(count is not None and count != want for count, want in wanted):
                return f"the changed text would request {allocation.gpus} GPUs on {allocation.nodes} nodes"
        before = _others(self._before.launch)
        changed = [key for key, value in _others(after.launch).items() if before.get(key) != value]
        if changed or len(before) != len(_others(after.launch)):
            return f"{changed[0][1] if changed else 'a setting'} would change with the counts"
        return ""


def _counts(launch: Launch) -> list[Setting]:
    return [s for s in launch.settings if s.dialect in ("accelerate", "environment") and s.key in COUNTING]


def _others(launch: Launch) -> dict[Any, Any]:
    """The settings of a launch that do not count."""
    counts = {id(setting) for setting in _counts(launch)}
    return {
        (s.dialect, s.key): (repr(s.value), launch.script, launch.framework)
        for s in launch.settings
        if id(s) not in counts
    }

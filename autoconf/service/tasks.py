"""What a worker process does: answer tasks, one after another, without opening a file that a request names."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

from autoconf.errors import AutoConfError
from autoconf.files import only_given
from autoconf.planner.forget import forget_beyond
from autoconf.predictor import registry
from autoconf.predictor.user_versions import VARIABLE, ModelsFolder, NoModelsFolder
from autoconf.service import queries
from autoconf.service.job_files import answer_job_texts
from autoconf.service.queries import TooManyRows

_MOST_REMEMBERED = 4_000  # models under stacks, about 36 MB
Status = Literal["ok", "bad_input", "too_large", "broken"]


class Task(NamedTuple):
    """A request to a worker.

    Attributes:
        kind: What to do: ``job``, ``rows``, ``csv``, ``explain``, ``files`` or ``names``.
        content: The content of the request.
        query: One of ``queries.QUERIES``, where ``kind`` is about one.
        most: The most rows.
        html: Whether an explanation has HTML, for people.
    """

    kind: str
    content: Any = None
    query: str = ""
    most: int = 0
    html: bool = False


class Reply(NamedTuple):
    """The reply of a worker: the answer if the status is ``ok``, and else a sentence that says what is wrong."""

    status: Status
    content: Any


def reply_to(task: Task, models: ModelsFolder = None) -> Reply:
    """Answer a task; errors are replies, too.

    >>> reply_to(Task("job", {"method": "lora"}, "recommend")).content
    'model_name: is required; gpu_model: is required; tokens_per_sample: is required'
    """
    try:
        with only_given({}):
            return Reply("ok", _answer(task, models))
    except TooManyRows as error:
        return Reply("too_large", str(error))
    except (ValueError, NoModelsFolder) as error:
        return Reply("bad_input", str(error))
    except AutoConfError as error:
        return Reply("broken", str(error))
    except Exception as error:  # a fault of this package must not end the worker
        traceback.print_exc()
        return Reply("broken", f"{type(error).__name__}: {error}")


def _answer(task: Task, models: ModelsFolder) -> Any:
    content = task.content
    match task.kind:
        case "job":
            return queries.answer_job(task.query, content, models)
        case "rows":
            return queries.answer_rows(task.query, content, models)
        case "csv":
            return queries.answer_csv(task.query, content, task.most, models)
        case "explain":
            return queries.explain_job(content, models, html=task.html)
        case "files":
            return answer_job_texts(content, models, html=task.html)
        case "names":
            return queries.known_names(models)
    raise ValueError(f"kind: no such task: {task.kind}")


def work(pipe: Connection, models: ModelsFolder) -> None:
    """Load the default version, report it, and answer tasks until the other end closes.

    Args:
        pipe: The end of the worker: ``Task`` comes in, ``Reply`` goes out.
        models: Folder of user versions.
    """
    # The server ends its workers by closing their pipes, after the requests that it still has.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    os.environ.pop(VARIABLE, None)  # a request reads no setting of the server's environment
    warnings.simplefilter("ignore")
    try:
        registry.load(registry.DEFAULT)
    except AutoConfError as error:
        pipe.send(Reply("broken", str(error)))
        return
    pipe.send(Reply("ok", os.getpid()))
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(reply_to(task, models))
        forget_beyond(_MOST_REMEMBERED)

"""Worker processes, forked from one process that has loaded the predictor, behind an asynchronous front."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from autoconf.errors import AutoConfError
from autoconf.predictor.user_versions import ModelsFolder
from autoconf.service.tasks import Reply, Task, work

_START_SECONDS = 120.0  # the libraries are imported and a version is loaded, on a busy machine


class TooSlow(Exception):
    """A task took longer than it may; its worker was ended."""


class Overloaded(Exception):
    """No worker was free in time."""


class _Worker:
    """One worker process; only one thread uses it at a time."""

    def __init__(self, context: Any, models: ModelsFolder) -> None:
        self._context, self._models = context, models
        self._pipe: Connection | None = None
        self.process: BaseProcess | None = None

    def start(self) -> None:
        """Start the process, and wait until it has loaded the version.

        Raises:
            AutoConfError: It does not start, or the installation is broken.
        """
        self._pipe, inner = self._context.Pipe()
        self.process = self._context.Process(target=work, args=(inner, self._models), daemon=True)
        self.process.start()
        inner.close()  # so that the end of the process closes the pipe
        try:
            reply = self._exchange(None, _START_SECONDS)
        except (EOFError, OSError, TooSlow) as error:
            self.end()
            raise AutoConfError(f"a worker process does not start: {type(error).__name__}") from None
        if reply.status != "ok":
            self.end()
            raise AutoConfError(reply.content)

    def has_ended(self) -> bool:
        """Whether the process has ended by itself, or its fork server, without which it cannot be killed when late."""
        return self._pipe is not None and self.process is not None and not self.process.is_alive()

    def ask(self, task: Task, seconds: float) -> Reply:
        """Send a task and wait for the reply.

        Raises:
            TooSlow: The worker does not reply in time; it is killed.
            EOFError, OSError: The process has ended.
        """
        if self._pipe is None:
            self.start()
        try:
            return self._exchange(task, seconds)
        except (EOFError, OSError, TooSlow):
            self.end()
            raise

    def _exchange(self, task: Task | None, seconds: float) -> Reply:
        """Send a task, if there is one, and wait for the reply.

        A process that neither reads nor writes, because it is stopped, would hold a large task or reply for ever. The
        end of the process is the end of both.
        """
        assert self._pipe is not None and self.process is not None
        process, is_late = self.process, threading.Event()

        def end_late() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, end_late)
        timer.daemon = True
        timer.start()
        try:
            if task is not None:
                self._pipe.send(task)
            reply: Reply = self._pipe.recv()
        except (EOFError, OSError):
            if is_late.is_set():
                raise TooSlow from None
            raise
        finally:
            timer.cancel()
        return reply

    def end(self) -> None:
        """End the process; the next task starts another."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self.process is not None:
            self.process.kill()
            self.process.join()


class Pool:
    """Answers tasks with a fixed number of workers.

    A task whose worker ends, because somebody kills it, is given once more to a new worker. A task that takes too long
    ends its worker. Every task has a reply or an exception within ``2 * seconds + patience``, and the time in which a
    new worker starts.

    Args:
        workers: Number of processes.
        models: Folder of user versions; requests cannot name another.
        seconds: The longest time for one task.
        patience: The longest time that a task waits for a free worker.
        most_waiting: The most tasks that wait.
        on_restart: Called when a worker has ended unexpectedly.
    """

    def __init__(
        self,
        workers: int,
        models: ModelsFolder = None,
        *,
        seconds: float = 30.0,
        patience: float = 10.0,
        most_waiting: int = 512,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["autoconf.service.preloaded"])
        self._workers = [_Worker(context, models) for _ in range(workers)]
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="worker")
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._seconds, self._patience, self._most_waiting = seconds, patience, most_waiting
        self.on_restart = on_restart
        self.waiting = 0

    def start(self) -> None:
        """Start the workers.

        Raises:
            AutoConfError: The installation is broken.
        """
        for worker in self._workers:
            worker.start()
            self._idle.put_nowait(worker)

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run."""
        running = (worker.process for worker in self._workers)
        return [process.pid for process in running if process is not None and process.pid and process.is_alive()]

    async def ask(self, task: Task) -> Reply:
        """Answer a task with the next free worker.

        Raises:
            Overloaded: No worker is free in time.
            TooSlow: The task takes too long.
            AutoConfError: No worker can be started.
        """
        if self.waiting >= self._most_waiting:
            raise Overloaded
        self.waiting += 1
        try:
            worker = await asyncio.wait_for(self._idle.get(), self._patience)
        except TimeoutError:
            raise Overloaded from None
        finally:
            self.waiting -= 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, self._ask, worker, task)
        # The worker is free when its thread is, also if this request is canceled first.
        future.add_done_callback(lambda _: self._idle.put_nowait(worker))
        return await asyncio.shield(future)

    def _ask(self, worker: _Worker, task: Task) -> Reply:
        if worker.has_ended():
            self.on_restart()
            worker.end()
        for attempt in (1, 2):
            try:
                return worker.ask(task, self._seconds)
            except TooSlow:
                self.on_restart()
                raise
            except (EOFError, OSError):
                self.on_restart()
                if attempt == 2:
                    raise AutoConfError("two worker processes ended while they answered this request") from None
        raise AssertionError

    def stop(self) -> None:
        """End all workers."""
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.end()

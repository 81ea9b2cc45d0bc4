"""Replay jobs for the service, one at a time, in processes of their own: a replay needs PyTorch and takes long."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from autoconf.errors import BadInput
from autoconf.predictor.build_extra import check_build_extra
from autoconf.predictor.user_versions import VARIABLE
from autoconf.service.limits import Limits, Refused
from autoconf.service.tasks import Reply

_TASK = "autoconf.cli.replay_task"  # run as a process, and never imported here


class Replays:
    """Answers replays within the limits of time of the service.

    Args:
        limits: The limits of the service.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(1)

    async def ask(self, fields: Mapping[str, Any], usable_gib: float, has_left: Callable[[], Awaitable[bool]]) -> Reply:
        """Replay one job.

        Args:
            fields: Fields of the job, and its number of GPUs.
            usable_gib: Usable memory of the GPU.
            has_left: Whether the client has closed its connection; the replay then ends.

        Raises:
            Refused: A library is not installed, another replay runs, or the replay takes too long.
        """
        try:
            check_build_extra("a replay")
        except BadInput as error:
            raise Refused(501, "not_installed", f"on the server {error}; /estimate needs no replay") from None
        try:
            async with asyncio.timeout(self._limits.patience):
                await self._free.acquire()
        except TimeoutError:
            raise Refused(503, "overloaded", "another replay runs; try again in a moment") from None
        try:
            return await self._run(json.dumps({"job": fields, "usable_gib": usable_gib}).encode(), has_left)
        finally:
            self._free.release()

    async def _run(self, job: bytes, has_left: Callable[[], Awaitable[bool]]) -> Reply:
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", _TASK, env=environment, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        replaying = asyncio.create_task(process.communicate(job))
        watching = asyncio.create_task(_wait_until(has_left))
        try:
            await asyncio.wait({replaying, watching}, timeout=self._limits.replay, return_when="FIRST_COMPLETED")
            if replaying.done():
                return _reply(replaying.result()[0], process)
        finally:
            watching.cancel()
            if process.returncode is None:  # it is late, the client has left, or the server is ending
                process.kill()
            await replaying
        seconds = f"{self._limits.replay:g} seconds"
        raise Refused(503, "too_slow", f"the replay takes longer than {seconds}; /estimate needs no replay")


async def _wait_until(has_left: Callable[[], Awaitable[bool]]) -> None:
    while not await has_left():
        await asyncio.sleep(0.5)


def _reply(said: bytes, process: Process) -> Reply:
    try:
        return Reply(**json.loads(said))
    except (ValueError, TypeError):
        return Reply("broken", f"the replay ended with status {process.returncode} and no result")

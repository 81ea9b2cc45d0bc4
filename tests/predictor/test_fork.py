"""Processes forked while threads call AutoConf answer or fail, but never hang."""

import os
import re
import subprocess
import sys
import threading
import time

import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.model import StackMemory
from autoconf.predictor import registry
from autoconf.predictor.locks import LOADING, PREDICTING
from autoconf.predictor.predictor import Predictor

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Threads ask from the cold start on; children are forked while the version is loaded, and while it answers.
_FORK_WHILE_THREADS_ASK = """
import os, sys, threading, time
from autoconf import Workload, recommend
version = sys.argv[1]

def ask(tokens):
    return recommend(Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
                              tokens_per_sample=tokens, batch_size=16, model_version=version)).gpus

stop = threading.Event()
def keep_asking(index):
    tokens = 1000 + index
    while not stop.is_set():
        ask(tokens)
        tokens += 4

threads = [threading.Thread(target=keep_asking, args=(index,)) for index in range(4)]
for thread in threads:
    thread.start()
children = []
for number in range(12):
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        os._exit(0 if ask(8192) == 2 else 3)
    children.append(child)
deadline, outcomes = time.monotonic() + 90, []
for child in children:
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.05)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    outcomes.append(os.waitstatus_to_exitcode(status) if done else "hangs")
stop.set()
print(outcomes, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("version", ["1.1.0", "2.0.0"])
def test_processes_forked_while_four_threads_call_answer(version):
    command = [sys.executable, "-W", "ignore", "-c", _FORK_WHILE_THREADS_ASK, version]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == str([0] * 12), done.stderr[-2000:]


# OpenMP's threads do not survive a fork, so neither loading nor predicting may have started any.
_FORK_AFTER_AN_ANSWER = """
import os, signal
from autoconf import Workload, recommend, throughput

job = Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192,
               batch_size=16)
first = recommend(job).gpus, throughput(job, 2).tokens_per_second if WARM else None
child = os.fork()
if child == 0:
    signal.alarm(60)
    old, speed = recommend(job, model_version="1.1.0").gpus, throughput(job, 2).tokens_per_second
    os._exit(0 if old == 2 and speed and first[1] in (None, speed) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("warm", [False, True])
def test_a_child_forked_after_an_answer_can_load_other_versions(warm):
    code = f"WARM = {warm}\n{_FORK_AFTER_AN_ANSWER}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout == "0\n", done.stderr[-2000:]


@pytest.mark.parametrize("lock", [LOADING, PREDICTING])
def test_who_forks_waits_for_a_thread_that_loads_or_predicts_and_the_child_finds_no_lock_held(lock):
    held, elapsed = threading.Event(), 0.3

    def hold() -> None:
        with lock:
            held.set()
            time.sleep(elapsed)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        with lock:
            os._exit(0)
    assert time.monotonic() - started >= elapsed / 2
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()
    with lock:  # nor does it stay held in the parent
        pass


def test_a_thread_that_holds_a_lock_may_fork():
    with LOADING, PREDICTING:
        child = os.fork()
        if child == 0:
            with LOADING, PREDICTING:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# A thread asks and is stopped wherever it is for the first time before the version is loaded; there a child is forked.
_FORK_WHEREVER_A_THREAD_IS = """
import os, signal, sys, threading
from autoconf import Workload, recommend
from autoconf.predictor.locks import LOADING

job = dict(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192,
           batch_size=16, model_version="1.0")  # which was never released: the answer needs no version to be loaded

if sys.argv[1] == "ado":
    from autoconf.min_gpu_recommender import min_gpu_recommender

def ask():
    return min_gpu_recommender(**job)["outcome"] if sys.argv[1] == "ado" else recommend(Workload(**job)).outcome

seen, stopped, go_on, ended = set(), threading.Semaphore(0), threading.Semaphore(0), threading.Event()

def stop(frame, event, argument):
    code = frame.f_code
    if code not in seen and "autoconf" in code.co_filename:
        seen.add(code)
        stopped.release()
        go_on.acquire()

def keep_stopping():
    sys.settrace(stop)
    ask()
    sys.settrace(None)
    ended.set()
    stopped.release()

threading.Thread(target=keep_stopping, daemon=True).start()
outcomes = {}
while stopped.acquire() and not ended.is_set():
    if LOADING.acquire(timeout=0.01):  # otherwise who forks waits for the thread
        LOADING.release()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if ask() == "bad_value" else 3)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcomes[code] = outcomes.get(code, 0) + 1
    go_on.release()
print(outcomes, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("road", ["ado", "python"])
def test_children_forked_wherever_a_thread_is_before_its_first_answer_answer(road):
    command = [sys.executable, "-W", "ignore", "-c", _FORK_WHEREVER_A_THREAD_IS, road]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert re.fullmatch(r"\{0: [3-9]\d\}\n", done.stdout), done.stdout + done.stderr[-2000:]


class SlowlyRead(StackMemory):
    """Profiles whose first read takes long: pyarrow holds locks of its own meanwhile, which no child may inherit."""

    def __init__(self, memory: StackMemory) -> None:
        super().__init__(memory.table)
        self.reading = threading.Event()

    def row(self, model: str, method: str, stack: Stack) -> int:
        self.reading.set()
        time.sleep(0.3)
        return super().row(model, method, stack)


def test_who_forks_waits_for_a_thread_that_reads_profiles():
    released = registry.load("2.0.0")
    memory = SlowlyRead(released.memory)
    thread = threading.Thread(target=Predictor(released.card, memory, None).row, args=("llama-7b", "lora", Stack()))
    thread.start()
    memory.reading.wait()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert time.monotonic() - started >= 0.15
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()

"""A process of its own for calculations, so that one that crashes or hangs takes nothing else with it.

Each worker thread keeps one, and starts another when it is gone. It reads jobs from its parent and answers when the result
file is written. When the parent is killed it still finishes the calculation at hand, whose result the next run of the
campaign takes in, and then ends. What programs print goes to `output.txt` in the directory of the calculation.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import cloudpickle

from mfgp.campaign.labelling import Job, Outcome, calculate, holder, left_behind

OUTPUT = "output.txt"
DYING = 10.0  # s, that a killed process may take to give back its lock
_local = threading.local()


def run(job: Job, limit: float | None) -> Outcome:
    """Calculate in the process of this thread. A death or more than `limit` seconds of wall time is a failed Outcome."""
    start = time.monotonic()
    child = getattr(_local, "child", None)
    if child is None or not child.alive():
        child = _local.child = _Child()
    end = child.ask(job, limit)
    if not end:
        found = left_behind(Path(job.directory))
        return found if isinstance(found, Outcome) else Outcome("failed", "no result was written")
    _local.child = None
    return Outcome("failed", end, wall_seconds=time.monotonic() - start)


def end_orphan(directory: Path) -> str:
    """Kill the calculation that runs in a directory, with all that it started; '' when it is over, else why it is not."""
    found = holder(directory)
    if found is None:
        return "what runs it is not known"
    host, pid = found
    if host != socket.gethostname():
        return f"it still runs: process {pid} on {host}"
    with suppress(ProcessLookupError):
        if os.getpgid(pid) != pid or pid == os.getpgid(0):  # not a process of its own, as `_Child` starts them
            return f"it still runs in process {pid}"
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + DYING
    while left_behind(directory) == "running":
        if time.monotonic() > deadline:
            return f"process {pid} was killed, but has not ended"
        time.sleep(0.05)
    return ""


def max_hours(limit: float) -> str:
    """Why a calculation was stopped; limit in seconds."""
    return f"stopped after {limit / 3600:.3g} h (max_hours)"


class _Child:
    def __init__(self) -> None:
        self.answer, theirs = os.pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mfgp.campaign.calculation_process", str(theirs)],
            stdin=subprocess.PIPE,
            pass_fds=(theirs,),
            env=environment,
            start_new_session=True,  # so that what it runs can be ended with it
        )
        os.close(theirs)

    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, job: Job) -> None:
        assert self.process.stdin is not None
        payload = cloudpickle.dumps(job)
        with suppress(BrokenPipeError):  # it is dead; the answer will say so
            self.process.stdin.write(len(payload).to_bytes(8, "big") + payload)
            self.process.stdin.flush()

    def ask(self, job: Job, limit: float | None) -> str:
        """Wait for a job; '' when it is over, else why it was not to be."""
        self.send(job)
        ready, _, _ = select.select([self.answer], [], [], limit)
        if not ready:
            return self._end(max_hours(limit or 0.0))
        return "" if os.read(self.answer, 1) else self._end("")

    def _end(self, why: str) -> str:
        """Kill it with all that it started, where there is a reason to; it is dead already otherwise."""
        if why:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.close()
        code = self.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return why or f"the process of the calculation died ({how}: out of memory, or a crash of the program in it)"

    def close(self) -> None:
        """Ask it to end: it finds no more jobs."""
        if self.answer >= 0:
            os.close(self.answer)
            self.answer = -1
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def __del__(self) -> None:
        """When its thread ends."""
        self.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5.0)


def serve(answer: int) -> None:
    """The process: jobs from standard input until it ends, a byte for each to the file descriptor `answer`."""
    requests = os.fdopen(os.dup(0), "rb")  # programs that are run here inherit 0, 1 and 2, and nothing else
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.set_inheritable(answer, False)
    while header := requests.read(8):
        job: Job = cloudpickle.loads(requests.read(int.from_bytes(header, "big")))
        directory = Path(job.directory)
        directory.mkdir(parents=True, exist_ok=True)
        output = os.open(directory / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        calculate(job)
        for file in (sys.stdout, sys.stderr):
            file.flush()
        if not (directory / OUTPUT).stat().st_size:
            (
                directory / OUTPUT
            ).unlink()  # before the answer, after which the campaign removes the directory if it is empty
        with suppress(OSError):
            os.write(answer, b".")  # nobody may be listening any more


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    serve(int(sys.argv[1]))

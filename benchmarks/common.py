"""What every benchmark needs: the machine's own speed, CPU seconds of a piece of work or a command, results as JSON.

Times are CPU seconds (user + system), and rates are floating-point operations per CPU second, so that a figure does not
depend on what else the machine is doing, and `seconds over flops / rate` does not depend on the number of threads.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

import mfgp
from mfgp.base.files import replacing

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "ase", "gpytorch", "numba", "sphericart-torch", "vesin", "quippy-ase", "chgnet", "tblite")
GEMM_SIZE, GEMM_REPEATS = 1024, 8
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LAUNCHER = """
import os, subprocess, sys
with open(sys.argv[1], "w") as log:
    process = subprocess.Popen(sys.argv[2:], stdout=log, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(process.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


@dataclass
class Timing:
    """CPU and wall-clock seconds of a piece of work; filled when its block ends."""

    cpu: float = math.nan
    wall: float = math.nan


@dataclass(frozen=True)
class Usage:
    """What a command took: CPU seconds (user + system), wall-clock seconds, largest resident memory in bytes."""

    cpu: float
    wall: float
    peak_bytes: float


def data_option(contents: str) -> Any:
    """The option --data: a folder of the user's with the named contents."""
    return typer.Option(
        "--data", exists=True, file_okay=False, resolve_path=True, help=f"Folder with {contents}.", show_default=False
    )


@contextmanager
def timed() -> Iterator[Timing]:
    """Time of the block."""
    out = Timing()
    wall, cpu = time.perf_counter(), time.process_time()
    yield out
    out.cpu, out.wall = time.process_time() - cpu, time.perf_counter() - wall


def best_of(work: Any, repeats: int = 3) -> float:
    """Fewest CPU seconds of a few runs of `work()`; the first, which sets things up, does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        with timed() as timing:
            work()
        seconds.append(timing.cpu)
    return min(seconds)


def run_measured(command: Sequence[str | Path], folder: Path, threads: int) -> Usage:
    """Run a command in `folder` on so many threads, and measure it. Raises RuntimeError with the end of its output.

    A small process starts the command: the kernel counts the memory of the starting process into the peak of the started.
    """
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    log = folder / "output.txt"
    start = time.perf_counter()
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(log), *map(str, command)]
    done = subprocess.run(launcher, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    code, cpu, peak = map(float, done.stdout.split())
    if code:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return Usage(cpu, wall, peak * (1 if platform.system() == "Darwin" else 1024))


def gemm_rate() -> float:
    """Floating-point operations per CPU second of a float64 matrix product, on as many threads as torch uses now."""
    a = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=torch.float64)
    return 2.0 * GEMM_SIZE**3 / best_of(lambda: a @ a, GEMM_REPEATS)


def machine() -> dict[str, Any]:
    """Processor, threads, the float64 GEMM rate of this moment, and versions: what a time has to be read with."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "gemm_gflops_per_cpu_second": 1e-9 * gemm_rate(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "mfgp": mfgp.__version__,
        **{name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def cpu_model() -> str:
    """Model name of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write results/NAME.json, whole or not at all; numbers that are not finite become null."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """Mappings, sequences, arrays and numbers as JSON has them; paths by their last part, folders are the user's own."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return value.name
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

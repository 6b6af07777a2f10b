"""One calculation, from a structure to checked labels; runs in a worker process and never raises for a calculation's sake.

A calculation has a directory of its own, with a lock held while it runs and a `result.json` written (whole, or not at all)
before it is told: when the campaign is killed, what a worker had finished is found there, and what still runs is seen.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError

from mfgp.base.files import replacing
from mfgp.campaign.calculators import Factory, from_factory, make_calculator
from mfgp.data.single_point import compute_labels
from mfgp.data.structure_json import structure_of

RESULT, LOCK = "result.json", "lock"
NO_MOMENTS = (
    "the calculator gives no magnetic moments (or zero on every atom), so the spin state cannot be checked; make it "
    "spin-polarised and let it write them (VASP: ispin: 2, lorbit: 11)"
)


@dataclass(frozen=True)
class Job:
    """What a worker needs: picklable. structure: JSON of structure_json; spin: element -> accepted |moments|, or none."""

    task: int
    attempt: int
    level: str
    structure: str
    directory: str
    calculator: str | None
    settings: dict[str, Any]
    magmoms: dict[str, float] = field(default_factory=dict)
    spin: dict[str, Sequence[float]] = field(default_factory=dict)
    spin_tolerance: float = 0.9
    max_force: float = 100.0
    stress: bool = True
    factory: Factory | None = None


@dataclass(frozen=True)
class Outcome:
    """How a calculation ended: done, failed or rejected (converged, but another spin state or an unknown one), and why.

    energy eV, forces [N, 3] eV/Å, stress [6] eV/Å^3, magmoms [N] Bohr magnetons, as lists; None where there is none.
    """

    outcome: str
    why: str
    energy: float | None = None
    forces: list[list[float]] | None = None
    stress: list[float] | None = None
    magmoms: list[float] | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float | None = None
    worker: str = ""

    def atoms(self, structure: Atoms, level: str) -> Atoms:
        """The structure with its labels under REF_*, ready for `frames_from`."""
        out = structure.copy()
        out.info |= {"fidelity": level, "REF_energy": self.energy, "wall_seconds": self.wall_seconds}
        if self.cpu_seconds is not None:
            out.info["cpu_seconds"] = self.cpu_seconds
        out.set_array("REF_forces", np.array(self.forces))
        if self.stress is not None:
            out.info["REF_stress"] = np.array(self.stress)
        if self.magmoms is not None:
            out.set_array("REF_magmoms", np.array(self.magmoms))
        return out

    def with_seconds(self, wall: float) -> Outcome:
        return replace(self, wall_seconds=wall)


class BusyError(RuntimeError):
    """Another process holds this calculation."""


def calculate(job: Job) -> Outcome:
    """Run a calculation in its directory. What it raises becomes a failed Outcome; BusyError if it runs already."""
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / LOCK, f"{socket.gethostname()} {os.getpid()}") as held:
        if not held:
            raise BusyError(f"{directory} is locked by a running calculation")
        wall, cpu = time.perf_counter(), _cpu_seconds()
        try:
            outcome = _run(job, directory)
        except Exception as error:  # it could not be made
            outcome = Outcome("failed", _reason(error))
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        worker = f"{socket.gethostname()} pid {os.getpid()}"
        outcome = replace(outcome, wall_seconds=wall, cpu_seconds=cpu, worker=worker)
        with replacing(directory / RESULT) as temporary:
            temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def left_behind(directory: Path) -> Outcome | str:
    """What a killed campaign finds: the Outcome of a finished calculation, 'running', or 'gone'."""
    if not directory.is_dir():
        return "gone"
    with _locked(directory / LOCK) as held:
        if not held:
            return "running"
        try:
            return Outcome(**json.loads((directory / RESULT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return "gone"


def holder(directory: Path) -> tuple[str, int] | None:
    """Host and process of the calculation that runs in a directory; None where its lock does not say."""
    try:
        host, pid = (directory / LOCK).read_text(encoding="utf-8").split()
        return host, int(pid)
    except (OSError, ValueError):
        return None


def clean(directory: Path) -> None:
    """Remove the lock and the result, which the database holds by now, and the directory if nothing else is in it."""
    for name in (RESULT, LOCK):
        (directory / name).unlink(missing_ok=True)
    with suppress(OSError):
        directory.rmdir()


def _run(job: Job, directory: Path) -> Outcome:
    atoms = structure_of(job.structure)
    if job.magmoms and not atoms.has("initial_magmoms"):
        atoms.set_initial_magnetic_moments([job.magmoms.get(symbol, 0.0) for symbol in atoms.symbols])
    if job.factory is not None:
        calculator = from_factory(job.factory, job.settings, directory)
    else:
        assert job.calculator is not None
        calculator = make_calculator(job.calculator, job.settings, directory)
    found = checked(calculator, atoms, job.spin, job.spin_tolerance, job.max_force)
    return found if job.stress else replace(found, stress=None)


def checked(
    calculator: BaseCalculator,
    atoms: Atoms,
    spin: Mapping[str, Sequence[float]],
    spin_tolerance: float,
    max_force: float,
) -> Outcome:
    """Labels of one calculation, checked: of these positions and this cell, converged, finite, forces below max_force
    (eV/Å), an accepted spin state.

    Whatever the calculator raises becomes a failed Outcome.
    """
    atoms = atoms.copy()  # a calculator may move the atoms that it is given
    try:
        found = compute_labels(calculator, atoms)
        moments = _moments(calculator, atoms)
        why = problem(found.energy, found.forces, found.stress, _converged(calculator), max_force)
    except (Exception, SystemExit) as error:  # a calculator may raise anything, or try to leave
        return Outcome("failed", _reason(error))
    if why:
        return Outcome("failed", why)
    wrong = ""
    if spin:
        wrong = NO_MOMENTS if moments is None else other_spin(atoms, moments, spin, spin_tolerance)
    return Outcome(
        "rejected" if wrong else "done",
        wrong,
        energy=found.energy,
        forces=found.forces.tolist(),
        stress=None if found.stress is None else found.stress.tolist(),
        magmoms=None if moments is None else moments.tolist(),
    )


def problem(
    energy: float, forces: np.ndarray, stress: np.ndarray | None, converged: bool | None, max_force: float
) -> str:
    """What is wrong with the numbers of a calculation, or nothing. forces [N, 3] and max_force in eV/Å."""
    if converged is False:
        return "the calculator says that it did not converge"
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        if value is not None and not np.isfinite(value).all():
            return f"{name} not finite"
    largest = float(np.linalg.norm(forces, axis=1).max())
    if largest > max_force:
        atom = int(np.linalg.norm(forces, axis=1).argmax())
        return f"a force of {largest:.4g} eV/Å on atom {atom}, above max_force {max_force:g}"
    return ""


def other_spin(atoms: Atoms, moments: np.ndarray, spin: Mapping[str, Sequence[float]], tolerance: float) -> str:
    """The atoms whose |moment| is not within tolerance of an accepted one (Bohr magnetons), as text; '' if there is none."""
    wrong = [
        f"{symbol}{i} {moments[i]:.2f}"
        for i, symbol in enumerate(atoms.symbols)
        if symbol in spin and min(abs(abs(moments[i]) - m) for m in spin[symbol]) > tolerance
    ]
    accepted = ", ".join(f"{s} {'/'.join(f'{m:g}' for m in values)}" for s, values in spin.items())
    return f"another spin state: {', '.join(wrong)} (accepted: {accepted}, ±{tolerance:g})" if wrong else ""


def _converged(calculator: BaseCalculator) -> bool | None:
    """What a calculator says of its own convergence; None where it says nothing (most raise instead)."""
    found = getattr(calculator, "converged", None)
    return bool(found) if isinstance(found, (bool, np.bool_)) else None


def _moments(calculator: BaseCalculator, atoms: Atoms) -> np.ndarray | None:
    """Magnetic moments [N] where there are some; zeros on all atoms stand for none (ASE's Vasp without lorbit)."""
    with suppress(PropertyNotImplementedError, NotImplementedError):
        found = calculator.get_property("magmoms", atoms, allow_calculation=False)
        if found is not None and np.shape(found) == (len(atoms),) and np.any(found):
            return np.asarray(found, dtype=np.float64)
    return None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f" ({Path(last.filename).name}:{last.lineno})"
    return f"{type(error).__name__}: {text[:400]}{where}" if text else f"{type(error).__name__}{where}"


def _cpu_seconds() -> float:
    """Of this process and of the programs that it has run."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


@contextmanager
def _locked(path: Path, owner: str = "") -> Iterator[bool]:
    """Whether the lock was free; it is held inside the block then, and given back by the system however that ends.

    owner: written into the file, for others to see.
    """
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        if owner:
            file.truncate(0)
            file.write(owner)
            file.flush()
        yield True

"""Sign and unit of forces by the energies of a trajectory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from test_trajectories import dynamics

from mfgp import read_frames
from mfgp.doctor import examine
from mfgp.doctor.report import Finding


def findings(change: Callable[[np.ndarray], np.ndarray], atoms: list[Atoms]) -> list[Finding]:
    frames = [a.copy() for a in atoms]
    for frame in frames:
        frame.arrays["REF_forces"] = change(frame.arrays["REF_forces"])
    return [f for f in examine(read_frames({"dft": frames})).findings if f.check == "force sign"]


@pytest.fixture(scope="module")
def steps() -> list[Atoms]:
    return dynamics(0, 15, 2)


def test_right_forces_agree(steps: list[Atoms]) -> None:
    (found,) = findings(lambda f: f, steps)
    assert found.severity == "info"
    assert "14 steps" in found.message
    assert "slope 1.00" in found.message


@pytest.mark.parametrize(
    ("factor", "said"),
    [(-1.0, "negate them"), (1 / 51.422, "Ha/bohr"), (1 / 0.043364, "kcal/mol"), (3.0, "not the derivative")],
)
def test_wrong_ones_do_not(steps: list[Atoms], factor: float, said: str) -> None:
    (found,) = findings(lambda f: factor * f, steps)
    assert found.severity == "error"
    assert said in found.message


def test_a_jump_of_one_energy_changes_nothing(steps: list[Atoms]) -> None:
    frames = [a.copy() for a in steps]
    frames[7].info["REF_energy"] += 30.0
    (found,) = findings(lambda f: f, frames)
    assert found.severity == "info"


def test_nothing_is_said_of_frames_that_are_far_apart() -> None:
    assert findings(lambda f: -f, dynamics(0, 15, 60)) == []

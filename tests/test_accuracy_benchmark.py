"""The comparison of benchmarks/accuracy: errors, charge states and shifts of the elements' references that it reports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose

from mfgp import FrameSet, read_frames
from mfgp.frames import Frame

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))  # common
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks" / "accuracy"))

from chgnet_rivals import Training, composition_shift, shift_of
from cross_fitted import CrossFitted, FoldNetworks, mean_of, train_members
from networks import Kind, Network
from peers import Sets, run
from task import Predicted, Task, scores


def labelled(symbols: str, energy: float, magmoms: list[float]) -> Frame:
    atoms = Atoms(symbols, positions=2.0 * np.arange(3 * len(magmoms)).reshape(-1, 3), cell=[50.0] * 3, pbc=True)
    atoms.info["REF_energy"] = energy
    atoms.arrays["REF_forces"] = np.full((len(atoms), 3), 0.25)
    atoms.arrays["REF_magmoms"] = np.array(magmoms)
    (frame,) = read_frames({"mag": [atoms]})
    return frame


@pytest.fixture
def frames() -> list[Frame]:
    """A cell with all its lithium (Fe2+, Mn2+) and one that has lost half (Fe2+, Fe3+, Mn3+, Li)."""
    return [labelled("LiFeLiMn", -10.0, [0.0, 3.74, 0.0, 4.59]), labelled("FeFeMnLi", -12.0, [3.75, 4.38, 3.9, 0.0])]


def test_errors_are_per_atom_and_charge_states_count_only_where_lithium_has_gone(frames: list[Frame]) -> None:
    read_as = [np.array([0.0, 4.4, 0.0, 4.6]), np.array([4.4, 4.38, 3.8, 0.1])]  # one Fe wrong in each cell
    found = Predicted(np.array([-9.6, -12.0]), [f.forces + 0.1 for f in frames], read_as, 1.0)
    out = scores(found, frames)
    assert out["energy_mae"] == pytest.approx(0.05)  # eV/atom: 0.4 eV of four atoms in one of two cells
    assert out["force_mae_by_element"] == pytest.approx({"Li": 0.1, "Mn": 0.1, "Fe": 0.1})
    assert out["moments"]["Fe"]["delithiated"] == {"right": 1, "sites": 2}
    assert out["moments"]["Fe"]["low_moment"] == {"right": 0, "sites": 1}
    assert out["moments"]["Mn"]["delithiated"] == {"right": 1, "sites": 1}
    assert out["moments"]["Fe"]["mae"] == pytest.approx((0.66 + 0.65 + 0.0) / 3)


def test_shifted_energies_fit_and_the_shift_is_the_smallest(frames: list[Frame]) -> None:
    shift = composition_shift(frames, np.array([-9.0, -9.0]))
    assert_allclose([shift_of(f.atoms, shift) for f in frames], [-1.0, -3.0], rtol=0, atol=1e-9)  # eV
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in shift] for f in frames])
    assert_allclose(list(shift.values()), np.linalg.pinv(counts) @ [-1.0, -3.0], rtol=0, atol=1e-9)


def test_sets_are_scored_apart_after_one_training(frames: list[Frame]) -> None:
    trained: list[int] = []

    def method(task: Task) -> Predicted:
        trained.append(len(task.training))
        energies = np.array([f.energy for f in task.held_out]) + np.arange(1.0, 4.0)  # off by 1, 2, 3 eV
        return Predicted(energies, [f.forces for f in task.held_out], None, 2.0, note={"used": "x"})

    sets: Sets = {"cold": [frames[0]], "hot": [frames[1], frames[0]]}
    found = run(method, FrameSet(("mag",), tuple(frames)), sets)
    assert trained == [2]
    assert found["sets"]["cold"]["energy_mae"] == pytest.approx(0.25)  # eV/atom, of four atoms
    assert found["sets"]["hot"]["energy_mae"] == pytest.approx(2.5 / 4)
    assert found["sets"]["hot"]["energy_rmse"] == pytest.approx(np.sqrt(6.5) / 4)
    assert (found["cpu_seconds"], found["settings"]) == (2.0, {"used": "x"})


class Sum:
    """A network that says the sum of the energies that it was trained on, everywhere."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1, bias=False).double()
        self.shift: dict[int, float] = {}

    def train(self, frames: list[Frame], training: Training, seed: int) -> None:
        self.shift = {3: float(seed)}
        with torch.no_grad():
            self.module.weight.fill_(sum(f.energy for f in frames if f.energy is not None))

    def predict(self, structures: list[Atoms]) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        value = float(self.module.weight.detach())
        forces = [np.full((len(a), 3), value) for a in structures]
        return np.full(len(structures), value), forces, [f[:, 0] for f in forces]


def kind_of(cache: Path, make: Callable[[], Network] = Sum, epochs: int = 1) -> Kind:
    return Kind("sum", make, Training(epochs, 1e-3), cache)


@pytest.mark.parametrize("folds", [2, 3])
def test_a_training_structure_is_never_judged_by_a_network_that_saw_it(tmp_path: Path, folds: int) -> None:
    energies = [2.0**i for i in range(6)]  # a sum tells which of them are in it
    frames = [labelled("LiFeLiMn", e, [0.0, 3.74, 0.0, 4.59 + 0.01 * i]) for i, e in enumerate(energies)]
    for i, frame in enumerate(frames):
        frame.atoms.positions[0, 0] += 0.01 * i  # Å
    members, _ = train_members(kind_of(tmp_path), folds, frames, order=0)
    networks = [m.network for m in members]
    calculator, seen = CrossFitted(members, networks), {}
    for i, frame in enumerate(frames):
        seen[i] = int(calculator.get_potential_energy(frame.atoms))
        assert not seen[i] & (1 << i)  # not its own
        assert_allclose(calculator.get_forces(frame.atoms), seen[i])
        assert seen[i].bit_count() == 6 - 6 // folds  # all but one fold
    assert len(set(seen.values())) == folds
    new = frames[0].atoms.copy()
    new.positions[0, 0] += 0.5
    mean = sum(energies) * (folds - 1) / folds  # every frame is in all networks but one
    assert calculator.get_potential_energy(new) == pytest.approx(mean)
    assert_allclose(mean_of(networks, [new])[2], mean)
    task = Task(FrameSet(("mag",), tuple(frames)), [], n=6, order=0)
    of_folds = FoldNetworks(kind_of(tmp_path), folds)
    for (baseline, _), of_new in ((of_folds.baseline(task), mean), (of_folds.stacked(task), sum(energies))):
        assert baseline.labels(new).energy == pytest.approx(of_new)
        assert [baseline.labels(f.atoms).energy for f in frames] == list(seen.values())


def test_a_trained_network_is_kept_for_the_same_frames_order_seed_and_settings(
    tmp_path: Path, frames: list[Frame]
) -> None:
    class Stale(Sum):
        def train(self, frames: list[Frame], training: Training, seed: int) -> None:
            raise AssertionError("trained again")

    network, seconds = kind_of(tmp_path).trained(frames, seed=1)
    again, as_before = kind_of(tmp_path, Stale).trained(frames, seed=1)
    assert as_before == seconds
    assert again.shift == network.shift == {3: 1.0}
    assert again.predict([frames[0].atoms])[0] == [-22.0]  # eV
    for kind, others, seed in (
        (kind_of(tmp_path, Stale), frames[:1], 1),
        (kind_of(tmp_path, Stale), frames[::-1], 1),
        (kind_of(tmp_path, Stale), frames, 2),
        (kind_of(tmp_path, Stale, epochs=2), frames, 1),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            kind.trained(others, seed)

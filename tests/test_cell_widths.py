"""How far structures repeat, and the notes on larger cells."""

from __future__ import annotations

import math
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import alloy, label
from systems import ethanol, rattled_silicon, slab
from typer.testing import CliRunner

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.calibration.cell_widths import wider, width, widths
from mfgp.cli import app


def test_width_is_the_shortest_vector_of_the_lattice_of_translations() -> None:
    silicon = rattled_silicon()
    assert width(silicon, 15.0) == pytest.approx(5.43)
    skewed = silicon.copy()
    skewed.set_cell(np.array([[1, 0, 0], [2, 1, 0], [1, -3, 1]]) @ silicon.cell.array)  # the same lattice
    assert width(skewed, 15.0) == pytest.approx(5.43)
    assert width(silicon * (2, 2, 2), 15.0) == pytest.approx(5.43)  # copies, displaced alike
    assert width(rattled_silicon(2), 15.0) == pytest.approx(10.86)
    assert width(bulk("Cu", cubic=True) * (3, 3, 3), 15.0) == pytest.approx(3.61 / math.sqrt(2))  # a perfect crystal
    assert width(ethanol(), 15.0) == 15.0
    assert width(slab(False), 15.0) == pytest.approx(4.05 / math.sqrt(2))  # in its plane
    wire = Atoms("CuCu", positions=[[0, 0, 0], [0.3, 0, 2.6]], cell=[0, 0, 5.0], pbc=(False, False, True))
    assert width(wire, 15.0) == pytest.approx(5.0)


def test_three_structures_are_enough() -> None:
    lattice = [rattled_silicon(), rattled_silicon(), rattled_silicon(2), rattled_silicon(2), rattled_silicon(2)]
    frames = read_frames({"emt": [label(bulk_of(a), "low") for a in lattice]})
    assert widths(frames, ["emt"], 12.0) == pytest.approx((10.86,))
    assert widths(frames, ["emt"], 9.0) == (9.0,)  # more than matters
    few = read_frames({"emt": [label(bulk_of(a), "low") for a in lattice[:4]]})
    assert widths(few, ["emt"], 12.0) == pytest.approx((5.43,))


def bulk_of(silicon: Atoms) -> Atoms:
    """The same in copper, which EMT knows."""
    out = silicon.copy()
    out.symbols[:] = "Cu"
    return out


@pytest.fixture(scope="module")
def narrow(config: FitConfig) -> MultiFidelityGP:
    """Trained on cells of 4 atoms, 3.8 Å wide or less, r_cut 4.5 Å."""
    return fitted([alloy(i) for i in range(12)], config)


def fitted(cells: list[Atoms], config: FitConfig) -> MultiFidelityGP:
    training = config.training.model_copy(update={"calibrate": True})
    frames = read_frames({"low": [label(atoms, "low") for atoms in cells]})
    return MultiFidelityGP.fit(frames, config.model_copy(update={"training": training}), progress=False)


def test_a_fit_to_narrow_cells_tells_of_larger_ones(narrow: MultiFidelityGP, config: FitConfig, tmp_path: Path) -> None:
    narrow.save(tmp_path / "m.mfgp")
    for model in (narrow, MultiFidelityGP.load(tmp_path / "m.mfgp")):
        (note,) = [n for n in model.notes() if "repeat" in n]
        assert note.startswith("note: training cells of low (3.")
        assert wider(model, 0, [alloy(50), alloy(51, 2), ethanol()]) == 2
    wide = fitted([*(alloy(i) for i in range(9)), *(alloy(20 + i, 3) for i in range(3))], config)
    assert not [n for n in wide.notes() if "repeat" in n]
    assert wider(wide, 0, [alloy(50), alloy(51, 2), alloy(52, 4)]) == 0


def test_predict_tells_how_many_structures_repeat_later(narrow: MultiFidelityGP, tmp_path: Path) -> None:
    narrow.save(tmp_path / "m.mfgp")

    def told(atoms: list[Atoms], *options: str) -> str:
        ase.io.write(tmp_path / "in.extxyz", atoms)
        done = CliRunner().invoke(
            app,
            ["predict", str(tmp_path / "m.mfgp"), str(tmp_path / "in.extxyz"), "-o", str(tmp_path / "o.xyz"), *options],
        )
        assert done.exit_code == 0
        return done.stderr

    assert "note: 1 of 2 structures repeat later than the training cells of low" in told([alloy(50), alloy(51, 2)])
    assert "repeat" not in told([alloy(50), alloy(52)])
    assert "repeat" not in told([alloy(50), alloy(51, 2)], "--no-uncertainty")


def test_predictions_in_python_tell_once_of_larger_cells(narrow: MultiFidelityGP) -> None:
    narrow.larger_told.clear()
    larger = alloy(51, 2)
    narrow.predict([alloy(50), alloy(52), Atoms("Cu")])  # pytest: a warning is an error
    narrow.predict(larger, uncertainty="none")
    with pytest.warns(UserWarning, match=r"repeats later than the training cells of low \(after 3\.\d Å\)") as told:
        narrow.predict([alloy(50), larger, larger])
    assert [w.filename for w in told] == [__file__]
    narrow.predict(larger)
    narrow.larger_told.clear()
    with pytest.warns(UserWarning, match="repeats later"):
        narrow.energy_combination([larger, alloy(50)], [1.0, -8.0])
    narrow.larger_told.clear()


@pytest.mark.parametrize("uncertainty", ["full", "energies"])
def test_dynamics_tell_once_that_a_perfect_crystal_has_become_a_larger_cell(
    narrow: MultiFidelityGP, uncertainty: str
) -> None:
    narrow.larger_told.clear()
    atoms = bulk("Cu", a=3.8, cubic=True) * (2, 2, 2)
    atoms.calc = narrow.calculator(uncertainty=uncertainty)
    atoms.get_forces()  # repeats after 2.7 Å
    atoms.rattle(0.01, seed=1)
    with pytest.warns(UserWarning, match="repeats later") as told:
        atoms.get_forces()
    assert [w.filename for w in told] == [__file__]
    for seed in (2, 3):
        atoms.rattle(0.01, seed=seed)
        atoms.get_forces()
    narrow.larger_told.clear()

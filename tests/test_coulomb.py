"""Electrostatics as a baseline: Ewald's sum against crystals and plates, derivatives, charges, what a fit gains."""

from __future__ import annotations

import numpy as np
import pytest
import vesin
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.testing import assert_allclose
from scipy.special import erfc

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.baselines import coulomb
from mfgp.baselines.columns import Baseline
from mfgp.baselines.coulomb import CoulombCalculator, ewald_sum, ion_charges
from mfgp.baselines.registry import make_calculator
from mfgp.errors import ConfigError, DataError

K = units.Hartree * units.Bohr  # eV Å
STEP = 1e-4  # Å, or strain


def _rocksalt(repeat: int, seed: int, scale: float) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(repeat)
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.1 * scale * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += scale * rng.normal(size=atoms.positions.shape)
    return atoms


def _systems() -> dict[str, Atoms]:
    cluster = _rocksalt(1, 1, 0.2)
    cluster.pbc = False
    skewed = Atoms("LiFePO", [[0, 0, 0], [1.9, 0.2, 0.1], [0.2, 2.4, 1.0], [1.1, 0.9, 2.2]], pbc=True,
                   cell=[[3.2, 0.1, 0], [-2.7, 3.3, 0], [0.3, 1.6, 4.1]])  # fmt: skip
    slab = _rocksalt(1, 2, 0.2)
    slab.pbc = [True, False, True]
    return {"cluster": cluster, "skewed": skewed, "slab": slab, "crystal": _rocksalt(1, 3, 0.2)}


def _energy(atoms: Atoms, strain: np.ndarray | None = None, **settings: float) -> float:
    moved = atoms.copy()
    if strain is not None:
        moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    moved.calc = CoulombCalculator(**settings)  # type: ignore[arg-type]
    return float(moved.get_potential_energy())


@pytest.mark.parametrize("name", _systems())
def test_forces_and_stress_are_derivatives_of_the_energy(name: str) -> None:
    atoms = _systems()[name]
    atoms.calc = CoulombCalculator()
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.05  # eV/Å
    assert_allclose(forces.sum(axis=0), 0, atol=1e-9)
    for i, c in np.ndindex(*forces.shape):
        ends = [atoms.copy(), atoms.copy()]
        ends[0].positions[i, c] += STEP
        ends[1].positions[i, c] -= STEP
        assert -(_energy(ends[0]) - _energy(ends[1])) / (2 * STEP) == pytest.approx(forces[i, c], abs=1e-6)
    if atoms.pbc.all():
        stress = atoms.get_stress(voigt=False)
        assert np.abs(stress).max() > 1e-3  # eV/Å^3
        for i, j in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
            strain = np.zeros((3, 3))
            strain[i, j] += STEP / 2
            strain[j, i] += STEP / 2
            slope = (_energy(atoms, strain) - _energy(atoms, -strain)) / (2 * STEP) / atoms.get_volume()
            assert slope == pytest.approx(stress[i, j], abs=1e-7)
    else:
        assert "stress" not in atoms.calc.results


@pytest.mark.parametrize(
    ("lattice", "symbols", "madelung", "charge"),
    [("rocksalt", "NaCl", 1.747564594633, 1.0), ("zincblende", "ZnO", 1.638055062115, 2.0)],
)
def test_with_the_short_range_it_has_the_constant_of_madelung(
    lattice: str, symbols: str, madelung: float, charge: float
) -> None:
    atoms, s = bulk(symbols, lattice, a=5.0), 0.9  # two ions
    q = ion_charges(atoms.numbers, {atoms.numbers[0]: charge, atoms.numbers[1]: -charge})
    energy, forces, _ = ewald_sum(q, atoms.positions, atoms.cell.array, s)
    i, j, r = vesin.NeighborList(cutoff=9.0, full_list=True).compute(atoms.positions, atoms.cell.array, True, "ijd")
    points = energy - (q**2).sum() / (np.sqrt(2 * np.pi) * s) + 0.5 * (q[i] * q[j] * erfc(r / np.sqrt(2) / s) / r).sum()
    assert points == pytest.approx(-madelung * charge**2 / r.min(), rel=1e-7)
    assert_allclose(forces, 0, atol=1e-10)


def test_a_cluster_is_a_crystal_in_a_large_box_and_a_crystal_is_extensive() -> None:
    cluster = _systems()["cluster"]
    alone = _energy(cluster)
    alone_in_a_box = []
    for length in (30.0, 60.0):
        cluster.set_cell(np.eye(3) * length)
        cluster.pbc = True
        alone_in_a_box.append(_energy(cluster))
    assert abs(alone_in_a_box[1] - alone) < 0.2 * abs(alone_in_a_box[0] - alone) < 1e-2  # eV; dipoles, as 1 / volume
    crystal = _systems()["skewed"]
    crystal.calc = CoulombCalculator()
    double = crystal.repeat((2, 1, 3))
    double.calc = CoulombCalculator()
    assert double.get_potential_energy() == pytest.approx(6 * crystal.get_potential_energy(), rel=1e-10)
    assert_allclose(double.get_stress(), crystal.get_stress(), atol=1e-10)


def test_charged_planes_attract_each_other_as_the_plates_of_a_capacitor() -> None:
    a, charge = 3.0, 1.0
    for distance in (8.0, 12.0):
        plates = Atoms("NaCl", [[0, 0, 0], [0.7, 1.1, distance]], cell=[a, a, 1.0], pbc=[True, True, False])
        plates.calc = CoulombCalculator(permittivity=1.0)
        assert plates.get_forces()[0, 2] == pytest.approx(2 * np.pi * K * charge**2 / a**2, rel=1e-6)
    far, near = (
        _energy(Atoms("NaCl", [[0, 0, 0], [0, 0, d]], cell=[a, a, 1.0], pbc=[True, True, False])) for d in (12.0, 8.0)
    )
    assert far - near == pytest.approx(4.0 * 2 * np.pi * K / 5.0 * charge**2 / a**2, rel=1e-6)


def test_layers_far_apart_feel_charged_plates_however_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps beyond the vacuum between images are closed: as without that, and no more reciprocal vectors at 10^9 Å."""
    slab = _systems()["slab"]  # two vectors of 5.6 Å
    slab += Atoms("ClNa", [[1.0, 40.0, 2.0], [3.0, 90.0, 1.0]])
    closed = CoulombCalculator()
    energy, forces = closed.get_potential_energy(slab), closed.get_forces(slab)
    monkeypatch.setattr(coulomb, "_VACUUM", 100.0)
    whole = CoulombCalculator()
    assert energy == pytest.approx(whole.get_potential_energy(slab), abs=1e-5)  # eV
    assert_allclose(forces, whole.get_forces(slab), atol=1e-5)  # eV/Å
    assert np.abs(forces[-2:]).max() > 0.1  # something to get wrong
    monkeypatch.undo()
    slab.positions[-1, 1] += 1e9
    assert_allclose(closed.get_forces(slab), forces, atol=1e-5)
    assert closed.get_potential_energy(slab) - energy == pytest.approx(-1e9 * forces[-1, 1], rel=1e-6)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, atoms in _systems().items():
        results = []
        for block in (1, 1 << 21):
            monkeypatch.setattr(coulomb, "_BLOCK", block)
            atoms.calc = CoulombCalculator()
            results.append((atoms.get_potential_energy(), atoms.get_forces()))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-12), name
        assert_allclose(results[0][1], results[1][1], atol=1e-12)


def test_charges_are_formal_and_structures_neutral() -> None:
    by_element = CoulombCalculator().charges
    full, empty = Atoms("Li4Fe2Mn2P4O16"), Atoms("Fe2Mn2P4O16")
    assert set(ion_charges(full.numbers, by_element)[4:8]) == {2.0}
    assert set(ion_charges(empty.numbers, by_element)[:4]) == {3.0}
    assert_allclose(ion_charges(Atoms("O2").numbers, by_element), 0)  # shared by all
    assert_allclose(ion_charges(Atoms("Cu3Au").numbers, by_element), 0)
    own = make_calculator("coulomb", {"Fe": 3, "S": -2, "O": -1.5, "permittivity": 2.0})
    assert isinstance(own, CoulombCalculator)
    assert (own.charges[26], own.charges[16], own.charges[8], own.charges[3]) == (3.0, -2.0, -1.5, 1.0)
    assert own.permittivity == 2.0
    assert _energy(full[:1]) == 0.0
    with pytest.raises(ConfigError, match="'Ox' is no element; settings are smearing, permittivity and charges"):
        make_calculator("coulomb", {"Ox": -2})
    with pytest.raises(ConfigError, match=r"smearing is 0\.3 Å at least"):
        make_calculator("coulomb", {"smearing": 0.0})
    for wrong in (float("nan"), True):
        with pytest.raises(ConfigError, match=f"setting Fe should be a (finite )?number, found {wrong}"):
            make_calculator("coulomb", {"Fe": wrong})
        with pytest.raises(ValueError, match=rf"charges are numbers \(of e\), not Fe: {wrong}"):
            CoulombCalculator({"Fe": wrong})
    with pytest.raises(ValueError, match="permittivity positive, not inf"):
        CoulombCalculator(smearing=float("inf"))
    with pytest.raises(DataError, match="one periodic direction is not covered"):
        Baseline("coulomb", own).labels(Atoms("NaCl", [[0, 0, 0], [0, 0, 2.5]], cell=[5, 5, 5], pbc=[1, 0, 0]))


@pytest.fixture(scope="module")
def salt() -> FrameSet:
    """Rock salt of point charges, screened, and a short repulsion: what lies beyond the cutoff is electrostatics."""

    def labelled(seed: int) -> Atoms:
        atoms = _rocksalt(2 if seed % 2 else 1, seed, 0.12)
        atoms.calc = CoulombCalculator(permittivity=2.5, smearing=0.8)
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        search = vesin.NeighborList(cutoff=4.5, full_list=True)
        i, r, d = search.compute(atoms.positions, atoms.cell.array, True, "idD")
        inside = (1.0 - (r / 4.5) ** 2) ** 3
        core = 500.0 * np.exp(-r / 0.35) * inside
        slope = -core / 0.35 - 500.0 * np.exp(-r / 0.35) * 6.0 * r / 4.5**2 * (1.0 - (r / 4.5) ** 2) ** 2
        energy += 0.5 * core.sum()
        np.add.at(forces, i, (slope / r)[:, None] * d)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        return atoms

    return read_frames({"dft": [labelled(seed) for seed in range(16)]})


def test_a_fit_over_it_predicts_ions_better(salt: FrameSet) -> None:
    train, test = FrameSet(("dft",), salt.frames[:10]), salt.frames[10:]
    errors, coefficients = {}, {}
    for name, baselines in (("without", []), ("with", [{"name": "coulomb"}])):
        config = FitConfig(
            descriptor={"r_cut": 4.0, "n_max": 5, "l_max": 3, "sigma": 0.5, "radial_scaling": {"r0": 1.5, "m": 3}},
            model={"zeta": 2, "n_inducing": 150},
            baselines=baselines,
            training={"calibrate": False, "max_iterations": 40},
        )
        model = MultiFidelityGP.fit(train, config, progress=False)
        found = [model.predict(f.atoms, "dft", uncertainty="none").forces - f.forces for f in test]
        errors[name] = np.sqrt(np.mean([np.mean(d**2) for d in found]))
        coefficients[name] = model.hyperparameters()["baselines"]["dft"]
    assert coefficients["with"]["coulomb"] == pytest.approx(2.0, rel=0.1)  # 5 for a permittivity of 2.5
    assert errors["with"] < 0.5 * errors["without"]  # eV/Å

"""Errors of energies that follow the cell: found where there are some, and wrong labels beside them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ase import Atoms
from conftest import alloy, label
from numpy.testing import assert_allclose
from test_doctor_fit import CONFIG, data

from mfgp import FrameSet, MultiFidelityGP, read_frames
from mfgp.doctor.cell_errors import ALIKE, Array, CellErrors, Energies, _strains, cell_errors, without_doubtful
from mfgp.doctor.fit import label_scores, scores_and_cells
from mfgp.doctor.rounds import scores_without_suspects

ERRORS = CellErrors(std=0.8, strain=0.05)


def frames_of(structures: list[Atoms]) -> FrameSet:
    return read_frames({"low": [label(a, "low") for a in structures]})


def test_strains_between_cells() -> None:
    plain = alloy(0, rattle=0.0)
    wider, turned, box = plain.copy(), plain.copy(), plain.copy()
    wider.set_cell(1.03 * plain.cell.array, scale_atoms=True)
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    box.pbc = (True, True, False)
    found = _strains(frames_of([plain, wider, turned, box]).frames)
    assert_allclose(found[0, :3], [0.0, np.sqrt(3) * np.log(1.03), 0.0], rtol=0, atol=1e-7)
    assert_allclose(found, found.T, rtol=0, atol=1e-7)
    assert np.isinf(found[3]).all()


def matern(distance: Array) -> Array:
    return (1.0 + 3**0.5 * distance) * np.exp(-(3**0.5) * distance)


def conditional(covariance: Array, values: Array, one: int, given: list[int]) -> tuple[float, float]:
    """Mean and variance of a normal variable with others given."""
    weights = np.linalg.solve(covariance[np.ix_(given, given)], covariance[given, one])
    return float(weights @ values[given]), float(covariance[one, one] - weights @ covariance[given, one])


@pytest.mark.parametrize("errors", [None, ERRORS])
def test_left_out_energies_are_those_of_the_dense_formula(errors: CellErrors | None) -> None:
    """A linear model with unit prior: other labels, nine energies that were seen, and two that were not."""
    rng = np.random.default_rng(1)
    frames = frames_of([alloy(i) for i in range(11)]).frames
    seen = np.array([True] * 9 + [False] * 2)
    others, rows = rng.normal(size=(30, 12)), 1.5 * rng.normal(size=(11, 12))  # in units of the noise
    noise = rng.uniform(0.5, 2.0, 11)
    strain = _strains(frames)
    scale = 0.0 if errors is None else errors.std / noise
    smooth = np.outer(scale, scale) * matern(strain / ERRORS.strain)
    y = rng.normal(size=41) * 3.0
    design = np.concatenate([others, rows])
    dense = design @ design.T + np.eye(41)
    dense[30:, 30:] += smooth
    learned = design[:39]
    precision = np.eye(12) + learned.T @ learned
    turned = rows @ np.linalg.inv(np.linalg.cholesky(precision)).T
    residual = y[30:] - rows @ np.linalg.solve(precision, learned.T @ y[:39])
    group = Energies(frames, turned @ turned.T, residual, np.zeros(11), noise, np.full(11, 1e-9), seen, strain)
    error, variance = group.left_out(errors)
    for k in range(11):
        given = [i for i in range(39) if i != 30 + k]
        mean, var = conditional(dense, y, 30 + k, given)
        assert_allclose([error[k], variance[k]], [y[30 + k] - mean, var], rtol=1e-9, atol=0)
    out = np.arange(11) == 3
    again = Energies.left_out(group.without(out), errors)
    mean, var = conditional(dense, y, 35, [i for i in range(39) if i not in (33, 35)])
    assert_allclose([again[0][5], again[1][5]], [y[35] - mean, var], rtol=1e-9, atol=0)
    mean, var = conditional(dense, y, 33, [i for i in range(39) if i != 33])
    assert_allclose([again[0][3], again[1][3]], [y[33] - mean, var], rtol=1e-9, atol=0)


def test_amplitude_and_strain_are_learned() -> None:
    """From energies that others tell up to their noise; of noise alone, of any size, nothing is."""
    rng = np.random.default_rng(2)
    frames = frames_of([alloy(i) for i in range(60)]).frames
    strain = _strains(frames)
    smooth = np.linalg.cholesky(matern(strain / 0.08) + 1e-9 * np.eye(60)) @ rng.normal(size=60)

    def group(y: Array) -> Energies:
        return Energies(
            frames, np.zeros((60, 60)), y, np.zeros(60), np.full(60, 0.01), np.zeros(60), np.ones(60, bool), strain
        )

    noise = rng.normal(size=60)
    assert cell_errors([group(3.0 * noise)]) is None
    found = cell_errors([group(noise + 5.0 * smooth)])
    assert found is not None
    assert found.std == pytest.approx(0.05, rel=0.5)  # eV per sqrt(atom)
    assert found.strain == pytest.approx(0.08, rel=0.4)
    spoiled = noise + 5.0 * smooth
    spoiled[7] += 60.0
    (clear,) = without_doubtful([group(spoiled)])
    assert not clear.seen[7]
    assert clear.seen.sum() > 55
    alike = Energies(**{**vars(group(noise + 5.0 * smooth)), "strain": np.full((60, 60), 0.5 * ALIKE)})
    assert cell_errors([alike]) is None


def of_too_few_k_points(atoms: Atoms) -> float:
    """A smooth function of the cell, eV."""
    return float(0.015 * np.sin(atoms.cell.lengths() @ [4.0, 3.0, 2.0]))


def test_a_wrong_energy_is_found_beside_errors_of_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, though it is no larger than these; without them in the account it is not."""
    frames = data()
    frames["low"] += [label(alloy(100 + i, rattle=0.08), "low") for i in range(60)]
    for atoms in frames["low"]:
        atoms.info["REF_energy"] += of_too_few_k_points(atoms)
    frames["low"][7].info["REF_energy"] += 0.015
    read = read_frames(frames)
    model = MultiFidelityGP.fit(read, CONFIG, progress=False)
    wrong = read.of("low")[7]
    scoring = scores_without_suspects(model, read, rounds=0)
    assert [s.frame for s in scoring.scores if s.kind == "energy" and s.suspect] == [wrong]
    assert set(scoring.cells) == {"low"}
    (finding,) = [f for f in scoring.findings() if f.check == "errors by cell"]
    ((rest, plain),) = re.findall(
        r"'low': .* to (0\.\d+) eV in 4 atoms, from the model alone to (0\.\d+)\.", finding.message
    )
    with_them = [
        s.error for s in scoring.scores if s.kind == "energy" and s.frame.fidelity == "low" and s.frame is not wrong
    ]
    assert float(rest) == pytest.approx(np.sqrt(np.mean(np.square(with_them))), rel=0.1)
    monkeypatch.setattr("mfgp.doctor.fit.cell_errors", lambda groups: None)
    every = label_scores(model, read)
    (without,) = [s for s in every if s.kind == "energy" and s.frame is wrong]
    assert not without.suspect
    others = [s.error for s in every if s.kind == "energy" and s.frame.fidelity == "low" and s.frame is not wrong]
    assert float(plain) == pytest.approx(np.sqrt(np.mean(np.square(others))), rel=0.1)
    assert float(rest) < 0.6 * float(plain)


def test_good_energies_have_none() -> None:
    read = read_frames(data())
    model = MultiFidelityGP.fit(read, CONFIG, progress=False)
    scores, cells = scores_and_cells(model, read)
    assert not cells
    assert {(s.kind, s.frame.fidelity) for s in scores} == {
        (s.kind, s.frame.fidelity) for s in label_scores(model, read)
    }

"""Selection: gains against refitted posteriors, directions against exact rows, and how good a batch is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import alloy, label
from numpy.testing import assert_allclose
from scipy.stats import spearmanr

from mfgp import FitConfig, FrameSet, MultiFidelityGP, read_frames
from mfgp.calibration.composition_scatter import Composition, CompositionScatter, fractions
from mfgp.data.costs import CostModel
from mfgp.gp.kernels import n_functionals
from mfgp.selection import directional
from mfgp.selection import greedy as selection
from mfgp.selection.directional import directional_rows
from mfgp.selection.gains import condition, cross_level_covariance, gain
from mfgp.selection.greedy import Search, select
from mfgp.selection.targets import build_target

COSTS = CostModel.fixed({"low": 0.01, "high": 0.03})
CALM = [alloy(300 + i, rattle=0.06) for i in range(8)]


@pytest.fixture(scope="module")
def pool() -> list[Atoms]:
    return [alloy(200 + i, rattle=0.05 + 0.02 * (i % 8)) for i in range(24)]


def exact_variance(model: MultiFidelityGP, structures: Sequence[Atoms], level: str) -> float:
    """Mean variance of the forces (eV^2/Å^2) as `predict` gives it."""
    return float(np.mean(np.concatenate([model.predict(a, level).forces_std.ravel() ** 2 for a in structures])))  # type: ignore


def updated(model: MultiFidelityGP, atoms: Atoms, level: str) -> MultiFidelityGP:
    """The model with one more calculation of made-up labels: its variances are those of any labels."""
    return copy.copy(model).update({level: [label(atoms, level)]})


def search(model: MultiFidelityGP, pool: Sequence[Atoms], weights: dict[str, float] | None = None) -> Search:
    aim = build_target(model, 1, pool, weights or {"forces": 1.0})
    return Search(model.predictor("high"), pool, model.levels, aim, np.ones((len(pool), 2)), seed=0)


def test_directions_are_those_of_the_exact_rows(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    v = torch.from_numpy(np.random.default_rng(3).standard_normal((8, 3, 2)))
    rows = directional_rows(model.features, pool[:2], v, with_prior=True)
    assert rows.prior is not None
    for i, atoms in enumerate(pool[:2]):
        exact = model.features.functionals(atoms)
        forces = torch.einsum("axm,axk->km", exact.phi[1:-6].view(4, 3, -1), v[4 * i : 4 * i + 4])
        assert float(forces.abs().max()) > 0.1
        assert_allclose(rows.forces[i].numpy(), forces.numpy(), rtol=0, atol=1e-4)
        assert_allclose(rows.energy[i].numpy(), exact.phi[0].numpy(), rtol=0, atol=1e-10)
        assert_allclose(rows.prior[i, 0].numpy(), exact.prior[0].numpy(), rtol=1e-9)


def test_prior_variance_along_a_direction(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    """One atom moved along one axis: the prior variance of that force component."""
    v = torch.zeros(4, 3, 1, dtype=torch.float64)
    v[2, 1, 0] = 1.0
    prior = directional_rows(model.features, pool[:1], v, with_prior=True).prior
    assert prior is not None
    assert_allclose(prior[0, 1].numpy(), model.features.functionals(pool[0]).prior[1 + 3 * 2 + 1].numpy(), rtol=1e-5)


@pytest.mark.parametrize("level", ["low", "high"])
def test_gain_is_what_an_update_does(model: MultiFidelityGP, pool: list[Atoms], level: str) -> None:
    """Forces, energy and stress of one calculation, against the variances of the updated model."""
    u, s = model.level(level), search(model, pool[:6])
    joint = cross_level_covariance(model.posterior(), model.features.centre)
    design = torch.cat([model.features.rows(pool[7]), model.predictor("high").columns_of(pool[7])], dim=1)
    rows = design[1:-6]  # all forces of another structure as the target
    projected = joint[:, 1] @ rows.T
    labelled = s.labelled(3, u)
    assert len(labelled) == 1 + 3 * 4 + 6
    expected = gain(joint, labelled, u, projected[u])
    before, after = (float(((rows @ m.covariances[1]) * rows).sum()) for m in (model, updated(model, pool[3], level)))
    assert before - after > 0.01 * before
    assert_allclose(expected, before - after, rtol=1e-6)


def test_gain_with_a_baseline_and_cells_of_two_sizes(two_levels: FrameSet, config: FitConfig) -> None:
    """The coefficient of the baseline is one of the weights that a calculation teaches."""
    settings = config.model_dump(exclude={"fidelities"}) | {
        "baselines": [{"name": "zbl", "settings": {"r_outer": 3.5}}]
    }
    model = MultiFidelityGP.fit(two_levels, FitConfig(**settings), progress=False)
    pool = [alloy(400, rattle=0.1), alloy(401, repeat=2, rattle=0.1), alloy(402, rattle=0.2)]
    s = search(model, pool)
    for i in (0, 1):
        rows = torch.cat([model.features.rows(pool[2]), model.predictor("high").columns_of(pool[2])], dim=1)[1:-6]
        assert float(rows[:, model.basis.size :].abs().max()) > 1e-3  # eV/Å: the baseline acts
        before, after = (((rows @ m.covariances[1]) * rows).sum() for m in (model, updated(model, pool[i], "high")))
        expected = gain(s.covariance, s.labelled(i, 1), 1, s.covariance[1, 1] @ rows.T)
        assert float(before - after) > 0.01 * float(before)
        assert_allclose(expected, float(before - after), rtol=1e-6)
    estimates = s.candidates.estimated_gains(s.noise)
    exact = [gain(s.covariance, s.labelled(i, 1), 1, s.projected[1]) for i in range(3)]
    assert int(estimates[:, 1].argmax()) == int(np.argmax(exact)) == 1  # the larger cell teaches most


def test_conditioning_is_the_updated_posterior(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    s = search(model, pool[:6])
    condition(s.covariance, s.labelled(2, 0), 0)
    expected = cross_level_covariance(updated(model, pool[2], "low").posterior(), model.features.centre)
    # the labels here have next to no noise: rounding of the sums times a condition number of 3e9
    assert_allclose(s.covariance.numpy(), expected.numpy(), rtol=0, atol=1e-6 * float(expected.abs().max()))


def deviations(model: MultiFidelityGP, pool: Sequence[Atoms], weights: dict[str, float]) -> dict[str, np.ndarray]:
    """Squared deviations of the target of 60 seeds: each takes 32 random directions of each of 8 structures."""
    found = []
    for seed in range(60):
        aim = build_target(model, 1, pool, weights, seed)
        found.append(aim.deviations(((aim.rows @ model.covariances[1]) * aim.rows).sum(1)))
    return {name: np.square([f[name] for f in found]) for name in weights}


def agrees_in_the_mean(found: np.ndarray, expected: float) -> None:
    error = found.std() / len(found) ** 0.5
    assert error < 0.03 * expected
    assert abs(found.mean() - expected) < 3 * error


def test_the_target_is_what_predict_says(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    """What no data take away (the inducing points' residual) included."""
    found = deviations(model, CALM, {"forces": 1.0, "energy": 5.0})
    agrees_in_the_mean(found["forces"], exact_variance(model, CALM, "high"))
    per_atom = [model.predict(a, "high").energy_std / len(a) for a in CALM]  # type: ignore
    assert_allclose(found["energy"], np.mean(np.square(per_atom)), rtol=1e-6)


def test_calibrated_targets_are_calibrated(two_levels: FrameSet, config: FitConfig, pool: list[Atoms]) -> None:
    training = config.training.model_copy(update={"calibrate": True})
    calibrated = MultiFidelityGP.fit(two_levels, config.model_copy(update={"training": training}), progress=False)
    assert calibrated.calibration is not None
    wide = CompositionScatter(1.0, (Composition(fractions(CALM[0].numbers), 100, 4.0),))
    calibrated.calibration = replace(  # novelty is not part of a target
        calibrated.calibration,
        novelty=(),
        energy_novelty=(),
        energy_scatter=(CompositionScatter(), wide),
        force_scatter=(CompositionScatter(), wide),
    )
    found = deviations(calibrated, CALM, {"forces": 2.0, "energy": 1.0})
    agrees_in_the_mean(found["forces"], exact_variance(calibrated, CALM, "high"))
    per_atom = [calibrated.predict(a, "high").energy_std / len(a) for a in CALM]  # type: ignore
    assert_allclose(found["energy"], np.mean(np.square(per_atom)), rtol=1e-6)


def test_estimates_rank_as_exact_gains_do(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    s = search(model, pool)
    estimates = s.candidates.estimated_gains(s.noise)
    for u in (0, 1):
        exact = [gain(s.covariance, s.labelled(i, u), u, s.projected[u]) for i in range(len(pool))]
        assert spearmanr(estimates[:, u], exact)[0] > 0.8


def test_estimates_follow_the_choices(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    """Traces and gains updated choice by choice are those of a search begun with the conditioned covariance."""
    s = search(model, pool)
    first = s.candidates.estimated_gains(s.noise)
    for rank in (1, 2, 3):
        s.take(*s.best(np.inf), rank)  # type: ignore[misc]
    fresh = search(model, pool)
    variances = (fresh.target.rows @ s.covariance[1, 1] * fresh.target.rows).sum(1)
    assert_allclose(s.variances.numpy(), variances.numpy(), rtol=0, atol=1e-9 * float(fresh.variances.max()))
    c = s.candidates
    for place in (0, 1):
        trace = ((c.forces @ s.covariance[place, place]) * c.forces).sum(2).mean(1)
        assert_allclose(c.force_trace[:, place].numpy(), trace.numpy(), rtol=0, atol=1e-8 * float(trace.max()))
        projected = c.energy @ s.covariance[place, 1] @ fresh.target.rows.T
        assert_allclose(c.energy_gain[:, place].numpy(), projected.numpy(), rtol=0, atol=1e-9)
    assert float((c.estimated_gains(s.noise) / first).max()) < 1.0


def test_a_batch_is_greedy_and_its_forecast_comes_true(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    batch = select(model, pool, "high", COSTS, n=4)
    stds = [batch.std_before, *(c.std_after for c in batch.choices)]
    assert [c.rank for c in batch.choices] == [1, 2, 3, 4]
    assert all(b < a for a, b in pairwise(stds))
    after = model
    for c in batch.choices:
        after = updated(after, pool[c.index], c.level)
    expected = stds[-1] ** 2 / stds[0] ** 2
    assert_allclose(exact_variance(after, pool, "high") / exact_variance(model, pool, "high"), expected, rtol=0.1)


def test_a_batch_beats_chance(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    def after(chosen: Sequence[int]) -> float:
        out = model
        for i in chosen:
            out = updated(out, pool[i], "high")
        return exact_variance(out, pool, "high")

    batch = select(model, pool, "high", COSTS, n=3, levels=["high"])
    rng = np.random.default_rng(1)
    random = [after(rng.permutation(len(pool))[:3].tolist()) for _ in range(8)]
    assert after([c.index for c in batch.choices]) < min(random)


def test_the_same_seed_gives_the_same_batch(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    a, b = (select(model, pool, "high", COSTS, n=3, seed=5) for _ in range(2))
    assert a == b


def test_large_pools_are_pruned(model: MultiFidelityGP, pool: list[Atoms], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(model, pool)
    best = set(whole._rates(whole.candidates).max(1).values.argsort(descending=True)[:6].tolist())
    monkeypatch.setattr(selection, "KEEP", 6)
    monkeypatch.setattr(directional, "BATCH_ATOMS", 20)
    monkeypatch.setattr(selection, "DIRECTIONS", (64, 64))
    assert len(best & set(search(model, pool).candidates.index.tolist())) >= 4


def test_energies_as_the_target(model: MultiFidelityGP, pool: list[Atoms]) -> None:
    batch = select(model, pool, "high", COSTS, n=2, weights={"energy": 1.0})
    per_atom = [model.predict(a, "high").energy_std / len(a) for a in pool]  # type: ignore
    assert_allclose(batch.std_before, np.sqrt(np.mean(np.square(per_atom))), rtol=1e-6)


def test_a_level_teaches_what_it_has_labels_of(two_levels: FrameSet, config: FitConfig, pool: list[Atoms]) -> None:
    """A high level of energies alone (a coupled-cluster case) is not credited with forces, nor a low one without stress."""
    frames = []
    for f in two_levels.training():
        atoms = label(f.atoms, f.fidelity)
        for name in ("REF_forces",) if f.fidelity == "high" else ():
            del atoms.arrays[name]
        del atoms.info["REF_stress"]
        frames.append(atoms)
    energies = MultiFidelityGP.fit(read_frames(frames, levels=["low", "high"]), config, progress=False)
    s = search(energies, pool)
    assert len(s.labelled(0, 0)) == 1 + 3 * 4
    assert len(s.labelled(0, 1)) == 1
    estimates = s.candidates.estimated_gains(s.noise)
    exact = [gain(s.covariance, s.labelled(i, 1), 1, s.projected[1]) for i in range(len(pool))]
    assert_allclose(estimates[:, 1], exact, rtol=1e-6)  # of one row the estimate is exact


def test_few_targets_are_looked_at_along_several_directions(model: MultiFidelityGP) -> None:
    """The target of one structure hardly depends on the seed."""
    found = deviations(model, CALM[:1], {"forces": 1.0})["forces"]
    agrees_in_the_mean(found, exact_variance(model, CALM[:1], "high"))
    assert found.std() < 0.25 * found.mean()


def test_the_rows_that_are_kept_are_bounded(
    model: MultiFidelityGP, pool: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 8.0 * 19 * (model.basis.size + 2)
    monkeypatch.setattr(selection, "CACHE_BYTES", 3.5 * one)
    s = search(model, pool)
    for i in range(10):
        s.labelled(i, 1)
    assert len(s.rows) == 3


def test_rows_are_made_once_where_memory_allows(
    model: MultiFidelityGP, pool: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four structures, room for two: a miss makes one, and forgets another."""
    state, made, rows = search(model, pool), [], type(model.features).rows
    state.rows.clear()
    monkeypatch.setattr(type(model.features), "rows", lambda self, atoms: made.append(len(made)) or rows(self, atoms))
    size = 8.0 * n_functionals(len(pool[0])) * model.weights.shape[1]
    monkeypatch.setattr(selection, "CACHE_BYTES", 2.5 * size)
    state._expand([0, 1, 2, 3])
    assert sorted(state.rows) == [0, 1]
    for index, expected in ((0, 2), (1, 2), (2, 3), (3, 4), (2, 4)):
        state.labelled(index, 0)
        assert len(made) == expected
        assert len(state.rows) <= 2

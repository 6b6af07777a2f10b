"""Pivoted Cholesky selection of inducing environments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import alloy, label
from numpy.testing import assert_allclose

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.errors import NumericalError
from mfgp.fit.features import COPIES, candidates
from mfgp.gp import inducing
from mfgp.gp.inducing import build_basis, cholesky, select_inducing
from mfgp.gp.observations import local_features

ZETA = 2


def environments(n: int = 60, width: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.rand(n, width, dtype=torch.float64, generator=generator)
    return q / q.norm(dim=1, keepdim=True), torch.tensor([6, 8, 8])[torch.arange(n) % 3]


def test_each_choice_has_the_largest_conditional_variance() -> None:
    features, numbers = environments()
    basis = select_inducing(features, numbers, 12, ZETA, seed=1)
    picked = [(z, p) for (i, _), z in zip(basis.blocks(), basis.species, strict=True) for p in basis.points[i]]
    picked = [picked[i] for i in torch.argsort(basis.rank).tolist()]
    chosen: list[int] = [int((features == p).all(1).nonzero()[0, 0]) for _, p in picked]
    k = ((features @ features.T) ** ZETA * (numbers[:, None] == numbers[None])).numpy()
    for m in range(2, 12):  # the first of each species is free
        known = chosen[:m]
        explained = np.einsum("im,mi->i", k[:, known], np.linalg.solve(k[np.ix_(known, known)], k[known]))
        conditional = np.diag(k) - explained
        assert_allclose(conditional[chosen[m]], conditional.max(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("block", [1, 2, 5, 16])
def test_blocks_choose_what_single_steps_choose(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, numbers = environments(90)
    expected = select_inducing(features, numbers, 40, 3)  # all candidates are in one block
    monkeypatch.setattr(inducing, "BLOCK", block)
    found = select_inducing(features, numbers, 40, 3)
    assert torch.equal(found.rank, expected.rank)
    assert all(torch.equal(a, b) for a, b in zip(found.points, expected.points, strict=True))


def test_factors_whiten_the_inducing_kernel() -> None:
    basis = select_inducing(*environments(), 10, ZETA)
    for points, factor in zip(basis.points, basis.factors, strict=True):
        assert_allclose((factor @ factor.T).numpy(), ((points @ points.T) ** ZETA).numpy(), rtol=0, atol=1e-12)


def test_complete_set_reproduces_the_kernel() -> None:
    features, numbers = environments()
    basis = select_inducing(features, numbers, len(features), ZETA)
    phi = local_features(basis, features, numbers)
    exact = (features @ features.T) ** ZETA * (numbers[:, None] == numbers[None])
    assert_allclose((phi @ phi.T).numpy(), exact.numpy(), rtol=0, atol=1e-8)


def test_a_prefix_is_the_smaller_selection() -> None:
    features, numbers = environments()
    large, small = (select_inducing(features, numbers, m, ZETA, seed=4) for m in (20, 9))
    keep = large.rank < 9
    phi = local_features(large, features, numbers)[:, keep]
    assert_allclose(phi.numpy(), local_features(small, features, numbers).numpy(), rtol=0, atol=1e-9)


def test_same_seed_same_set_and_other_seed_other_start() -> None:
    features, numbers = environments()
    one, two, other = (select_inducing(features, numbers, 5, ZETA, seed=s) for s in (0, 0, 7))
    assert all(torch.equal(a, b) for a, b in zip(one.points, two.points, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one.points, other.points, strict=True))


def test_more_points_than_environments_uses_the_distinct_ones() -> None:
    features, numbers = environments(12)
    basis = select_inducing(torch.cat([features, features]), torch.cat([numbers, numbers]), 500, zeta=4)
    assert basis.size == 12


def test_every_species_gets_a_point() -> None:
    features, numbers = environments(30)
    numbers[0] = 26
    assert select_inducing(features, numbers, 3, ZETA).species == (6, 8, 26)


def test_jitter_is_reported_and_bounded() -> None:
    points = torch.ones(3, 2, dtype=torch.float64) / 2**0.5
    basis = build_basis((6,), (points,), torch.arange(3), ZETA)
    assert 0 < basis.jitter <= 1e-8
    with pytest.raises(NumericalError, match="fewer inducing points"):
        cholesky(-torch.eye(2, dtype=torch.float64), "K_MM")


@pytest.mark.parametrize("counts", [(1, 50), (40, 300)])
def test_a_species_that_is_used_up_gives_no_more(counts: tuple[int, int]) -> None:
    """All candidates of one species are taken before those of the other."""
    generator = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(sum(counts), 400, generator=generator, dtype=torch.float64), dim=1)
    numbers = torch.tensor([1] * counts[0] + [8] * counts[1])
    for n in (sum(counts), sum(counts) + 7):
        assert [len(p) for p in select_inducing(q, numbers, n, 4).points] == list(counts)


def test_rattled_copies_are_offered_where_environments_are_few() -> None:
    frames = [label(alloy(i), "low") for i in range(5)]  # 20 environments
    silent = alloy(9)
    silent.info["REF_energy"] = 1.0  # without forces
    atom = Atoms("Cu", info={"REF_energy": 3.5})
    read = read_frames({"low": [*frames, silent, atom], "high": [label(alloy(0), "high")]})

    def offered(m: int, seed: int = 0) -> list[Atoms]:
        return candidates(read, FitConfig(model={"n_inducing": m}, seed=seed))

    assert [len(offered(m)) for m in (10, 25, 26, 45, 46, 1000)] == [7, 7, 12, 12, 17, 22]
    copies = offered(1000)[7:12]
    for copy, frame in zip(copies, frames, strict=True):
        moved = copy.positions - frame.positions
        assert 0.02 < np.sqrt((moved**2).mean()) < 0.1
        np.testing.assert_array_equal(copy.numbers, frame.numbers)
    for again, same in ((offered(1000), True), (offered(1000, seed=1), False)):
        assert np.array_equal(again[8].positions, copies[1].positions) == same


def test_few_structures_are_learned_from_by_more_points_than_they_have_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces are three labels an atom; 96 environments alone leave most of what they say to the noise."""
    frames = read_frames({"low": [label(alloy(i), "low") for i in range(24)]})
    tests = [label(alloy(900 + i), "low") for i in range(8)]
    config = FitConfig(
        descriptor={"r_cut": 4.5, "n_max": 6, "l_max": 4, "sigma": 0.5},
        model={"zeta": 2, "n_inducing": 400},
        training={"calibrate": False},
    )
    errors = []
    for copies in (0, COPIES):
        monkeypatch.setattr("mfgp.fit.features.COPIES", copies)
        model = MultiFidelityGP.fit(frames, config, progress=False)
        assert model.basis.size == (96 if copies == 0 else 384)
        found = [model.predict(a, uncertainty="none").forces - a.arrays["REF_forces"] for a in tests]
        errors.append(np.sqrt(np.mean(np.square(found))))
    assert errors[1] < 0.5 * errors[0]

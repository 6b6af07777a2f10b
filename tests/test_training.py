"""The search for the largest evidence."""

from __future__ import annotations

import pytest
import torch

from mfgp.gp.hyperparameters import AutoregressiveGP, Evidence, LevelNoise
from mfgp.gp.statistics import Statistics
from mfgp.gp.training import initialise, maximise_evidence

FEATURES = 20
NOISE = 0.015  # eV/Å, of the forces


def alike_environments(seed: int, decades: float, noise: float = NOISE) -> tuple[Statistics, float]:
    """36 energies, 1700 force components and 200 virials of features that fall off by `decades`, as those of a crystal's
    dynamics do, with noise of the forces (eV/Å); and the rms of the weights that they are made of (eV)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    size = 10 ** torch.linspace(0, -decades, FEATURES, dtype=torch.float64)
    weights, rows = 2.0 * normal(FEATURES), {}
    for kind, n, scale, sigma in (
        ("energy", 36, 0.15, noise / 15),
        ("forces", 1700, 0.4, noise),
        ("virial", 200, 2.0, 2 * noise),
    ):
        a = torch.zeros(n, FEATURES + 1, dtype=torch.float64)  # the last column: e0
        a[:, :FEATURES] = scale * normal(n, FEATURES) * size
        a[:, FEATURES] = float(kind == "energy")
        rows[kind] = (a, a[:, :FEATURES] @ weights + sigma * normal(n))
    statistics = Statistics(FEATURES + 1)
    statistics.add(0, rows)
    return statistics, weights.square().mean().sqrt().item()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("decades", [3.0, 4.0])
def test_amplitude_and_noise_are_those_of_the_data(seed: int, decades: float) -> None:
    """A first step to the corner of the bounds ended at 1200 - 1700 eV, 160 - 280 nats below, in two of eight draws each."""
    statistics, drawn = alike_environments(seed, decades)
    prior, noise = AutoregressiveGP(1, (29,), 2, "scalar"), LevelNoise(1, (0.005, 0.05, 0.05), 0.1)
    initialise(prior, noise, statistics, FEATURES)
    species, std = torch.zeros(FEATURES, dtype=torch.long), torch.full((1, 1), 10.0, dtype=torch.float64)
    maximise_evidence(Evidence(noise, prior), statistics, species, std, 100)
    assert prior.scale.item() == pytest.approx(drawn, rel=0.4)  # 20 weights tell it to 16 %
    assert noise.noise[0].tolist() == pytest.approx([NOISE / 15, NOISE, 2 * NOISE], rel=0.4)


@pytest.mark.parametrize("first", [0.05, 1e-3, 1e-5])
def test_noise_that_is_far_from_where_the_search_begins(first: float) -> None:
    """A gradient of 10^5 nats and more at the start: units of the objective, in place of those of the parameters, let the
    search stop anywhere within 10^-7 of them."""
    statistics, _ = alike_environments(0, 3.0, noise=0.5)
    prior, noise = AutoregressiveGP(1, (29,), 2, "scalar"), LevelNoise(1, (first / 10, first, first), 0.1)
    initialise(prior, noise, statistics, FEATURES)
    species, std = torch.zeros(FEATURES, dtype=torch.long), torch.full((1, 1), 10.0, dtype=torch.float64)
    found = maximise_evidence(Evidence(noise, prior), statistics, species, std, 100)
    assert found.converged
    assert noise.noise[0].tolist() == pytest.approx([0.5 / 15, 0.5, 1.0], rel=0.4)

"""Labels that look like a slip are told: by a fit, from what all others say of them."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from conftest import alloy, label

from mfgp import FitConfig, MultiFidelityGP, read_frames
from mfgp.scores import bulk

CONFIG = FitConfig(
    descriptor={"r_cut": 4.0, "n_max": 4, "l_max": 3, "sigma": 0.5}, model={"zeta": 2, "n_inducing": 100}
)


def labelled(level: str) -> list[Atoms]:
    return [label(alloy(i), level) for i in range(20)]


def fit(low: list[Atoms], high: list[Atoms]) -> MultiFidelityGP:
    return MultiFidelityGP.fit(read_frames({"low": low, "high": high}), CONFIG, progress=False)


def test_good_labels_are_not_suspected() -> None:
    assert fit(labelled("low"), labelled("high")).calibration is not None  # pytest raises warnings


def test_an_energy_that_all_others_contradict_is_told() -> None:
    high = labelled("high")
    high[3].info["REF_energy"] += 0.5
    with pytest.warns(UserWarning, match=r"'high': energies of 1 of 20 frames .* frame 3 .* meV/atom off") as told:
        fit(labelled("low"), high)
    assert len(told) == 1


def test_a_force_that_all_others_contradict_is_told() -> None:
    low = labelled("low")
    low[5].arrays["REF_forces"][1] += (0.0, 3.0, -3.0)
    with pytest.warns(UserWarning, match=r"'low': forces of 1 of 20 frames .* frame 5 .* eV/Å off"):
        fit(low, labelled("high"))


def test_the_bulk_is_what_a_normal_distribution_has_and_wrong_labels_do_not_move_it() -> None:
    rng = np.random.default_rng(0)
    for components in (1, 3):
        scores = np.sqrt((rng.normal(0.0, 2.0, (20000, components)) ** 2).mean(1))
        assert bulk(scores, components) == pytest.approx(2.0, rel=0.02)
        scores[:1000] = 1e6
        assert bulk(scores, components) == pytest.approx(2.0, rel=0.1)

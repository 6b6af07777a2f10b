"""Compiled passes of the descriptor against those in tensors, and their parts against what they replace."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.testing import assert_allclose
from sphericart.torch import SolidHarmonics
from systems import SYSTEMS, phosphate, rattled_silicon, water

from descriptors import SOAP, RadialScaling, RadialTable, SkinPairs, SOAPConfig, fit_contraction
from descriptors.compiled import compiled
from descriptors.density import Slots, lay_out
from descriptors.density_kernels import weight_at
from descriptors.lanes import load, spread, spread_from, store, total, workspace
from descriptors.radial import (
    neighbor_weight,
    radial_basis,
    radial_functions,
    radial_functions_with_curvatures,
    radial_functions_with_slopes,
)
from descriptors.soap import environments
from descriptors.solid_harmonics import gradients, recursion, solid_harmonics
from descriptors.streamed import StreamedPass, streamed_pass
from descriptors.table import intervals, quintic

ROOT = Path(__file__).parent.parent
SPECIES = (1, 3, 6, 7, 8, 11, 13, 14, 15, 17, 25, 26, 29, 79)
SETTINGS = {
    "smooth": {"r_cut": 4.0, "n_max": 3, "l_max": 4, "cutoff_width": 0.8},
    "hard": {"r_cut": 4.0, "n_max": 5, "l_max": 2, "cutoff_width": 0.0, "radial_scaling": None},
    "many channels": {"r_cut": 5.0, "n_max": 9, "l_max": 1, "radial_scaling": RadialScaling(r0=1.5, m=2.5)},
    "eight channels": {"r_cut": 4.5, "n_max": 8, "l_max": 6, "sigma": 0.6},
    "no angles": {"r_cut": 3.0, "n_max": 2, "l_max": 0},
}


def in_tensors(soap: SOAP, slots: Slots, species: torch.Tensor, table: RadialTable | None = None) -> StreamedPass:
    pairs = soap.radial_slots(slots, table)
    return streamed_pass(pairs, species, len(soap.species), soap.layout, soap.contraction)


def laid_out(soap: SOAP, atoms: Atoms) -> tuple[Slots, torch.Tensor]:
    env = environments(soap, soap.neighborhoods([atoms]))
    return lay_out(env, len(soap.species)), env.species


def random_like(x: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(x.shape)))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_passes_are_those_in_tensors(name: str, setting: str) -> None:
    atoms = SYSTEMS[name]()
    soap = SOAP(SOAPConfig(**SETTINGS[setting]), SPECIES if setting == "smooth" else sorted(set(atoms.numbers)))
    slots, species = laid_out(soap, atoms)
    forward = soap.expand_slots(slots, species)
    gradient = random_like(forward.features)
    for table, values, slopes in ((soap.table, 1e-12, 1e-12), (None, 1e-11, 1e-9)):  # the same table, and no table
        expected = in_tensors(soap, slots, species, table)
        assert isinstance(expected.coefficients, list)
        assert relative(forward.features, expected.features) < values
        assert relative(forward.pullback(gradient), expected.pullback(gradient)) < slopes
        assert forward.shortest == pytest.approx(expected.shortest, abs=1e-14)
    assert torch.equal(forward.pullback(gradient), soap.expand_slots(slots, species).pullback(gradient))  # every bit


@pytest.mark.parametrize("setting", SETTINGS)
def test_float32_is_close(setting: str) -> None:
    atoms = phosphate()
    soap = SOAP(SOAPConfig(**SETTINGS[setting]), sorted(set(atoms.numbers)))
    slots, species = laid_out(soap, atoms)
    table = RadialTable.of(soap.basis, soap.config, torch.float32)
    double, single = soap.expand_slots(slots, species), soap.expand_slots(slots, species, table)
    gradient = random_like(double.features)
    assert single.features.dtype == torch.float64
    assert 0 < relative(single.features, double.features) < 1e-6
    assert 0 < relative(single.pullback(gradient), double.pullback(gradient)) < 2e-5
    assert relative(single.features, in_tensors(soap, slots, species, table).features) < 2e-6


def test_contracted_channels() -> None:
    atoms, config = phosphate(), SOAPConfig(r_cut=4.0, n_max=4, l_max=3)
    plain = SOAP(config, sorted(set(atoms.numbers)))
    contraction = fit_contraction(plain, [plain.neighborhoods([atoms])], 0.95)
    soap = SOAP(config, plain.species, contraction)
    assert len(set(soap.layout.widths)) > 1  # degrees differ in their channels
    slots, species = laid_out(soap, atoms)
    forward, expected = soap.expand_slots(slots, species), in_tensors(soap, slots, species)
    gradient = random_like(forward.features)
    assert relative(forward.features, expected.features) < 1e-11
    assert relative(forward.pullback(gradient), expected.pullback(gradient)) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reverse_pass_is_the_gradient(dtype: torch.dtype) -> None:
    """Against central differences of a smooth function of q, also with the table in float32 (its own energy's)."""
    atoms = water()
    soap = SOAP(SOAPConfig(**SETTINGS["eight channels"]), (1, 8))
    table = RadialTable.of(soap.basis, soap.config, dtype)
    slots, species = laid_out(soap, atoms)
    gradient = random_like(soap.expand_slots(slots, species).features)
    found = soap.expand_slots(slots, species, table).pullback(gradient)
    step, tolerance = (2e-5, 1e-8) if dtype == torch.float64 else (1e-2, 3e-4)
    numerical = torch.zeros_like(found)
    for slot in range(len(found)):
        for axis in range(3):
            for sign in (1, -1):
                vectors = slots.vectors.clone()
                vectors[slot, axis] += sign * step
                moved = soap.expand_slots(replace(slots, vectors=vectors), species, table)
                numerical[slot, axis] += sign * float((moved.features * gradient).sum()) / (2 * step)
    assert float(found.abs().max()) > 0.1  # 1/Å
    assert_allclose(found, numerical, rtol=0, atol=tolerance)


def test_neighbour_crossing_the_cutoff() -> None:
    """q and its slopes go to those of the pair alone; at the cutoff and beyond it nothing is left of the third atom."""
    soap = SOAP(SOAPConfig(r_cut=4.0, n_max=4, l_max=3, cutoff_width=1.0), (8,))
    pair = soap.features([Atoms("OO", [[0, 0, 0], [1.2, 0.3, 0.1]])])[0]
    for distance, distant in ((3.9, False), (4.0 - 1e-4, True), (4.0, True), (4.0 + 1e-9, True), (4.1, True)):
        atoms = Atoms("OOO", [[0, 0, 0], [1.2, 0.3, 0.1], [0, 0, -distance]])
        pairs = SkinPairs(soap, skin=1.0)(atoms)
        forward = soap.expand_slots(pairs.slots, pairs.species)
        gradient = torch.zeros_like(forward.features)
        gradient[0] = random_like(pair)
        slope = forward.pullback(gradient)[(pairs.centre == 0) & (pairs.neighbor == 2)].abs().max()
        assert (float((forward.features[0] - pair).abs().max()) < 1e-11) == distant
        assert (float(slope) < 1e-6) == distant  # 1/Å


def test_atoms_without_neighbours_and_no_atoms() -> None:
    soap = SOAP(SOAPConfig(**SETTINGS["smooth"]), (1, 8))
    far = Atoms("OHO", [[0, 0, 0], [0, 0, 0.9], [50, 0, 0]])
    slots, species = laid_out(soap, far)
    forward = soap.expand_slots(slots, species)
    assert_allclose(forward.features[2], soap.features([Atoms("O")])[0], rtol=0, atol=1e-14)
    assert forward.shortest == pytest.approx(0.9, abs=1e-14)
    assert soap.expand_slots(*laid_out(soap, Atoms("O"))).shortest == math.inf
    none = soap.expand_slots(*laid_out(soap, Atoms()))
    assert none.features.shape == (0, soap.n_features)
    assert none.pullback(none.features).shape == (0, 3)
    nb = soap.neighborhoods([far])
    contracted = SOAP(soap.config, soap.species, fit_contraction(soap, [nb], 0.95))
    none = contracted.expand_slots(*laid_out(contracted, Atoms()))
    assert none.features.shape == (0, contracted.n_features)
    assert none.pullback(none.features).shape == (0, 3)


def test_distances_that_are_not_numbers_are_told() -> None:
    soap = SOAP(SOAPConfig(**SETTINGS["smooth"]), (14,))
    slots, species = laid_out(soap, rattled_silicon())
    slots.vectors[3, 1] = math.nan
    nb = soap.neighborhoods([rattled_silicon()])
    nb.vectors[3, 1] = math.nan
    with pytest.raises(ValueError, match="not a number"):
        soap.values(nb)
    assert math.isnan(soap.expand_slots(slots, species).shortest)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_table_of_the_radial_functions(settings: dict) -> None:
    config = SOAPConfig(**settings)
    basis = radial_basis(config)
    table = RadialTable.of(basis, config)
    r = torch.linspace(0.0, config.neighbor_cutoff, 3001, dtype=torch.float64)
    exact, slopes = (x.transpose(0, 1).flatten(1) for x in radial_functions_with_slopes(basis, r))
    interval = (r / table.step).long()
    p, dp = (torch.stack(y, dim=1) for y in quintic(r / table.step - interval))
    ends = intervals(table.knots)[interval]
    assert relative(torch.bmm(p[:, None], ends)[:, 0], exact) < 1e-11
    assert relative(torch.bmm(dp[:, None], ends)[:, 0] / table.step, slopes) < 1e-9
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    above, below, slopes = quintic(t + 1e-6)[0], quintic(t - 1e-6)[0], quintic(t)[1]
    for high, low, slope in zip(above, below, slopes, strict=True):
        assert_allclose(slope, (high - low) / 2e-6, rtol=0, atol=1e-9)
    for x in r[1::500].tolist():
        w, dw = (float(y) for y in neighbor_weight(torch.tensor([x], dtype=torch.float64), config))
        assert weight_at(x, table.constants.radial) == pytest.approx((w, dw), abs=1e-14)


def test_curvatures_of_the_radial_functions() -> None:
    basis = radial_basis(SOAPConfig(r_cut=4.0, n_max=4, l_max=3))
    r, h = torch.linspace(0.0, 4.0, 41, dtype=torch.float64) + 0.01, 1e-3
    value, slope, curvature = radial_functions_with_curvatures(basis, r)
    above, below = radial_functions(basis, r + h), radial_functions(basis, r - h)
    assert_allclose(value, radial_functions(basis, r), rtol=0, atol=1e-13)
    assert_allclose(slope, (above - below) / (2 * h), rtol=0, atol=1e-5)  # 1/Å
    assert_allclose(curvature, (above + below - 2 * value) / h**2, rtol=0, atol=1e-4)  # 1/Å^2


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("l_max", [0, 1, 2, 6, 12])
def test_solid_harmonics_are_those_of_sphericart(l_max: int, dtype: type) -> None:
    n = l_max + 1
    vectors = np.random.default_rng(l_max).normal(size=(8, 3)) * 2
    vectors[0] = 0.0
    table, position = recursion(l_max).astype(dtype), np.ascontiguousarray(vectors.T, dtype).reshape(-1)
    q, circle, s, ds = (np.zeros(size, dtype) for size in (8 * n * n, 16 * n, 8 * n * n, 24 * n * n))
    solid_harmonics(position, table, q, circle, s)
    gradients(position, table, q, circle, ds)
    values, slopes = (x.numpy() for x in SolidHarmonics(l_max).compute_with_gradients(torch.from_numpy(vectors)))
    tolerance = 1e-13 if dtype == np.float64 else 1e-6
    assert_allclose(s.reshape(-1, 8).T, values, rtol=0, atol=tolerance * np.abs(values).max())
    found = ds.reshape(3, -1, 8).transpose(2, 0, 1)
    assert_allclose(found, slopes, rtol=0, atol=tolerance * max(1.0, np.abs(slopes).max()))


@compiled
def _sums(a, out):  # type: ignore[no-untyped-def]
    x = load(a, 1) * load(a, 8) + spread_from(a, 3) * load(a, 0) - spread(a[2])
    store(out, 8, 2.0 * x)
    scratch = workspace(24, a)
    return total(x), scratch.ctypes.data % 64, len(scratch), scratch.sum()


def test_eight_numbers_at_a_time() -> None:
    a, out = np.random.default_rng(0).normal(size=16), np.zeros(24)
    found, misaligned, size, zero = _sums(a, out)
    x = a[1:9] * a[8:] + a[3] * a[:8] - a[2]
    assert found == pytest.approx(x.sum(), abs=1e-14)
    assert_allclose(out, np.concatenate([np.zeros(8), 2 * x, np.zeros(8)]), rtol=0, atol=1e-14)
    assert (misaligned, size, zero) == (0, 24, 0.0)


def test_functions_compile_where_no_cache_can_be() -> None:
    """Code that is in no file has no folder for its machine code."""
    space: dict = {}
    exec("def doubled(x):\n    return 2 * x\n", space)
    assert compiled(space["doubled"])(21) == 42


def test_code_on_disk_is_made_anew_when_what_it_calls_has_changed(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "compiled.py").write_text((ROOT / "descriptors" / "compiled.py").read_text())
    top = "from kernels.compiled import compiled\n"
    (package / "high.py").write_text(
        f"{top}from kernels.low import low\n\n\n@compiled\ndef high(x):\n    return 2 * low(x)\n"
    )
    code = "from kernels.high import high; print(high(3), sum(high.stats.cache_hits.values()))"
    found = []
    for added in (1, 1, 5):
        (package / "low.py").write_text(f"{top}\n\n@compiled\ndef low(x):\n    return x + {added}\n")
        run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
        found.append(run.stdout.split())
    assert found == [["8", "0"], ["8", "1"], ["16", "0"]]  # result, and whether it came from disk

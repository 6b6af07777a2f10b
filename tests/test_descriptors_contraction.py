"""The contraction of channels: what it keeps, and that it is the truncated second moment."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from systems import ethanol, isolated_atom, phosphate, rattled_silicon, water

from descriptors import SOAP, Contraction, SOAPConfig, fit_contraction

CONFIG = SOAPConfig(r_cut=4.0, n_max=4, l_max=3)
ORGANIC = (1, 6, 8)


def test_keeping_all_the_variance_keeps_the_kernel() -> None:
    structures = [water(), ethanol()]
    plain = SOAP(CONFIG, ORGANIC)
    contraction = fit_contraction(plain, [plain.neighborhoods(structures)], 1.0)
    rotated = SOAP(CONFIG, ORGANIC, contraction)
    assert [u.shape for u in contraction.matrices] == [(12, 12)] * 4
    p, q = plain.features(structures), rotated.features(structures)
    assert float((p - q).abs().max()) > 1e-2  # another basis
    assert_allclose(q @ q.T, p @ p.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("retained", [0.5, 0.99, 0.9999])
def test_the_fewest_channels_that_retain_the_variance(retained: float) -> None:
    plain = SOAP(CONFIG, ORGANIC)
    nb = plain.neighborhoods([ethanol(), water()])
    contraction = fit_contraction(plain, [nb], retained)
    for u, share, c in zip(contraction.matrices, contraction.retained, plain.coefficients(nb), strict=True):
        assert u.dtype == torch.float64
        assert_allclose(u.T @ u, torch.eye(u.shape[1]), rtol=0, atol=1e-12)
        kept = [float((u[:, :k].T @ c).square().sum() / c.square().sum()) for k in (u.shape[1] - 1, u.shape[1])]
        assert kept[1] == pytest.approx(share, abs=1e-12)
        assert kept[0] < retained <= kept[1]
    assert contraction.matrices[0].shape[1] < 12


def test_the_kernel_approaches_that_of_all_channels() -> None:
    atoms = phosphate()
    plain = SOAP(CONFIG, sorted(set(atoms.numbers.tolist())))
    p = plain.features([atoms])
    errors = []
    for retained in (0.9, 0.99, 0.9999):
        contraction = fit_contraction(plain, [plain.neighborhoods([atoms])], retained)
        soap = SOAP(CONFIG, plain.species, contraction)
        assert soap.n_features < plain.n_features
        q = soap.features([atoms])
        errors.append(float((q @ q.T - p @ p.T).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 1e-3


def test_batches_add_up_and_signs_are_fixed() -> None:
    plain = SOAP(CONFIG, ORGANIC)
    together = fit_contraction(plain, [plain.neighborhoods([water(), ethanol()])], 0.99)
    apart = fit_contraction(plain, (plain.neighborhoods([a]) for a in (ethanol(), water())), 0.99)
    for u, v in zip(together.matrices, apart.matrices, strict=True):
        assert_allclose(u, v, rtol=0, atol=1e-9)
        assert bool((u.gather(0, u.abs().argmax(dim=0, keepdim=True)) > 0).all())


def test_a_single_atom_leaves_one_channel_for_each_degree_above_zero() -> None:
    plain = SOAP(CONFIG, [8])
    contraction = fit_contraction(plain, [plain.neighborhoods([isolated_atom()])], 0.99)
    assert [u.shape[1] for u in contraction.matrices] == [1, 1, 1, 1]
    assert contraction.retained == pytest.approx((1.0, 1.0, 1.0, 1.0), rel=1e-12)


def test_an_environment_that_the_contraction_annihilates_is_an_error() -> None:
    config = SOAPConfig(n_max=1, l_max=0, r_cut=4.0)
    only_oxygen = Contraction((torch.tensor([[0.0], [1.0]], dtype=torch.float64),), (1.0,))
    soap = SOAP(config, [1, 8], only_oxygen)
    hydrogen = isolated_atom()
    hydrogen.symbols[0] = "H"
    with pytest.raises(ValueError, match=r"centres \[1\] is zero .* contraction"):
        soap.features([isolated_atom(), hydrogen])


def test_misuse_is_an_error() -> None:
    plain = SOAP(CONFIG, [14])
    nb = plain.neighborhoods([rattled_silicon()])
    contraction = fit_contraction(plain, [nb], 0.99)
    with pytest.raises(ValueError, match="uncontracted"):
        fit_contraction(SOAP(CONFIG, [14], contraction), [nb], 0.99)
    with pytest.raises(ValueError, match="outside"):
        fit_contraction(plain, [nb], 1.5)
    with pytest.raises(ValueError, match="at least one structure"):
        fit_contraction(plain, [], 0.99)
    with pytest.raises(ValueError, match="2 species"):
        SOAP(CONFIG, [8, 14], contraction)

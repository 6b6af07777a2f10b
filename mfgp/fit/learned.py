"""What a fit learned, in plain numbers: what model files, tables and `MultiFidelityGP.hyperparameters` show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols

from mfgp.gp.hyperparameters import LEARNED_KINDS

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP


def learned_hyperparameters(model: MultiFidelityGP) -> dict[str, Any]:
    """Outputscale s_t^2 (eV^2), rho [T-1][species], noises by level, e0 (eV) by level and element, baseline coefficients."""
    symbols = [chemical_symbols[z] for z in model.basis.species]
    m = model.basis.size
    e0 = model.columns.reference + model.weights[:, m : m + len(symbols)]
    noise = model.noise.noise.tolist()
    out: dict[str, Any] = {
        "outputscale": dict(zip(model.levels, (model.prior.scale**2).tolist(), strict=True)),
        "rho": [dict(zip(symbols, row, strict=True)) for row in model.prior.rho.tolist()],
        "noise": {
            level: {kind: noise[t][k] for k, kind in enumerate(LEARNED_KINDS) if (t, kind) in model.statistics.moments}
            for t, level in enumerate(model.levels)
        },
        "e0": {level: dict(zip(symbols, e0[t].tolist(), strict=True)) for t, level in enumerate(model.levels)},
    }
    if model.columns.coefficients is not None:
        coefficients = model.columns.coefficients + model.weights[:, m:][:, model.columns.of_baselines]
        out["baselines"] = {
            level: dict(zip(model.columns.baselines, coefficients[t].tolist(), strict=True))
            for t, level in enumerate(model.levels)
        }
    return out

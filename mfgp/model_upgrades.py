"""Headers of model files of earlier schemas, as the present one would have written them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfgp.errors import ModelFileError

SCHEMA = 13
REQUIRED = frozenset(  # of a header of the present schema
    (
        *("mfgp_version", "torch_version", "levels", "species", "config", "baselines", "retained", "n_inducing"),
        *("jitter", "centred", "vacuum", "vacuum_shapes", "shear", "data", "data_hash", "seen", "calculated"),
        *("statistics", "training", "hyperparameters", "calibration", "costs", "own_sigmas", "baseline_checks"),
    )
)

Header = dict[str, Any]


def upgraded(header: Header) -> Header:
    """The header of any schema up to the present one, upgraded to that."""
    while header["schema"] < SCHEMA:
        schema = header["schema"]
        header = {**UPGRADES[schema](header), "schema": schema + 1}
    return header


@contextmanager
def early_version(path: Path, stored: Header) -> Iterator[None]:
    """ModelFileError, where a header as it was `stored`, of an earlier schema, is not what its upgrade counts on.

    Schemas 1 and 2 were written in several forms before the first release.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if stored["schema"] == SCHEMA:
            raise
        version = stored.get("mfgp_version", "unknown")
        raise ModelFileError(
            f"{path} (schema {stored['schema']}, mfgp {version}) was written by an early version that this one cannot read; "
            "fit again."
        ) from error


def checked(path: Path, stored: Header) -> Header:
    """The header, upgraded. ModelFileError where it lacks what every header has."""
    with early_version(path, stored):
        header = upgraded(stored)
        missing = ", ".join(sorted(REQUIRED - set(header)))
        if missing and stored["schema"] < SCHEMA:
            raise KeyError(missing)
        if missing:
            raise ModelFileError(f"{path} is damaged: its header has no {missing}. Copy it again or fit again.")
    return header


def _without_calibration(header: Header) -> Header:
    """Schema 1 knew no calibration, and its configurations asked for none that was done."""
    return {**header, "calibration": None}


def _without_costs(header: Header) -> Header:
    """Schema 2 kept no costs of labels, and no magnetic moments."""
    return {**header, "costs": {"sums": {}, "given": {}}, "sites": []}


def _without_composition(header: Header) -> Header:
    """Schema 3 learned costs of labels from their numbers of atoms alone: n, sum x, sum x^2, sum y, sum xy, sum y^2."""
    sums = {
        level: {"elements": [], "moments": [[n, x, y], [x, xx, xy], [y, xy, yy]]}
        for level, (n, x, xx, y, xy, yy) in header["costs"]["sums"].items()
    }
    return {**header, "costs": {**header["costs"], "sums": sums}}


def _without_novelty(header: Header) -> Header:
    """Schema 4 calibrated forces without the novelty of their surroundings."""
    calibration = header["calibration"]
    return {**header, "calibration": None if calibration is None else {**calibration, "novelty": []}}


def _without_energy_novelty(header: Header) -> Header:
    """Schema 5 calibrated energies without their novelty."""
    calibration = header["calibration"]
    return {**header, "calibration": None if calibration is None else {**calibration, "energy_novelty": []}}


def _without_calculations(header: Header) -> Header:
    """Schema 6 did not say which structures had been calculated."""
    return {**header, "calculated": []}


def _without_scatter(header: Header) -> Header:
    """Schema 7 calibrated energies of all compositions alike."""
    calibration = header["calibration"]
    return {**header, "calibration": None if calibration is None else {**calibration, "scatter": []}}


def _without_scatter_of_forces(header: Header) -> Header:
    """Schema 8 calibrated forces of all compositions alike; its scatter was that of energies."""
    calibration = header["calibration"]
    if calibration is None:
        return header
    kept = {name: value for name, value in calibration.items() if name != "scatter"}
    energies = [{**s, "least": 1.0} for s in calibration["scatter"]]
    return {**header, "calibration": {**kept, "energy_scatter": energies, "force_scatter": []}}


def _without_vacuum(header: Header) -> Header:
    """Schema 9 knew no difference between an isolated atom and others, and made the factors of K_MM again."""
    return {**header, "vacuum": [], "jitter": None}


def _uncentred(header: Header) -> Header:
    """Schema 10 had statistics in terms of w and e0 (centring), which are turned into the present ones after reading, knew
    no own sigmas and no energies of baselines."""
    return {**header, "centred": False, "own_sigmas": [[0.0] * 3] * len(header["levels"]), "baseline_checks": {}}


def _without_shapes(header: Header) -> Header:
    """Schema 11 took the way from h = 0 to 1 in the vacuum term as known."""
    return {"vacuum_shapes": 0, **header}


def _alike(header: Header) -> Header:
    """Schema 12 gave all six components of a virial the same noise; its statistics are of such rows, and stay so."""
    return {"shear": 1.0, **header}


# header of schema n -> of schema n + 1
UPGRADES: dict[int, Callable[[Header], Header]] = {
    1: _without_calibration,
    2: _without_costs,
    3: _without_composition,
    4: _without_novelty,
    5: _without_energy_novelty,
    6: _without_calculations,
    7: _without_scatter,
    8: _without_scatter_of_forces,
    9: _without_vacuum,
    10: _uncentred,
    11: _without_shapes,
    12: _alike,
}

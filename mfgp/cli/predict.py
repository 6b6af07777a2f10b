"""The command `mfgp predict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mfgp.base import console
from mfgp.base.words import counted
from mfgp.cli.command_line import (
    Fidelity,
    ModelPath,
    RawStd,
    check_outputs,
    friendly,
    say_close_pairs,
    say_stress,
)
from mfgp.errors import ConfigError

if TYPE_CHECKING:
    from ase import Atoms

    from mfgp.model import MultiFidelityGP
    from mfgp.predict.prediction import Prediction


def predict(
    model: ModelPath,
    structures: Annotated[
        Path, typer.Argument(metavar="IN", help="structures (any format of ASE)", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="extxyz file to write", show_default=False)
    ],
    fidelity: Fidelity = None,
    no_uncertainty: Annotated[bool, typer.Option("--no-uncertainty", help="means only: much faster")] = False,
    by_level: Annotated[
        bool, typer.Option("--by-level", help="how much of the standard deviations comes from each level, too")
    ] = False,
    raw_std: RawStd = False,
) -> None:
    """Predict energies, forces and stresses with their standard deviations, and write them as extxyz.

    Labels of IN under names of their own (REF_energy, ...) are kept; results of a calculator are replaced.
    """
    with friendly() as notices:
        from mfgp.base.files import check_extxyz, write_extxyz
        from mfgp.base.progress import bars
        from mfgp.data.reading import read_structures
        from mfgp.model import MultiFidelityGP
        from mfgp.notes.far_structures import far_structures
        from mfgp.predict.batched import predict_many

        if no_uncertainty and by_level:
            raise ConfigError("--by-level splits standard deviations; leave --no-uncertainty out.")
        check_outputs([output], [model, structures])
        check_extxyz(output)
        fitted = MultiFidelityGP.load(model)
        predictor = fitted.predictor(fidelity, calibrated=not raw_std, by_level=by_level)
        frames = read_structures(structures)
        for i, atoms in enumerate(frames):
            predictor.check_elements(atoms, f"{structures} frame {i}")
        predicted, predictions = [], []
        uncertainty = "none" if no_uncertainty else "by_level" if by_level else "full"
        with bars(console=notices) as report:
            for i, (atoms, p) in enumerate(
                zip(frames, predict_many(predictor, frames, uncertainty, report), strict=True)
            ):
                predicted.append(with_results(atoms, p))
                predictions.append(p)
                report("prediction", i + 1, len(frames), predictor.fidelity)
        write_extxyz(output, predicted)
        if any("stress" in atoms.calc.results for atoms in predicted):
            say_stress(fitted, fidelity, notices)
        if not no_uncertainty:
            _say_larger(fitted, predictor.level, frames, notices)
        if (far := far_structures(frames, predictions)) is not None:
            console.say(notices, f"warning: {far}", "yellow")
        say_close_pairs(fitted, {f"frame {i}": atoms for i, atoms in enumerate(frames)}, notices)
        if by_level:
            console.stdout().print(shares_table(predictions))
        console.say(notices, f"wrote {counted(len(predicted), 'structure')} at level {predictor.fidelity} to {output}")


def _say_larger(model: MultiFidelityGP, level: int, frames: Sequence[Atoms], notices: Console) -> None:
    """How many structures have larger cells than those that the standard deviations are calibrated on."""
    from mfgp.calibration.cell_widths import LARGER_CELLS, wider

    if n := wider(model, level, frames):
        console.say(
            notices,
            f"note: {n} of {len(frames)} structures repeat later than the training cells of {model.levels[level]} or not "
            f"at all: their errors can be several times the standard deviations ({LARGER_CELLS}).",
        )


def with_results(atoms: Atoms, p: Prediction) -> Atoms:
    """A copy with the prediction on its calculator, standard deviations in info and arrays.

    Moments and their standard deviations are NaN on atoms of elements without labels of them, as extxyz and ASE have it;
    a structure with such atoms alone has neither. Of the parts by level, those of the forces are root mean squares.
    """
    import numpy as np
    from ase.calculators.singlepoint import SinglePointCalculator

    from mfgp.data.labels import COSTS, FIDELITY_TAGS, PREDICTED

    out = atoms.copy()
    known = p.magmoms is not None and bool(np.isfinite(p.magmoms).any())
    magmoms, magmoms_std = (p.magmoms, p.magmoms_std) if known else (None, None)
    results = {"energy": p.energy, "forces": p.forces, "stress": p.stress, "energies": p.energies, "magmoms": magmoms}
    info = {"energy_std": p.energy_std, "stress_std": p.stress_std, **_parts(p)}
    arrays = {"forces_std": p.forces_std, "energies_std": p.energies_std, "magmoms_std": magmoms_std}
    earlier = ("free_energy", "total_magmom", *COSTS, *FIDELITY_TAGS)
    for name in (*results, *info, *arrays, *earlier):  # what it says is of this level now
        out.info.pop(name, None)
        out.arrays.pop(name, None)
    out.info[PREDICTED] = p.fidelity
    out.info.update({name: value for name, value in info.items() if value is not None})
    out.arrays.update({name: value for name, value in arrays.items() if value is not None})
    out.calc = SinglePointCalculator(out, **{name: value for name, value in results.items() if value is not None})
    return out


def _parts(p: Prediction) -> dict[str, dict[str, float] | None]:
    """The parts of the standard deviations by level: total energy in eV, forces in eV/Å (root mean square)."""
    if p.std_by_level is None:
        return {"energy_std_by_level": None, "forces_std_by_level": None}
    return {
        "energy_std_by_level": {name: share.energy_std for name, share in p.std_by_level.items()},
        "forces_std_by_level": {
            name: math.sqrt(float((share.forces_std**2).mean())) for name, share in p.std_by_level.items()
        },
    }


def shares_table(predictions: Sequence[Prediction]) -> console.Table:
    """Percent of the variances of energies per atom and of forces that each level brings, over all structures."""
    sums: dict[str, dict[str, float]] = {}
    for p in predictions:
        assert p.std_by_level is not None
        for name, share in p.std_by_level.items():
            of = sums.setdefault(name, {"energy": 0.0, "forces": 0.0})
            of["energy"] += (share.energy_std / len(p.forces)) ** 2
            of["forces"] += float((share.forces_std**2).sum())
    totals = {kind: sum(of[kind] for of in sums.values()) for kind in ("energy", "forces")}
    rows = [
        (name, *(f"{100 * of[kind] / total:.0f}" if total > 0.0 else "–" for kind, total in totals.items()))
        for name, of in sums.items()
    ]
    title = f"where the variance of {len(predictions)} structures comes from: data of a level would narrow its part"
    return console.table(title, ["level", "energies (%)", "forces (%)"], rows)

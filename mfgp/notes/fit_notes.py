"""What a user should know of a fit, from the model alone: `MultiFidelityGP.notes`, and what `mfgp fit` prints at its end."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ase.data import chemical_symbols

from mfgp.calibration.calibration import MIN_STRUCTURES
from mfgp.calibration.cell_widths import narrow_cells
from mfgp.calibration.left_out_warnings import consequence
from mfgp.calibration.scores import coverage_of_few
from mfgp.notes.contradictions import contradiction_notes
from mfgp.notes.not_carried import not_carried_notes
from mfgp.notes.prequential import prequential_notes
from mfgp.notes.stress_order import other_orders
from mfgp.notes.training_residuals import transfer_notes

if TYPE_CHECKING:
    from mfgp.frames import FrameSet
    from mfgp.model import MultiFidelityGP

WORTH = 1.0  # nats that an iteration has to gain for another one to be worth a word
WEAK_REPULSION = 0.2  # off 1, from which on the coefficient of zbl is told
SWITCHED_OFF = (
    0.1  # coefficients of baselines that leave next to nothing of them, and those whose 95 % interval holds 0
)
HELD = 0.9  # of a 95 % interval: where fewer labels can be expected in it, for want of structures, this is told


def fit_notes(model: MultiFidelityGP) -> list[str]:
    """A sentence each, which begins with `note:` or `warning:`: what a fit did that was not asked for in so many words, and
    signs that a level does not help those above it (`transfer_notes`)."""
    out, wanted = [], model.config.model.n_inducing
    if model.basis.size < wanted:
        out.append(
            f"note: {model.basis.size} inducing points, not {wanted}: the kernel tells no more "
            "environments of the training data apart."
        )
    if model.basis.jitter > 0:
        out.append(f"note: {model.basis.jitter:g} was added to the diagonal of K_MM; fewer inducing points avoid it.")
    training = model.training
    if training is not None and not training.converged and (training.last_gain is None or training.last_gain > WORTH):
        gained = "" if training.last_gain is None else f" by {training.last_gain:.1f} nats an iteration"
        out.append(
            f"note: the objective was still rising{gained} after {training.evaluations} evaluations with all inducing "
            f"points ({training.message}); a larger training.n_optimise or max_iterations may raise it further."
        )
    out += _missing_labels(model)
    out += _passed_over(model)
    out += _calibrated_on_few(model)
    out += _rare_elements(model)
    out += _isolated_at_some_levels(model)
    out += narrow_cells(model)
    out += prequential_notes(model)
    out += not_carried_notes(model)
    out += _coefficients(model)
    return [*out, *(f"warning: {note}" for note in transfer_notes(model))]


def _coefficients(model: MultiFidelityGP) -> list[str]:
    """Of a repulsion whose coefficient is not 1, and of baselines that the data switched off."""
    out = []
    variances = model.covariances.diagonal(dim1=1, dim2=2)[:, model.basis.size :][:, model.columns.of_baselines]
    for t, (level, coefficients) in enumerate(model.hyperparameters().get("baselines", {}).items()):
        rows = zip(coefficients.items(), model.columns.first, variances[t].tolist(), strict=True)
        for (name, a), first, variance in rows:
            std = max(variance, 0.0) ** 0.5
            if t < first:
                continue
            if name == "zbl" and abs(a - 1.0) > WEAK_REPULSION:
                out.append(
                    f"warning: the coefficient of zbl is {a:.2f} at {level}, so atoms that come close are "
                    "repelled by as much of what they should be. Set its r_outer below the shortest pair of these data, and "
                    "the std of its coefficient to 0.01 (docs/configuration.md)."
                )
            elif abs(a) < max(SWITCHED_OFF, 1.96 * std):
                out.append(
                    f"warning: the coefficient of {name} is {a:.2f} +- {std:.2f} at {level}: the data switched this "
                    "baseline off. It takes its time with every prediction for next to nothing: leave it out, use it from "
                    "another level on (from_level), or look at its settings (docs/configuration.md)."
                )
    return out


def _missing_labels(model: MultiFidelityGP) -> list[str]:
    """Of levels without forces, and without energies."""
    out = []
    if without := [level for level, counts in model.data.items() if not counts["forces"]]:
        out.append(
            f"note: no forces among the labels of {', '.join(without)}: standard deviations of forces there were never "
            "compared with an error, and can be too small."
        )
    if without := [level for level, counts in model.data.items() if not counts["energies"]]:
        out.append(
            f"note: no energies among the labels of {', '.join(without)}: total energies there are known up to a reference "
            "for each element only, as their standard deviations say; forces, and differences between structures of one "
            "composition, are not touched by that."
        )
    return out


def _passed_over(model: MultiFidelityGP) -> list[str]:
    """Of levels many of whose structures could not be left out, and of a calibration that was wanted and is not there."""
    if model.calibration is None:
        if not model.config.training.calibrate:
            return []
        return [
            "warning: the standard deviations are the posterior's own, never compared with an error: too few structures "
            "could be left out for that. They can be too small or too wide: label more structures and fit again, or check "
            "with `mfgp evaluate` on labels that were held out."
        ]
    return [
        f"warning: {missing} of {of} structures at {level} could not be left out. {consequence(missing, of, fitted=True)}."
        for level, (missing, of) in model.calibration.passed_over.items()
    ]


def _calibrated_on_few(model: MultiFidelityGP) -> list[str]:
    """Of levels whose widths of energies come from the errors of so few structures that these do not tell them well."""
    fitted = () if model.calibration is None else model.calibration.fitted
    few = [f for f in fitted if f.kind == "energy" and coverage_of_few(f.structures) < HELD]
    return [
        f"note: standard deviations of energies at {f.level} are scaled to the errors of {f.structures} left-out "
        f"structures: expect {100 * coverage_of_few(f.structures):.0f} % of new energies in their 95 % intervals, in one "
        "fit fewer, in another more."
        for f in few
    ]


def _rare_elements(model: MultiFidelityGP) -> list[str]:
    """Of levels where so few left-out energies are of an element that its energies are known by chance."""
    out = []
    for t, level in enumerate(model.levels):
        if model.calibration is not None and (rare := model.calibration.rare(t, model.basis.species)):
            names = ", ".join(chemical_symbols[z] for z in rare)
            out.append(
                f"note: fewer than {MIN_STRUCTURES} left-out energies at {level} are of structures with {names}: those of "
                "others with it can be off by far more than those of the other elements, whose errors do not narrow their "
                f"standard deviations. Label more structures with {names} there."
            )
    return out


def warn_of_labels(model: MultiFidelityGP, frames: FrameSet) -> None:
    """Warn of training labels that a model fitted to them shows to be wrong as a whole: energies that contradict the forces,
    shear stresses in another order."""
    for note in contradiction_notes(model):
        warnings.warn(note, stacklevel=3)
    for found in other_orders(model, frames):
        warnings.warn(found.text, stacklevel=3)


def _isolated_at_some_levels(model: MultiFidelityGP) -> list[str]:
    """Of each level without isolated atoms of elements that have one at another: there a prior is all that tells what atoms
    that leave have beside e0 (vacuum_term.py)."""
    if model.columns.vacuum is None:
        return []
    species, start = model.columns.vacuum.species, model.basis.size + model.columns.of_vacuum.start
    has: dict[str, set[int]] = {}
    for t, level in enumerate(model.levels):
        moments = model.statistics.moments.get((t, "isolated"))
        squares = [] if moments is None else moments.gram.diagonal()[start : start + len(species)].tolist()
        has[level] = {z for z, square in zip(species, squares, strict=False) if square > 0}
    out = []
    for level, own in has.items():
        missing = [z for z in species if z not in own]
        others = [other for other, there in has.items() if there & set(missing)]
        if others:
            names = ", ".join(chemical_symbols[z] for z in missing)
            out.append(
                f"note: no isolated atom of {names} at {level}, only at {', '.join(others)}: energies of atoms that leave "
                f"and of atomisation are known to a few eV at {level}. Label these atoms at {level}, too."
            )
    return out

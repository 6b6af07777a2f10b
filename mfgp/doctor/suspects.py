"""What leave-one-label-out scores say of the data: suspect labels, and how large an error has to be to become one.

A label with left-out deviation e and score s is suspect when s passes the limit L of its kind. An error of length d in the
direction u would turn e into e + d u, and the score with it; if the variances of the components are equal, it passes L from

    d = sqrt((e.u)^2 - |e|^2 + (L |e| / s)^2) - e.u

on. Over all labels of a kind and u along both directions of the axes, the 90 % quantile of d is the smallest error that
would be found in nine of ten places; what else an error does is left out: noises and quantiles grow with it, noticeably
where labels are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.units import GPa
from scipy.special import ndtr

from mfgp.doctor.fit import LIMITS, SECOND_LOOK, LabelScore
from mfgp.doctor.report import SEE_ALL, Array, Finding, about, enumerated, examples
from mfgp.frames import Frame, FrameSet
from mfgp.notes.contradictions import contradiction_notes
from mfgp.notes.stress_order import other_orders

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP

LISTED = 10  # labels in a message
SHARE = 0.9  # of the places where an error would be found
NOUNS = {"energy": ("the energy", "energies"), "forces": ("forces", "forces"), "stress": ("the stress", "stresses")}
_SCORE = (
    "Scores count standard deviations, scaled so that four of five labels like these are below 1.3; named above "
    f"{LIMITS['energy']} (energies, stresses, moments) and {LIMITS['forces']} (forces)."
)


def order_checks(model: MultiFidelityGP, frames: FrameSet) -> list[Finding]:
    """Findings about stresses of training frames whose shear is in another order than ASE's."""
    return [about("warning", "stress order", found.text, found.frames) for found in other_orders(model, frames)]


def contradiction_checks(model: MultiFidelityGP) -> list[Finding]:
    """Findings about levels whose energies are not those of their forces."""
    return [about("error", "energies and forces", note) for note in contradiction_notes(model)]


def fit_checks(scores: Sequence[LabelScore], frames: FrameSet) -> list[Finding]:
    """Findings about labels that the rest of the data contradict, worst first, and about those that have no score.

    scores: of `frames`, which have one for each kind that enough of their like carry. Labels of frames whose moments
    disagree with all others, too, are in a finding of their own. Of every level also, how large an error would be found.
    """
    out = []
    scored = {id(s.frame) for s in scores if s.kind != "moment"}
    if unscored := [f for f in frames if id(f) not in scored and not f.isolated_atom]:
        message = f"{len(unscored)} frames have no leave-one-out score, {examples(unscored)}: "
        message += "too few of their kind."
        out.append(about("info", "leave-one-out", message, unscored))
    charged = {id(f) for f in other_moments(scores)}
    for level in dict.fromkeys(s.frame.fidelity for s in scores):
        suspects = sorted((s for s in scores if s.suspect and s.frame.fidelity == level), key=lambda s: -s.score)
        for kind in NOUNS:
            if chosen := [s for s in suspects if s.kind == kind and id(s.frame) not in charged]:
                out.append(_contradicted(level, kind, chosen))
        if chosen := [s for s in suspects if id(s.frame) in charged]:
            out.append(_moments_too(level, chosen))
        energies = [s for s in scores if s.kind == "energy" and s.frame.fidelity == level]
        if chosen := sorted((s for s in energies if s.second_look), key=lambda s: -s.score):
            out.append(_second_look(level, chosen, len(energies)))
        out.extend(_what_would_be_found(level, [s for s in scores if s.frame.fidelity == level]))
    return out


def other_moments(scores: Sequence[LabelScore]) -> list[Frame]:
    """Frames of which a magnetic moment disagrees with all others."""
    return _frames_of([s for s in scores if s.kind == "moment" and s.suspect])


def findable(scores: Sequence[LabelScore], limit: float | None = None) -> float:
    """Size from which on an error would make nine of ten of these labels, all of one kind, pass a limit: that of suspects.

    In eV/atom of energies, eV/Å of forces, eV/Å^3 of a component of stresses, Bohr magnetons of moments; nan where none has
    a score between 0 and the limit.
    """
    sizes: list[Array] = []
    for s in scores:
        most = LIMITS[s.kind] if limit is None else limit
        if 0.0 < s.score <= most:
            e, n = s.deviation[s.axes], len(s.frame.atoms) if s.kind == "energy" else 1
            length = float(np.linalg.norm(e))
            free = e**2 - length**2 + (most * length / s.score) ** 2  # [axis]
            sizes += [(np.sqrt(free) + sign * e) / n for sign in (-1.0, 1.0)]
    return float(np.quantile(np.concatenate(sizes), SHARE)) if sizes else float("nan")


def _what_would_be_found(level: str, scores: Sequence[LabelScore]) -> list[Finding]:
    energies = [s for s in scores if s.kind == "energy"]
    energy = findable(energies)
    forces, stress = (findable([s for s in scores if s.kind == kind]) for kind in ("forces", "stress"))
    found = []
    if np.isfinite(energy):
        listed = f" ({1e3 * findable(energies, SECOND_LOOK):.1f}: list it for a second look)"
        found.append(f"an energy that is off by {1e3 * energy:.1f} meV/atom{listed}")
    if np.isfinite(forces):
        found.append(f"a force on one atom that is off by {forces:.2f} eV/Å")
    if np.isfinite(stress):
        found.append(f"a stress with one component that is off by {1e3 * stress:.2g} meV/Å^3 ({stress / GPa:.2g} GPa)")
    if not found:
        return []
    message = (
        f"fidelity {level!r}: this model would name {enumerated(found, 'or')} in about nine cases of ten; smaller "
    )
    message += "ones may be there. A more accurate one (more inducing points, more data, a baseline) sees more."
    return [about("info", "leave-one-out", message)]


def _contradicted(level: str, kind: str, worst: Sequence[LabelScore]) -> Finding:
    bad = _frames_of(worst)
    message = f"fidelity {level!r}: "
    one, many = NOUNS[kind]
    message += (
        f"{one} of 1 frame disagree{'' if kind == 'forces' else 's'}"
        if len(bad) == 1
        else f"{many} of {len(bad)} frames disagree"
    )
    message += f" with all other labels:{_listed(worst)}"
    message += (
        f"\n  {_SCORE}\n  The model may be wrong instead, above all a small one, on a structure unlike the others: "
    )
    message += (
        "see whether a model with more inducing points names them too, and look at them, before you compute them "
    )
    message += "again."
    return about("warning", "leave-one-out", message, bad)


def _second_look(level: str, chosen: Sequence[LabelScore], energies: int) -> Finding:
    frames = _frames_of(chosen)
    chance = 2.0 * energies * float(ndtr(-SECOND_LOOK) - ndtr(-LIMITS["energy"]))
    many = "the energy of 1 frame is" if len(frames) == 1 else f"energies of {len(frames)} frames are"
    message = f"fidelity {level!r}: {many} further from what all other labels say than most: scores of {SECOND_LOOK} - "
    message += f"{LIMITS['energy']}, which about {chance:.1f} of {energies} good ones have, too:{_listed(chosen)}"
    message += "\n  Begin with these if you compute anything again: small errors are among them."
    return about("info", "second look", message, frames)


def _moments_too(level: str, worst: Sequence[LabelScore]) -> Finding:
    bad = _frames_of(worst)
    message = f"fidelity {level!r}: magnetic moments of {len(bad)} "
    message += (
        f"{'frame disagrees' if len(bad) == 1 else 'frames disagree'} with all others; these and other labels there:"
    )
    message += _listed(worst)
    message += f"\n  {_SCORE}\n  The electrons may be elsewhere than in frames like these. Another charge state is no "
    message += (
        "wrong label, but a start from the moments of the other charge order may end lower. Or the labels belong to "
    )
    message += "another structure, or the model has seen too few frames like it."
    return about("warning", "other moments", message, bad)


def _frames_of(worst: Sequence[LabelScore]) -> list[Frame]:
    return list({id(s.frame): s.frame for s in worst}.values())


def _listed(worst: Sequence[LabelScore]) -> str:
    more = f"\n  and {len(worst) - LISTED} more labels ({SEE_ALL})" if len(worst) > LISTED else ""
    return "".join(f"\n  {_described(s)}" for s in worst[:LISTED]) + more


def _described(s: LabelScore) -> str:
    """One line about a label: where, what, and how far from what the others say."""
    where = f"{s.frame.source} ({s.frame.atoms.symbols})"
    far = f"score {s.score:.1f}"
    if s.kind == "energy":
        n = len(s.frame.atoms)
        values = f"label {s.label[0] / n:.4f} eV/atom; predicted without it - label = {1e3 * s.error / n:+.1f} meV/atom"
        return f"{where}: {values}, std {1e3 * s.std / n:.1f}, {far}"
    if s.kind == "stress":
        label, deviation = (f"({', '.join(f'{1e3 * x:+.1f}' for x in v)})" for v in (s.label, s.deviation))
        values = f"stress {label} meV/Å^3; predicted without it - label = {deviation}"
        return f"{where}: {values}, std {1e3 * s.std:.1f} a component, {far}"
    atom = f"atom {s.atom} ({s.frame.atoms.symbols[s.atom]})"
    if s.kind == "moment":
        values = (
            f"moment {s.label[0]:.2f} Bohr magnetons; {s.label[0] + s.error:.2f} is predicted from the other frames"
        )
        return f"{where}, {atom}: {values}, std {s.std:.2f}, {far}"
    label, deviation = (f"({', '.join(f'{x:+.2f}' for x in v)})" for v in (s.label, s.deviation))
    values = f"label {label} eV/Å; predicted without it - label = {deviation} eV/Å, {s.error:.2f} long"
    return f"{where}, {atom}: {values}, std {s.std:.2f} a component, {far}"

"""Other ways to get a standard deviation: a committee, a constant, and draws of the weights (sampled).

The committee (eight models, each fitted to a random half of the structures, the prediction their mean) and the constant are
given the same help as the model: one factor by property and species from structures that were left out, the committee's
out-of-bag members, leave-one-out errors for the constant. Factors are by ENERGY, STRESS, or the atomic number of the atom
that a force acts on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from mfgp import FitConfig, FrameSet, MultiFidelityGP
from mfgp.base.progress import bars
from mfgp.baselines.columns import Baseline
from mfgp.data.single_point import structure_hash
from mfgp.data.training_frames import CALIBRATION_STRUCTURES, spread
from mfgp.evaluation import Comparison, evaluate
from mfgp.fit.features import Features
from mfgp.frames import Frame
from mfgp.gp.observations import SHEAR, components

MEMBERS = 8
ENERGY, STRESS = 0, -1
ZERO = 1e-6  # eV/Å; smaller labels and predictions are zero by symmetry


@dataclass(frozen=True)
class Labels:
    """Predictions beside labels of a test set: energies per atom, force components with their species, stresses."""

    energy: Comparison
    forces: Comparison
    species: np.ndarray
    sizes: np.ndarray  # [n] atoms of each structure with an energy
    stress: Comparison | None = None
    per_virial: np.ndarray | None = None  # [n] Å^-3 of each component of a stress, as the function of that name has it

    def kinds(self) -> dict[str, Comparison]:
        """The properties that have labels."""
        found = {"energy": self.energy, "forces": self.forces, "stress": self.stress}
        return {name: c for name, c in found.items() if c is not None}


def pooled(parts: Sequence[Labels]) -> Labels:
    """Labels of several test sets as one, to score them: what `constant` needs is to be asked for before."""

    def joined(kind: str) -> Comparison | None:
        found = [p.kinds()[kind] for p in parts if kind in p.kinds()]
        if not found:
            return None
        return Comparison(*(np.concatenate([getattr(c, f.name) for c in found]) for f in fields(Comparison)))

    energy, forces = joined("energy"), joined("forces")
    assert energy is not None
    assert forces is not None
    species, sizes = (np.concatenate([getattr(p, name) for p in parts]) for name in ("species", "sizes"))
    return Labels(energy, forces, species, sizes, joined("stress"))


def labels(model: MultiFidelityGP, frames: FrameSet, level: str, calibrated: bool) -> Labels:
    """What the model says, with its own standard deviations."""
    found, own = evaluate(model, frames, level, calibrated=calibrated), frames.of(level)
    sizes = np.array([len(f.atoms) for f in own if f.energy is not None])
    return Labels(found.energy, found.forces, found.force_species, sizes, found.stress, per_virial(own))


def per_virial(frames: Sequence[Frame]) -> np.ndarray:
    """Stress components of the structures that have them, of left-out virials of 1 eV per sqrt(atom): sqrt(N) / volume, of
    shear 1/sqrt(2) of it.
    """
    found = [len(f.atoms) ** 0.5 / f.atoms.get_volume() for f in frames if f.stress is not None]
    return np.outer(found, 1.0 / components(SHEAR).numpy()).ravel()


def sampled(model: MultiFidelityGP, frames: Sequence[Frame], level: str, draws: int) -> Labels:
    """Calibrated standard deviations of forces and stress from draws of the weights (those of energies are exact)."""
    predictor = model.predictor(level, draws=draws)
    found = [(f, predictor(f.atoms, "sampled")) for f in frames if f.energy is not None and f.forces is not None]
    n = np.array([len(f.atoms) for f, _ in found])
    energy = np.array([(f.energy, p.energy, p.energy_std) for f, p in found]).T / n
    forces = np.concatenate([np.stack([f.forces, p.forces, p.forces_std]).reshape(3, -1) for f, p in found], axis=1)
    species = np.concatenate([np.repeat(f.atoms.numbers, 3) for f, _ in found])
    stresses = [np.stack([f.stress, p.stress, p.stress_std]) for f, p in found if f.stress is not None]
    stress = Comparison(*np.concatenate(stresses, axis=1)) if stresses else None
    return Labels(Comparison(*energy), Comparison(*forces), species, n, stress)


@dataclass(frozen=True)
class Member:
    """A model of the committee and the structures that it was fitted to."""

    model: MultiFidelityGP
    seen: frozenset[bytes]


def committee(
    training: FrameSet, config: FitConfig, features: Features, baselines: Mapping[str, Baseline]
) -> list[Member]:
    """Eight models, each fitted to a random half of the structures (isolated atoms always)."""
    keys = list(dict.fromkeys(structure_hash(f.atoms) for f in training if not f.isolated_atom))
    members = []
    with bars() as report:
        for k in range(MEMBERS):
            half = np.random.default_rng([0, k]).permutation(len(keys))[: len(keys) // 2]
            chosen = frozenset(keys[i] for i in half)
            part = tuple(f for f in training if f.isolated_atom or structure_hash(f.atoms) in chosen)
            subset = FrameSet(training.levels, part)
            model = MultiFidelityGP.fit(subset, config, features=features, baselines=baselines, progress=False)
            members.append(Member(model, chosen))
            report("committee", k + 1, MEMBERS, "")
    return members


def committee_labels(members: Sequence[Member], frames: FrameSet, level: str) -> Labels:
    """Mean of the members and their standard deviation."""
    found = [labels(m.model, frames, level, calibrated=False) for m in members]

    def mean(kind: str) -> Comparison:
        each = np.stack([f.kinds()[kind].predicted for f in found])
        return Comparison(found[0].kinds()[kind].label, each.mean(0), each.std(0, ddof=1))

    return replace(found[0], **{kind: mean(kind) for kind in found[0].kinds()})


def committee_factors(members: Sequence[Member], frames: Sequence[Frame]) -> dict[int, float]:
    """Ratio of error to spread over the members that have not seen a structure, by property and species."""
    squares: dict[int, list[float]] = {}
    for frame in frames:
        unseen = [m for m in members if structure_hash(frame.atoms) not in m.seen]
        if len(unseen) < 3 or frame.isolated_atom or frame.energy is None or frame.forces is None:
            continue
        found = [m.model.predict(frame.atoms, frame.fidelity, calibrated=False, uncertainty="none") for m in unseen]
        energies, forces = np.array([p.energy for p in found]), np.stack([p.forces for p in found])
        squares.setdefault(ENERGY, []).append((energies.mean() - frame.energy) ** 2 / energies.var(ddof=1))
        ratio = (forces.mean(0) - frame.forces) ** 2 / forces.var(0, ddof=1)
        told = np.maximum(abs(forces.mean(0)), abs(frame.forces)) > ZERO
        for z in np.unique(frame.atoms.numbers).tolist():
            squares.setdefault(z, []).extend(ratio[told & (frame.atoms.numbers == z)[:, None]].tolist())
        if frame.stress is not None:
            stress = np.stack([p.stress for p in found])
            squares.setdefault(STRESS, []).extend((stress.mean(0) - frame.stress) ** 2 / stress.var(0, ddof=1))
    return {z: trimmed_scale(np.array(values)) for z, values in squares.items()}


def trimmed_scale(squares: np.ndarray) -> float:
    """Factor that brings 95 % of the standardised errors inside the 95 % interval."""
    return float(np.quantile(np.sqrt(squares), 0.95)) / 1.959964


def scaled(found: Labels, factors: dict[int, float]) -> Labels:
    """Standard deviations times the factor of the property, of forces that of the species."""
    by_species = np.array([factors.get(int(z), 1.0) for z in found.species])
    factor = {"energy": factors.get(ENERGY, 1.0), "forces": by_species, "stress": factors.get(STRESS, 1.0)}
    return replace(found, **{kind: replace(c, std=c.std * factor[kind]) for kind, c in found.kinds().items()})


def residuals(model: MultiFidelityGP, training: FrameSet, level: str) -> dict[int, float]:
    """Root mean square of the left-out errors: energies and stress as virials in eV per sqrt(atom), forces in eV/Å."""
    sample = spread(training, CALIBRATION_STRUCTURES, model.config.seed)
    parts = [p for p in model.leave_one_out(sample) if p.frame.fidelity == level]

    def rms(kind: str, z: int = 0) -> float:
        squares = [p.error[p.species == z] ** 2 for p in parts if p.kind == kind]
        return float(np.sqrt(np.concatenate(squares).mean())) if squares else 1.0

    by_species = {z: rms("forces", z) for z in model.basis.species}
    return {ENERGY: rms("energy"), STRESS: rms("virial"), **by_species}


def constant(found: Labels, rms: dict[int, float]) -> Labels:
    """The same predictions with one std for all energies, one for the forces on each species, one for all virials."""
    by_species = np.array([rms[int(z)] for z in found.species])
    std = {"energy": rms[ENERGY] / np.sqrt(found.sizes), "forces": by_species, "stress": rms[STRESS] * found.per_virial}
    return replace(found, **{kind: replace(c, std=std[kind]) for kind, c in found.kinds().items()})

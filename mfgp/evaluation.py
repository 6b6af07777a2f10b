"""Comparing predictions with labels: errors, and whether the standard deviations are honest (scores).

A label is a draw from the predictive distribution of a new label, N(mean, std^2). A calibrated prediction gives the std of
that label itself. Without calibration its variance is that of the model plus that of the labels' noise (learned for each
level and kind, or the label's own sigma), per observation of N atoms in V:

    energy per atom    Var = (energy_std / N)^2 + noise_energy^2 / N            (noise_energy: eV per sqrt(atom))
    force component    Var = forces_std^2       + noise_force^2
    stress component   Var = stress_std^2       + noise_virial^2 N / V^2        (eV per sqrt(atom); half of it for shear)

Forces and stresses that symmetry makes zero count as labels in the errors, as elsewhere in the field, and not in what is
said of the standard deviations: they are inside any interval, and a quarter of the components where crystals are perfect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mfgp.base.progress import Report, silent
from mfgp.calibration.new_labels import NewLabels
from mfgp.calibration.scores import Scores, coverage, scores
from mfgp.errors import DataError
from mfgp.frames import Frame, FrameSet
from mfgp.gp.observations import ISOLATED_NOISE, components
from mfgp.predict.batched import predict_many

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP
    from mfgp.predict.prediction import Prediction
    from mfgp.predict.predictor import Predictor

Array = NDArray[np.float64]
ZERO = 1e-6  # eV/Å, eV/Å^3: what rounding leaves of a prediction that symmetry makes zero, positions in a file too
RESIDUE = 1e-4  # the same of a label, from an SCF cycle that ended


@dataclass(frozen=True)
class LabelStd:
    """Standard deviations of new labels of one structure: energy eV (total), forces [N, 3] eV/Å, stress [6] eV/Å^3."""

    energy: float
    forces: Array
    stress: Array | None


@dataclass(frozen=True)
class Comparison:
    """Labels of one kind beside the predictive mean and standard deviation of such labels, each [n]."""

    label: Array
    predicted: Array
    std: Array

    @property
    def error(self) -> Array:
        """predicted - label, [n]."""
        return self.predicted - self.label

    @property
    def tells(self) -> NDArray[np.bool_]:
        """[n], false where symmetry makes label and prediction zero."""
        return (np.abs(self.label) > RESIDUE) | (np.abs(self.predicted) > ZERO)

    @property
    def telling(self) -> Comparison:
        """Those labels."""
        return self.subset(self.tells)

    @property
    def scores(self) -> Scores:
        """mae and rmse of all n labels; coverages, z_std, nll, crps and what ranks std of the telling ones."""
        telling, n = self.telling, len(self.label)
        if n == 0:
            return scores(self.error, self.std)
        mae, rmse = float(np.abs(self.error).mean()), float(np.sqrt((self.error**2).mean()))
        return replace(scores(telling.error, telling.std), mae=mae, rmse=rmse, n=n)

    @property
    def inside(self) -> float | None:
        """Share of the telling labels that lie in their 95 % intervals; None where none tells."""
        told = self.telling
        return coverage(told.error / told.std, 0.95) if len(told.error) else None

    def subset(self, mask: NDArray[np.bool_]) -> Comparison:
        """The labels where mask [n] is true."""
        return Comparison(self.label[mask], self.predicted[mask], self.std[mask])


@dataclass(frozen=True)
class Evaluation:
    """Energies per atom (eV), force components (eV/Å) with the species they act on, stress components (eV/Å^3).

    intervals: how many labels lie in their 95 % intervals, a structure of them counting as one, isolated atoms aside.
    """

    fidelity: str
    n_structures: int
    n_atoms: int
    energy: Comparison
    forces: Comparison
    stress: Comparison | None
    force_species: NDArray[np.int64]  # [n] atomic number for every force component
    magmoms: Comparison | None = None  # Bohr magnetons
    magmom_species: NDArray[np.int64] | None = None  # [n] atomic number for every moment
    intervals: tuple[NewLabels, ...] = ()

    def forces_by_species(self) -> dict[str, Scores]:
        """Scores of the forces on the atoms of each element, by its symbol."""
        return {
            chemical_symbols[z]: self.forces.subset(self.force_species == z).scores
            for z in np.unique(self.force_species).tolist()
        }

    def magmoms_by_species(self) -> dict[str, Scores]:
        """Scores of the magnetic moments of the atoms of each element, by its symbol; empty without moments."""
        if self.magmoms is None or self.magmom_species is None:
            return {}
        found = np.unique(self.magmom_species).tolist()
        return {chemical_symbols[z]: self.magmoms.subset(self.magmom_species == z).scores for z in found}

    def kinds(self) -> Iterator[tuple[str, str, Comparison]]:
        """(name, unit, comparison) of every kind that has labels which say something."""
        yield from ((n, u, c) for n, u, c in self._all() if c is not None and c.tells.any())

    def _all(self) -> tuple[tuple[str, str, Comparison | None], ...]:
        return ("energy", "eV/atom", self.energy), ("forces", "eV/Å", self.forces), ("stress", "eV/Å^3", self.stress)

    def to_json(self) -> dict[str, Any]:
        """The contract of `mfgp evaluate --json`: plain numbers, None for what is undefined or absent.

        Magnetic moments come only where there are labels of them.
        """
        moments: dict[str, Any] = {}
        if self.magmoms is not None:
            by_species = {symbol: s.to_json() for symbol, s in self.magmoms_by_species().items()}
            moments = {"magmoms": self.magmoms.scores.to_json(), "magmoms_by_species": by_species}
        return {
            "fidelity": self.fidelity,
            "n_structures": self.n_structures,
            "n_atoms": self.n_atoms,
            "energy": self.energy.scores.to_json(),
            "forces": self.forces.scores.to_json(),
            "stress": None if self.stress is None else self.stress.scores.to_json(),
            **moments,
        }


def label_std(model: MultiFidelityGP, frame: Frame, prediction: Prediction) -> LabelStd:
    """Standard deviations of labels of `frame` around `prediction` (with full uncertainty) at its level.

    Those of a calibrated prediction, with the frame's own `energy_sigma` or `force_sigma`, where it has one, for the noise
    in it.
    Otherwise the noise of a label is what the fit takes it for: the frame's own `energy_sigma` or `force_sigma` where it has
    one, that of a reference energy for isolated atoms, and the level's learned noise otherwise. A level trained without
    virials keeps the configured initial noise of virials.
    """
    if prediction.energy_std is None or prediction.forces_std is None:
        raise ValueError("label_std needs a prediction with uncertainty='full'")
    n = len(frame.atoms)
    level = model.level(prediction.fidelity)
    if prediction.calibrated:
        return _calibrated_std(model, frame, prediction)
    noise = {kind: float(model.noise.of((level, kind))) for kind in ("energy", "forces", "virial")}
    total = noise["energy"] * math.sqrt(n)
    if frame.energy_sigma is not None:
        total = frame.energy_sigma
    elif frame.isolated_atom:
        total = ISOLATED_NOISE * model.config.training.noise_energy
    force = noise["forces"] if frame.force_sigma is None else frame.force_sigma
    stress = None
    if prediction.stress_std is not None:
        volume = frame.atoms.get_volume()
        of_stress = noise["virial"] * math.sqrt(n) / volume / components(model.columns.shear).numpy()
        stress = np.hypot(prediction.stress_std, of_stress)
    return LabelStd(
        energy=math.hypot(prediction.energy_std, total),
        forces=np.hypot(prediction.forces_std, force),
        stress=stress,
    )


def _calibrated_std(model: MultiFidelityGP, frame: Frame, prediction: Prediction) -> LabelStd:
    assert model.calibration is not None
    assert prediction.energy_std is not None
    assert prediction.forces_std is not None
    level = model.level(prediction.fidelity)
    noise = model.calibration.noise_variances(level, frame.atoms.numbers, model.label_noise(level)).cpu().numpy()
    energy, forces = prediction.energy_std**2, prediction.forces_std**2
    if frame.energy_sigma is not None:
        energy = max(energy - noise[0], 0.0) + frame.energy_sigma**2
    if frame.force_sigma is not None:
        forces = np.maximum(forces - noise[1:-6].reshape(-1, 3), 0.0) + frame.force_sigma**2
    return LabelStd(math.sqrt(energy), np.sqrt(forces), prediction.stress_std)


def evaluate(
    model: MultiFidelityGP,
    frames: FrameSet | Sequence[Frame],
    fidelity: str,
    report: Report = silent,
    *,
    calibrated: bool = True,
) -> Evaluation:
    """Predict labelled frames at a level and compare.

    calibrated: with the calibrated standard deviations, where the model has them. frames: of a FrameSet those of that
    level (`frames.held_out()` are those that were not trained on), of a list all. Forces count where `force_mask` is true
    and not on isolated atoms (symmetry says that they are zero). Raises DataError for an unknown level,
    an element that the model has not seen, no labelled frame, or what is no frame.
    """
    predictor = model.predictor(fidelity, calibrated=calibrated)
    chosen = _labelled(frames, fidelity, predictor)
    parts: dict[str, list[Comparison]] = {"energy": [], "forces": [], "stress": [], "magmoms": []}
    shares: dict[str, list[float]] = {kind: [] for kind in parts}
    species: dict[str, list[NDArray[np.int64]]] = {
        kind: [np.zeros(0, dtype=np.int64)] for kind in ("forces", "magmoms")
    }
    for i, (frame, prediction) in enumerate(
        zip(chosen, predict_many(predictor, [f.atoms for f in chosen], report=report), strict=True)
    ):
        for kind, compared in compare(frame, prediction, label_std(model, frame, prediction)).items():
            parts[kind].append(compared)
            if (share := compared.inside) is not None and not frame.isolated_atom:
                shares[kind].append(share)
            if kind == "forces":
                species[kind].append(np.repeat(frame.atoms.numbers[frame.force_mask], 3).astype(np.int64))
            if kind == "magmoms":
                species[kind].append(frame.atoms.numbers[_known(prediction)].astype(np.int64))
        report("evaluation", i + 1, len(chosen), fidelity)
    joined = {kind: _joined(values) for kind, values in parts.items()}
    return Evaluation(
        fidelity=fidelity,
        n_structures=len(chosen),
        n_atoms=sum(len(f.atoms) for f in chosen),
        energy=joined["energy"],
        forces=joined["forces"],
        stress=joined["stress"] if parts["stress"] else None,
        force_species=np.concatenate(species["forces"]),
        magmoms=joined["magmoms"] if parts["magmoms"] else None,
        magmom_species=np.concatenate(species["magmoms"]),
        intervals=tuple(NewLabels(fidelity, kind).plus(of_kind) for kind, of_kind in shares.items() if of_kind),
    )


def _labelled(frames: FrameSet | Sequence[Frame], fidelity: str, predictor: Predictor) -> list[Frame]:
    """Those with labels, of a FrameSet those of the level. DataError as `evaluate`."""
    given = frames.of(fidelity) if isinstance(frames, FrameSet) else list(frames)
    if strange := [f for f in given if not isinstance(f, Frame)]:
        raise DataError(f"evaluate takes frames, as read_frames returns them, not a {type(strange[0]).__name__}.")
    chosen = [f for f in given if f.labelled]
    if not chosen:
        raise DataError(f"no labelled frame of level {fidelity!r} to evaluate.")
    for frame in chosen:
        predictor.check_elements(frame.atoms, frame.source)
    return chosen


def compare(frame: Frame, prediction: Prediction, std: LabelStd) -> dict[str, Comparison]:
    """What a frame has labels for beside its prediction: energy per atom [1], force components [n], stress [6]."""
    out = {}
    n = len(frame.atoms)
    if frame.energy is not None:
        values = (frame.energy / n, prediction.energy / n, std.energy / n)
        out["energy"] = Comparison(*(np.array([v]) for v in values))
    if frame.forces is not None and not frame.isolated_atom and frame.force_mask.any():
        used = frame.force_mask
        out["forces"] = Comparison(*(v[used].reshape(-1) for v in (frame.forces, prediction.forces, std.forces)))
    if frame.stress is not None and prediction.stress is not None and std.stress is not None:
        out["stress"] = Comparison(frame.stress, prediction.stress, std.stress)
    if frame.magmoms is not None and prediction.magmoms is not None and prediction.magmoms_std is not None:
        known = _known(prediction)
        out["magmoms"] = Comparison(*(v[known] for v in (frame.magmoms, prediction.magmoms, prediction.magmoms_std)))
    return out


def _known(prediction: Prediction) -> NDArray[np.bool_]:
    """Atoms whose element has moments in the training data."""
    assert prediction.magmoms is not None
    return np.isfinite(prediction.magmoms)


def _joined(parts: list[Comparison]) -> Comparison:
    names = ("label", "predicted", "std")
    return Comparison(*(np.concatenate([np.zeros(0), *(getattr(p, name) for p in parts)]) for name in names))

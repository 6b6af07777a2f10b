"""ASE calculator of one level of a model.

`results` holds energy, free_energy (equal: the model has no electronic entropy of its own), energies, forces and, in a
cell, stress, with energy_std, energies_std, forces_std and stress_std beside them; magmoms and their sum magmom (Bohr
magnetons) with magmoms_std where the level's training data have moments, with every call under uncertainty="full" and
otherwise when asked for. Units eV, Å; stress in ASE's sign and Voigt order.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.outputs import Properties

from mfgp.calibration.cell_widths import warn_of_larger_cells
from mfgp.data.closest_pairs import warn_of_close_pairs
from mfgp.data.structure_warnings import warn_of_structures
from mfgp.predict.prediction import UNCERTAINTIES, Prediction

if TYPE_CHECKING:
    from mfgp.model import MultiFidelityGP


LOOK = 10  # calls; atoms that fall into each other stay there
SLOW = 2.0  # seconds of a step
SKIN = 0.2  # Å; a larger one means fewer searches and more pairs beyond the cutoff


class UncertaintyWarning(UserWarning):
    """The model says that it does not know this structure."""


def stress_note(model: MultiFidelityGP, fidelity: str) -> str | None:
    """What to know of the stresses of a level where no training label is one; None where some are.

    The stress is still the strain derivative of the predicted energy, so it is defined, and so is its standard deviation;
    but no label of its kind was ever compared with it. Forces alone leave it open: what the volume does to the energy of
    atoms that stay where they are, relative to the cell, they do not know.
    """
    counts = model.data[fidelity]
    if counts.get("stresses"):
        return None
    if not counts.get("energies"):
        return (
            f"level {fidelity!r} has neither energies nor stresses among its labels: forces alone do not fix stresses, and "
            "stress_std can be much too small"
        )
    return (
        f"level {fidelity!r} has no stress labels; stresses are derived from what energies and forces have taught the model "
        "(the strain derivative of the energy), and stress_std was never compared with an error"
    )


class MultiFidelityCalculator(Calculator):
    """`model.calculator(fidelity=...)`.

    uncertainty: what is computed with every call: `full` (all standard deviations, exact; 13 - 70 times the time of
    `energies`, which a warning says once where it takes long), `sampled` (those of forces and stress from `draws` draws of
    the weights with a `seed`, each as costly as the mean; without what the inducing points do not carry, so several times
    too small where the model is not calibrated, and off by some 30 % where it is), `energies` (total and local energies;
    about twice the mean, for molecular dynamics), `local` (of local energies alone, cheaper still) or `none`.
    uncertainty_threshold: warn with `UncertaintyWarning` when the largest standard deviation in `results` (label noise
    included where the model is calibrated) passes it: of a force component (eV/Å) with `full` and `sampled`, of a local
    energy (eV) with `energies` and `local`.
    calibrated: scale standard deviations to left-out errors, where the model is calibrated.
    skin (Å): the list of pairs reaches so much farther than the descriptor, and is searched anew only when an atom has moved
    by more than half of it, or the cell has changed (with `full`, at every step). Results do not depend on it.
    compression (eV): largest change of a local energy at an inducing environment by summing the mean over fewer terms than
    inducing points (kernels with zeta 1 or 2; not with `full`). 1e-5 is fast and changes forces by less than 1e-4 eV/Å on
    LMFP; `mfgp.compression.compression_error` says by how much on structures of yours.
    dtype: `float32` is faster (with `full` nothing changes). Forces differ by 1e-4 eV/Å or less on LMFP, silicon and metals
    (1.3e-4 at most), by 1e-4 to 2e-3 on small molecules with the preset `molecule`: the more, the larger the amplitude s
    that was learned (tenfold from 1 to 1000 eV) and the smaller the noise of forces (docs/theory.md). Compare both on
    structures of yours.

    The first time that someone asks for the stress of a level without stress labels it warns (`stress_note`), and of the
    first structure whose cell is larger than those trained on (`mfgp.calibration.cell_widths`), once for a model and level.
    Of the first structure that it calculates it tells disorder and a transposed cell (`mfgp.data.structure_warnings`); in
    every tenth, once, atoms that are closer than any of their elements in the training data (`mfgp.data.closest_pairs`).
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress", "magmoms", "magmom"]  # noqa: RUF012

    def __init__(
        self,
        model: MultiFidelityGP,
        fidelity: str | None = None,
        *,
        uncertainty: str = "full",
        uncertainty_threshold: float | None = None,
        calibrated: bool = True,
        draws: int = 8,
        seed: int = 0,
        skin: float = SKIN,
        dtype: str = "float64",
        compression: float = 0.0,
    ) -> None:
        super().__init__()
        if uncertainty not in UNCERTAINTIES:
            raise ValueError(f"uncertainty must be one of {', '.join(UNCERTAINTIES)}, not {uncertainty!r}")
        if uncertainty == "sampled" and draws < 1:
            raise ValueError(f"uncertainty='sampled' needs draws of 1 or more, not {draws}")
        if uncertainty_threshold is not None and not uncertainty_threshold > 0:
            raise ValueError(f"uncertainty_threshold must be positive, not {uncertainty_threshold}")
        if uncertainty_threshold is not None and uncertainty == "none":
            raise ValueError("an uncertainty_threshold needs uncertainty='full', 'sampled', 'energies' or 'local'")
        self.model = model
        self._options: dict[str, Any] = {
            "fidelity": fidelity,
            "calibrated": calibrated,
            "draws": draws if uncertainty == "sampled" else 0,
            "seed": seed,
            "skin": skin,
            "dtype": dtype,
            "compression": compression,
        }
        self.predictor = model.predictor(**self._options)
        self.parameters["fidelity"] = self.fidelity  # ASE writes it into trajectories and databases
        self.uncertainty = uncertainty
        self.uncertainty_threshold = uncertainty_threshold
        self._calls, self._slow_calls, self._close_told = 0, 0, False
        self._stress_note = stress_note(model, self.fidelity)  # None when there is nothing to say, or it has been said

    def refresh(self) -> None:
        """Take over what the model has learned since (`MultiFidelityGP.update`); what was computed before is forgotten."""
        self.predictor = self.model.predictor(**self._options)
        self.reset()

    @property
    def fidelity(self) -> str:
        """The level that is predicted."""
        return self.predictor.fidelity

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As ASE has it: what a user asks for comes through here, also where it is computed already."""
        value = super().get_property(name, atoms, allow_calculation)
        if name == "stress" and allow_calculation and self._stress_note is not None:
            note, self._stress_note = self._stress_note, None
            warnings.warn(note, UserWarning, stacklevel=4)
        return value

    def export_properties(self) -> Properties:
        """What ASE knows of `results` (`atoms.get_properties`): it refuses names that are not its own, as energy_std."""
        return Properties({name: self.results[name] for name in self.implemented_properties if name in self.results})

    def set(self, **options: Any) -> dict[str, Any]:
        """TypeError for any option: ASE's own takes every name, and what it sets would have no effect here."""
        if options:
            raise TypeError(
                f"{', '.join(options)}: give options to model.calculator(...), which makes another calculator"
            )
        return {}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, bit by bit: ASE's own comparison takes a tenth of a millisecond."""
        last = self.atoms
        initial = ("initial_magmoms", "initial_charges")  # a baseline may want them
        if last is None or len(last) != len(atoms) or any(last.has(name) or atoms.has(name) for name in initial):
            return super().check_state(atoms, tol)
        pairs = {
            "positions": (last.positions, atoms.positions),
            "numbers": (last.numbers, atoms.numbers),
            "cell": (last.cell.array, atoms.cell.array),
            "pbc": (last.pbc, atoms.pbc),
        }
        return [name for name, (old, new) in pairs.items() if not np.array_equal(old, new)]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`. Raises DataError for elements that the model has not seen and for unusable geometry."""
        super().calculate(atoms, properties, system_changes)
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # not what others compute
        start = clock()
        p = self.predictor(self.atoms, self.uncertainty)
        self._warn_of_slow_steps(clock() - start)
        results = {
            "energy": p.energy,
            "free_energy": p.energy,
            "energies": p.energies,
            "forces": p.forces,
            "stress": p.stress,
            "energy_std": p.energy_std,
            "energies_std": p.energies_std,
            "forces_std": p.forces_std,
            "stress_std": p.stress_std,
        }
        results |= self._magnetic_moments(p, properties or [])
        self.results = {name: value for name, value in results.items() if value is not None}
        if properties and "stress" in properties and p.stress is None:
            without = "a structure without a periodic cell has no stress"
            if self.atoms.cell.rank == 3 and self.atoms.pbc.any() and self.model.baselines:
                names = ", ".join(b.name for b in self.model.baselines)
                without = f"no stress: a baseline ({names}) gives none for this structure"
            raise PropertyNotImplementedError(without)
        self._look_at_structure()
        if self.uncertainty != "none":
            warn_of_larger_cells(self.model, self.predictor.level, [self.atoms], stacklevel=6)
        if self.uncertainty_threshold is not None:
            self._warn(self.uncertainty_threshold)

    def _look_at_structure(self) -> None:
        """Disorder and the cell of the first structure, close atoms of every LOOK-th until told: steps are to be fast."""
        if self._calls == 0:
            warn_of_structures([self.atoms], stacklevel=7)
        if self._calls % LOOK == 0 and self.model.calibration is not None and not self._close_told:
            self._close_told = warn_of_close_pairs([self.atoms], self.model.calibration.closest, stacklevel=7)
        self._calls += 1

    def _warn_of_slow_steps(self, seconds: float) -> None:
        """Once, at the second slow step: the first may compile loops, or be all that is wanted."""
        if self.uncertainty != "full" or seconds <= SLOW:
            return
        self._slow_calls += 1
        if self._slow_calls == 2:
            warnings.warn(
                f"a step took {seconds:.1f} s, nearly all of it for the standard deviations of forces and stress: in "
                "dynamics and relaxations pass uncertainty='energies' (those of total and local energies), 'sampled' or "
                "'none' to the calculator. This is said once.",
                stacklevel=7,
            )

    def _magnetic_moments(self, p: Prediction, properties: list[str]) -> dict[str, Any]:
        """What there is of them; they cost about as much as an energy without its gradient."""
        magmoms, std = p.magmoms, p.magmoms_std
        asked = {"magmoms", "magmom"} & set(properties)
        if asked and not self.predictor.has_moments:
            raise PropertyNotImplementedError(f"level {self.fidelity} has no magnetic moments in its training data")
        if asked and magmoms is None:
            magmoms, std = self.predictor.magnetic_moments(self.atoms)
        return {} if magmoms is None else {"magmoms": magmoms, "magmoms_std": std, "magmom": float(np.nansum(magmoms))}

    def _warn(self, threshold: float) -> None:
        name, unit = ("forces_std", "eV/Å") if self.uncertainty in ("full", "sampled") else ("energies_std", "eV")
        std = np.asarray(self.results[name]).reshape(len(self.atoms), -1).max(axis=1)
        atom = int(std.argmax())
        if std[atom] > threshold:
            symbol = chemical_symbols[self.atoms.numbers[atom]]
            warnings.warn(
                f"{name} of atom {atom} ({symbol}) is {std[atom]:.3g} {unit}, above the threshold of {threshold:g}: "
                "the structure is unlike the training data",
                UncertaintyWarning,
                stacklevel=3,
            )

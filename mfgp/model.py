"""MultiFidelityGP: the fitted force field.

State: descriptor, inducing basis, e0 and baseline columns, sufficient statistics, hyperparameters, and for each level the
posterior mean w_t [M'] and covariance C_t [M', M'] of its weights. A functional with row a = [Phi | columns] has

    mean       a . w_t + prior mean
    variance   a^T C_t a + sum_z S_t[z] (prior_z - |Phi_z|^2),       S_t[z] = sum_u W[t, u][z]^2 s_u^2

where prior_z is its exact prior variance at unit amplitude (the full derivative kernel) and |Phi_z|^2 the part of it that
the inducing points carry (Quinonero-Candela & Rasmussen 2005, the projected process).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ase import Atoms
from ase.data import chemical_symbols
from gpytorch.distributions import MultivariateNormal
from numpy.typing import ArrayLike
from torch import Tensor

from mfgp.base.progress import Report, bars, silent
from mfgp.baselines.checks import Check, baseline_checks
from mfgp.baselines.columns import Baseline, make_baselines
from mfgp.calibration.calibrating import calibrated
from mfgp.calibration.calibration import Calibration
from mfgp.calibration.cell_widths import warn_of_larger_cells
from mfgp.calibration.leave_one_out import LeftOut, leave_one_out
from mfgp.config import FitConfig
from mfgp.data.costs import CostModel
from mfgp.data.training_frames import calculations, check_seen, distinct, new_calculations, own_sigmas, trainable
from mfgp.errors import ConfigError, DataError
from mfgp.fit import fitting
from mfgp.fit.features import Features
from mfgp.fit.learned import learned_hyperparameters
from mfgp.frames import FrameSet, frames_from
from mfgp.gp.autoregressive import block_scales
from mfgp.gp.centring import uncentred, uncentred_covariance
from mfgp.gp.hyperparameters import LEARNED_KINDS, AutoregressiveGP, LevelNoise, given_variances, inverse_variances
from mfgp.gp.levels import Chain, Posterior
from mfgp.gp.observations import Columns
from mfgp.gp.site_moments import SiteKey, SitePosterior, SiteStatistics, fit_sites
from mfgp.gp.statistics import Key, Statistics, merge
from mfgp.gp.training import TrainingResult
from mfgp.notes.fit_notes import fit_notes, warn_of_labels
from mfgp.notes.prequential import tested
from mfgp.notes.surprises import warn_of_surprises
from mfgp.predict.batched import predictions
from mfgp.predict.combinations import EnergyCombination, energy_combination
from mfgp.predict.prediction import Prediction
from mfgp.predict.predictor import Predictor

if TYPE_CHECKING:
    from mfgp.calculator import MultiFidelityCalculator

TrainingSummary = dict[str, dict[str, int]]


class MultiFidelityGP:
    """A sparse autoregressive Gaussian-process force field. Build one with `fit` or `load`."""

    def __init__(
        self,
        config: FitConfig,
        levels: tuple[str, ...],
        features: Features,
        columns: Columns,
        column_std: Tensor,
        prior: AutoregressiveGP,
        noise: LevelNoise,
        statistics: Statistics,
        baselines: list[Baseline],
        data: TrainingSummary,
        seen: frozenset[str],
    ) -> None:
        self.config, self.levels = config, levels
        self.features, self.columns, self.column_std = features, columns, column_std
        self.soap, self.basis = features.soap, features.basis
        self.prior, self.noise = prior.requires_grad_(False), noise.requires_grad_(False)
        self.statistics = statistics
        self.baselines, self.data, self.seen = baselines, data, seen
        self.training: TrainingResult | None = None
        self.calibration: Calibration | None = None
        self.calculated: frozenset[str] = frozenset()  # training_frames.calculations
        self.larger_told = set[int]()  # levels, by cell_widths.warn_of_larger_cells
        self.baseline_checks = dict[str, Check]()  # of calculators that a caller gave
        self.costs = CostModel()  # of labels, as far as the training frames say
        self.own_sigmas = torch.zeros(len(levels), 3, dtype=torch.float64)  # training_frames.own_sigmas
        self.site_statistics, self.sites = SiteStatistics(), dict[SiteKey, SitePosterior]()  # of magnetic moments
        self.weights: Tensor  # [T, M'] w_t, eV
        self.covariances: Tensor  # [T, M', M'] C_t, eV^2

    def __repr__(self) -> str:
        counts = ", ".join(f"{level}: {self.data[level]['frames']} frames" for level in self.levels)
        elements = ", ".join(chemical_symbols[z] for z in self.basis.species)
        return f"<MultiFidelityGP of {counts}; {elements}; {self.basis.size} inducing points>"

    @classmethod
    def fit(
        cls,
        frames: FrameSet,
        config: FitConfig | None = None,
        *,
        baselines: Mapping[str, Any] | None = None,
        features: Features | None = None,
        data_pass: fitting.DataPass = fitting.accumulate,
        progress: bool = True,
    ) -> MultiFidelityGP:
        """Fit a model to labelled frames (those that info['split'] holds out are left out).

        frames: from `read_frames`, levels cheapest first. baselines: ASE calculators by the names that the configuration
        gives them, for those that are not in the registry. features: descriptor and inducing points chosen beforehand, to
        share them between fits; by default they are chosen from the training structures. data_pass: what sums up the data,
        in this process or on many (`mfgp.distributed.DistributedPass`). Raises DataError or ConfigError for input that
        cannot be used, NumericalError where float64 does not carry the problem.
        """
        config = config or FitConfig()
        if not isinstance(config, FitConfig):
            raise ConfigError(f"config is a {type(config).__name__}; give FitConfig(**settings), or load_config(path).")
        training = distinct(trainable(frames))
        calculators = make_baselines(config.baselines, baselines, frames.levels)
        with torch.inference_mode(False), torch.enable_grad(), bars(progress) as report:  # as a caller may have it off
            features = features or Features.build(training, config, report)
            features.check(training, config)
            basis, device = features.basis, features.device
            columns, column_std = fitting.build_columns(training, basis.species, config, calculators)
            columns, column_std = columns.to(device), column_std.to(device)
            learning = fitting.training_data(training, features, columns, calculators, config, report, data_pass)
            prior = fitting.make_prior(frames.levels, basis, config.model.rho).to(device)
            noise = fitting.make_noise(frames.levels, config).to(device)
            result = fitting.learn(prior, noise, learning, basis, column_std, config, report)
            moments = fitting.accumulate_sites(training, features, report)
        learned = (columns, column_std, prior, noise, learning.statistics)
        data, seen = training.summary(), frozenset(training.frame_hashes())
        model = cls(config, frames.levels, features, *learned, calculators, data, seen)
        model.training, model.costs, model.own_sigmas = result, CostModel.learn(training), own_sigmas(training)
        model.calculated = calculations(training)
        model.baseline_checks = baseline_checks(training, config.baselines, calculators, baselines or {})
        model.site_statistics, model.sites = moments, fit_sites(moments)
        model.refresh()
        if config.training.calibrate:
            with bars(progress) as report:
                model.calibrate(training, report)
        warn_of_labels(model, training)
        return model

    def calibrate(self, frames: FrameSet, report: Report = silent) -> Calibration | None:
        """Scale the standard deviations to errors of left-out structures among the training frames; kept in the model.

        Raises DataError for frames that the model was not trained on. See calibrating.calibrated.
        """
        self.check_seen(frames)
        self.calibration = calibrated(self, frames, report)
        return self.calibration

    def label_noise(self, level: int) -> Tensor:
        """Noises of energies, forces and virials at a level [3]: learned, else the rms of own sigmas, else 0."""
        learned = torch.tensor([(level, kind) in self.statistics.moments for kind in LEARNED_KINDS])
        return torch.where(learned, self.noise.noise[level].detach().cpu(), self.own_sigmas[level]).to(self.weights)

    def noises(self) -> dict[Key, float]:
        """Standard deviation of the labels of each (level, kind) in the posterior, in the unit of their rows."""
        kinds = [(t, kind) for t in range(len(self.levels)) for kind in LEARNED_KINDS]
        with torch.no_grad():
            given = given_variances(self.statistics, self._scales())
        return {key: float(self.noise.of(key)) for key in kinds} | {key: float(v) ** 0.5 for key, v in given.items()}

    def leave_one_out(self, frames: FrameSet, report: Report = silent) -> Iterator[LeftOut]:
        """What the model would say of each structure of `frames`, had that structure not been in the training data.

        In closed form, at fixed hyperparameters and inducing points; see leave_one_out. Raises DataError as check_seen does.
        """
        self.check_seen(frames)
        return leave_one_out(self, frames, report)

    def check_seen(self, frames: FrameSet) -> None:
        """DataError for frames that are not training data."""
        check_seen(frames, self.calculated, self.seen)

    def posterior(self, statistics: Statistics | None = None) -> Posterior:
        """The joint posterior over all levels' weights, of w and e0' (centring), at the present hyperparameters."""
        with torch.no_grad():
            data, d = statistics or self.statistics, self._scales()
            return Posterior(data, Chain.of(d), inverse_variances(self.noise, data, d))

    def _scales(self) -> Tensor:
        """d [T, T, M'] of autoregressive.block_scales."""
        return block_scales(self.prior.rho, self.prior.scale, self.basis.species_index(), self.column_std)

    def _solution(self, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """Weights and covariances of every level."""
        joint, centre = self.posterior(statistics), self.features.centre
        return uncentred(joint.level_means(), centre), uncentred_covariance(joint.level_covariances(), centre)

    def refresh(self) -> None:
        """Recompute the posterior from the statistics and hyperparameters."""
        self.weights, self.covariances = self._solution(self.statistics)

    def level(self, fidelity: str | None) -> int:
        """Index of a level by name; the highest for None. Raises DataError naming the known levels."""
        if fidelity is None:
            return len(self.levels) - 1
        if fidelity not in self.levels:
            raise DataError(f"unknown level {fidelity!r}; this model has {', '.join(self.levels)} (cheapest first).")
        return self.levels.index(fidelity)

    def predictor(
        self,
        fidelity: str | None = None,
        *,
        calibrated: bool = True,
        draws: int = 0,
        seed: int = 0,
        by_level: bool = False,
        skin: float = 0.0,
        dtype: str = "float64",
        compression: float = 0.0,
    ) -> Predictor:
        """Predictions at one level (the highest by default), with calibrated stds where the model has a calibration.

        draws: of the weights, for uncertainty="sampled"; by_level: prepare what uncertainty="by_level" needs.
        skin (Å): for steps of one structure's dynamics, pairs are searched anew only when an atom has moved by more than
        half of it. dtype: `float32` sums over pairs in float32 for means (products with inducing points stay float64: their
        weights cancel); "full" and "by_level" are float64 in any case. compression (eV): other means are summed over fewer
        terms than inducing points, which changes no local energy of one by more (`mfgp.predict.reduction`; zeta 1 and 2).
        """
        return Predictor(self, self.level(fidelity), calibrated, draws, seed, by_level, skin, dtype, compression)

    def predict(
        self,
        atoms: Atoms | Sequence[Atoms],
        fidelity: str | None = None,
        *,
        uncertainty: str = "full",
        calibrated: bool = True,
        progress: bool = True,
    ) -> Prediction | list[Prediction]:
        """Energy, forces, stress and their standard deviations at a level (the highest by default).

        uncertainty: `full`, `by_level` (the same, and split over the levels in `std_by_level`), `energies` (total and local
        energies only, much cheaper), `local` (of local energies alone) or `none`. Units eV, eV/Å, eV/Å^3.
        calibrated: scale the stds to left-out errors where the model is calibrated; False gives the posterior's own.
        progress: a bar after 2 s. Warns once of cells larger than those trained on. DataError for an unseen element, level.
        """
        predictor = self.predictor(fidelity, calibrated=calibrated, by_level=uncertainty == "by_level")
        found = predictions(predictor, atoms, uncertainty, progress)
        if uncertainty != "none":
            warn_of_larger_cells(self, predictor.level, [atoms] if isinstance(atoms, Atoms) else atoms, stacklevel=2)
        return found

    def energy_combination(
        self,
        structures: Sequence[Atoms],
        coefficients: ArrayLike,
        fidelity: str | None = None,
        *,
        label_noise: bool = True,
        calibrated: bool = True,
    ) -> EnergyCombination:
        """sum_i c_i E_i of total energies (eV) and its standard deviation: differences, reaction energies, averages.

        Errors of like structures go together: energy_stds do not add up in squares. label_noise: that of a new calculation
        of each structure is in it; False for the energies behind noisy labels (averages over a trajectory), not for like
        structures of noise-free ones, where it is misfit. calibrated, and DataError, as `predict`; also for coefficients.
        """
        predictor = self.predictor(fidelity, calibrated=calibrated)
        found = energy_combination(predictor, structures, coefficients, label_noise)
        warn_of_larger_cells(self, predictor.level, structures, stacklevel=2)
        return found

    def distribution(self, atoms: Atoms, fidelity: str | None = None) -> MultivariateNormal:
        """Joint posterior of energy, forces (atom-major) and virial of a structure, with its full covariance."""
        return self.predictor(fidelity).distribution(atoms)

    def calculator(self, fidelity: str | None = None, **options: Any) -> MultiFidelityCalculator:
        """An ASE calculator at a level; options as in `mfgp.calculator.MultiFidelityCalculator`."""
        from mfgp.calculator import MultiFidelityCalculator

        return MultiFidelityCalculator(self, fidelity, **options)

    def update(
        self, new_frames: FrameSet | Mapping[str, Sequence[Atoms]] | Sequence[Atoms], *, progress: bool = False
    ) -> MultiFidelityGP:
        """Add labelled frames at fixed hyperparameters (but those of magnetic moments) and inducing points; in place.

        The posterior is that of a fit to all the data with the same hyperparameters and inducing points, the calibration
        that of the last `fit` or `calibrate`: fit again, or calibrate on all frames, where a warning tells that it is too
        narrow, fit again where the inducing points do not carry the new frames (`notes`, too). Frames of calculations that
        the model has, and held-out ones, are skipped with a warning; labels like another unit or reference, and isolated
        atoms without a term, are told. DataError, and no change, for unseen elements or levels. Calculators keep the old.
        """
        frames = frames_from(new_frames, self.levels, self.config.keys)
        if n := len(frames.held_out()):
            warnings.warn(f"held out (info['split']) and skipped: {n} of {len(frames)} frames", stacklevel=2)
        self.check_elements(frames)
        chosen = distinct(new_calculations(frames.training(), self.calculated, self.seen))
        if not chosen:
            return self
        warn_of_surprises(self, chosen)
        calibration = tested(self, chosen)
        sigma = self.config.training.noise_energy
        with bars(progress) as report:
            added = fitting.accumulate(chosen, self.features, self.columns, self.baselines, sigma, report)
            moments = self.site_statistics.merged(fitting.accumulate_sites(chosen, self.features, report))
        statistics = merge([self.statistics, added])
        summary, seen = chosen.summary(), self.seen | set(chosen.frame_hashes())
        data = {level: {k: n + summary[level][k] for k, n in counts.items()} for level, counts in self.data.items()}
        sites = fit_sites(moments) if any(f.magmoms is not None for f in chosen) else self.sites
        weights, covariances = self._solution(statistics)  # the last step that can fail
        self.statistics, self.seen, self.data, self.calibration = statistics, seen, data, calibration
        self.weights, self.covariances, self.site_statistics, self.sites = weights, covariances, moments, sites
        self.costs = self.costs.added(CostModel.learn(chosen))
        self.own_sigmas = torch.where(self.own_sigmas > 0, self.own_sigmas, own_sigmas(chosen))
        self.calculated |= calculations(chosen)
        return self

    def check_elements(self, frames: FrameSet) -> None:
        """DataError for the first frame with an element that the model has not seen."""
        predictor = self.predictor()
        for frame in frames:
            predictor.check_elements(frame.atoms, frame.source)

    def hyperparameters(self) -> dict[str, Any]:
        """What was learned: outputscale s_t^2 (eV^2), rho [T-1][species], noises by level, e0 (eV) by level and element."""
        return learned_hyperparameters(self)

    def notes(self) -> list[str]:
        """What `mfgp fit` says at its end: sentences that begin with `note:` or `warning:`, none where all went as asked.

        Fewer inducing points than wanted, an optimisation that was not done, labels that the model takes for noise or
        that contradict each other, a rho at a bound or near zero, baselines learned away. Of a loaded model, too.
        """
        return fit_notes(self)

    def data_hash(self) -> str:
        """sha256 over the training frames (structures, labels, levels), whatever their order."""
        return hashlib.sha256("\n".join(sorted(self.seen)).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a model file (atomically: a file of that name is replaced only by a complete one)."""
        from mfgp.model_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path, *, baselines: Mapping[str, Any] | None = None) -> MultiFidelityGP:
        """Read a model file. Raises ModelFileError for what is not one; baselines as in `fit`.

        Calculators for `baselines` are asked for one energy, of a training structure that the file keeps: ConfigError where
        it is not that of the fit's calculator.
        """
        from mfgp.model_file import load

        return load(path, baselines)

"""The models of a campaign: what a new label says of the model before it is learned, updates, refits, versions on disk.

A version is a file first (written whole) and a row then, in the transaction that marks its labels as learned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mfgp.base.progress import Report, silent
from mfgp.campaign.config import CampaignConfig
from mfgp.campaign.records import LabelRow, frames_of
from mfgp.campaign.store import Store
from mfgp.config import FitConfig
from mfgp.errors import DataError, MfgpError
from mfgp.frames import Frame
from mfgp.model import MultiFidelityGP
from mfgp.predict.prediction import Prediction

MODELS = "models"
FAILED = "refit_failed"  # key of the number of labels that a refit failed with
MORE = 1.2  # times as many labels, from which on another one is tried


class Models:
    """Loads the latest version once, and makes the next ones."""

    def __init__(self, directory: Path, store: Store, config: CampaignConfig) -> None:
        self.directory, self.store, self.config = directory, store, config
        self._held: tuple[int, MultiFidelityGP] | None = None

    def latest(self) -> tuple[int, MultiFidelityGP]:
        """Version and model. Raises ModelFileError for a file that is gone or damaged."""
        version, file = self.store.latest_model()
        if self._held is None or self._held[0] != version:
            self._held = (version, MultiFidelityGP.load(self.directory / file))
        return self._held

    def learn(self, step: int | None, report: Report = silent) -> int:
        """Learn the accepted labels that no version holds yet, and close the step; returns how many there were.

        Where a label that was learned has been replaced, all accepted ones are fitted again. Raises DataError if that fails.
        """
        rows = self.store.labels("accepted = 1 AND learned_in IS NULL")
        replaced = self.store.count_labels("accepted = 0 AND learned_in IS NOT NULL")
        if not rows and not replaced:
            if step is not None:
                self.store.close_step(step)
            return 0
        version, model = self.latest()
        before = {}
        for i, (row, frame) in enumerate(zip(rows, self._in_order(rows, model.levels), strict=True)):
            report("new labels: error before learning", i + 1, len(rows), "")
            before[row.id] = {"model": version, **error_of(model.predictor(row.level)(frame.atoms), frame)}
        begin = time.perf_counter()
        self._held = None  # an update works in place: whatever fails below, the file is what counts
        model, kind, why = self._next(model, rows, replaced, step, report)
        file = f"{MODELS}/model_{version + 1:04d}.mfgp"
        model.save(self.directory / file)
        seconds = time.perf_counter() - begin
        self.store.record_model(version + 1, file, kind, why, seconds, [r.id for r in rows], before, step)
        self._held = (version + 1, model)
        return len(rows)

    def _next(
        self, model: MultiFidelityGP, rows: Sequence[LabelRow], replaced: int, step: int | None, report: Report
    ) -> tuple[MultiFidelityGP, str, str]:
        """The model with the new labels and without those that were replaced, what was done, and why.

        All is fitted again where labels were replaced, every `refit_every` steps, and, in a campaign with `fit`, where the
        inducing points do not carry the new structures (calibration/carried.py), unless that failed with nearly as many.
        """
        counts = ", ".join(f"{n} {t}" for t in model.levels if (n := sum(r.level == t for r in rows)))
        every, why = self.config.refit_every, f"{counts or 'no'} labels learned"
        due = every is not None and step is not None and step % every == 0
        because = f"{replaced} were replaced, so" if replaced else f"every {every} steps" if due else ""
        new = frames_of(list(rows), model.levels)
        if updated := not because:
            model.update(new)
            if self.config.fit is not None and model.calibration is not None and not model.calibration.carries:
                because, but = self._missed()
                why += but
        if because:
            report("refit", 0, 1, "")
            accepted = self.store.labels("accepted = 1")  # an error of the database is none of the fit
            try:
                every_frame = frames_of(accepted, model.levels)
                model = MultiFidelityGP.fit(every_frame, self.fit_config(), progress=False)
                report("refit", 1, 1, "")
                self.store.set_meta(FAILED, "0")
                return model, "refit", f"{why}; {because} all is fitted again"
            except MfgpError as error:
                if replaced:
                    raise DataError(
                        f"{replaced} labels that the model learned were replaced, so all is to be fitted again; the fit "
                        f"failed: {error}"
                    ) from error
                self.store.set_meta(FAILED, str(len(accepted)))
                why += f"; the refit failed ({error}), so an update at the old hyperparameters"
        if not updated:
            model.update(new)
        if self.config.fit is not None and model.calibration is not None:  # all that the model knows is here
            model.calibrate(frames_of(self.store.labels("accepted = 1"), model.levels), report)
            why += "; calibrated on all"
        return model, "update", why

    def _missed(self) -> tuple[str, str]:
        """Why all is fitted again where the inducing points do not carry the new labels, or why it is not."""
        missed, wanted = "the inducing points do not carry them", math.ceil(MORE * int(self.store.meta(FAILED) or 0))
        if self.store.count_labels() >= wanted:
            return f"{missed}, so", ""
        return "", f"; {missed}, but a refit failed before: another one is tried with {wanted} labels"

    def fit_config(self) -> FitConfig:
        """The configuration of the fit, as `init` read it."""
        return FitConfig(**yaml.safe_load(self.store.meta("fit") or "{}"))

    @staticmethod
    def _in_order(rows: Sequence[LabelRow], levels: tuple[str, ...]) -> list[Frame]:
        return [frames_of([row], levels).frames[0] for row in rows]


def error_of(p: Prediction, frame: Frame) -> dict[str, Any]:
    """Errors of a prediction on a label it has not seen, beside its standard deviations.

    energy_error eV/atom (signed); force_mae, force_rmse, force_max, force_std (rms) eV/Å; in95: share of force components in
    the 95 % interval. What the label does not hold is left out.
    """
    out: dict[str, Any] = {}
    n = len(frame.atoms)
    if frame.energy is not None:
        out["energy_error"] = (p.energy - frame.energy) / n
        if p.energy_std is not None:
            out["energy_std"] = p.energy_std / n
    if frame.forces is not None and frame.force_mask.any():
        error = (p.forces - frame.forces)[frame.force_mask]
        out["force_mae"] = float(np.abs(error).mean())
        out["force_rmse"] = float(np.sqrt((error**2).mean()))
        out["force_max"] = float(np.abs(error).max())
        if p.forces_std is not None:
            std = p.forces_std[frame.force_mask]
            out["force_std"] = float(np.sqrt((std**2).mean()))
            out["in95"] = float((np.abs(error) <= 1.959964 * std).mean())
    return out

"""Making a campaign: everything is read and checked first, then written in one transaction; cheap checks come first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from ase import Atoms

from mfgp import __version__
from mfgp.base.files import replacing
from mfgp.campaign.calculators import Factory, calculator_class
from mfgp.campaign.config import CampaignConfig
from mfgp.campaign.inputs import record
from mfgp.campaign.learning import MODELS
from mfgp.campaign.pool import HELD_OUT, candidates, check_elements
from mfgp.campaign.schema import CONFIG, DATABASE, SCHEMA
from mfgp.campaign.store import Store, now
from mfgp.campaign.tasks import check_calculators
from mfgp.config import FitConfig, load_config
from mfgp.data.costs import CostModel
from mfgp.data.same_structure import keys
from mfgp.errors import ConfigError
from mfgp.frames import FrameSet, read_frames
from mfgp.model import MultiFidelityGP


def start(config: CampaignConfig, directory: Path, calculators: dict[str, Factory], progress: bool) -> list[str]:
    """Make the campaign in `directory`, whose lock is held; returns notices. See Campaign.init."""
    check_calculators(config, calculators)
    if config.workers.scheduler is None:  # else they run elsewhere
        for level in config.levels.values():
            if level.calculator is not None:
                calculator_class(level.calculator)
    store, made = Store.create(directory / DATABASE), False
    try:
        notices: list[str] = []
        fit = None if config.fit is None else load_config(config.fit)
        frames = None if fit is None else _initial_frames(config, fit)
        held_out = set() if frames is None else {own for own, _ in keys([f.atoms for f in frames.held_out()])}
        pool = candidates(config.pool, held_out, notices)
        targets = candidates(config.targets, set(), notices) if config.targets else []
        if frames is not None:
            _check_levels(config, frames.levels)
            _check_costs(config, CostModel.learn(frames.training()))
        begin = time.perf_counter()
        model = _first_model(config, fit, frames, progress)
        _check_levels(config, model.levels)
        _check_costs(config, model.costs)
        check_elements(model, [*pool, *targets])
        (directory / MODELS).mkdir(exist_ok=True)
        model.save(directory / MODELS / "model_0000.mfgp")
        with replacing(directory / CONFIG) as temporary:
            temporary.write_text(config.to_yaml(), encoding="utf-8")
        seconds = time.perf_counter() - begin
        _write(store, config, fit, model, frames, pool, targets, held_out, seconds)
        made = True
        return notices
    finally:
        store.close()
        if not made:  # a killed `init` leaves it, to be used again
            for ending in ("", "-wal", "-shm"):
                (directory / f"{DATABASE}{ending}").unlink(missing_ok=True)


def _write(
    store: Store, config: CampaignConfig, fit: FitConfig | None, model: MultiFidelityGP, frames: FrameSet | None,
    pool: Sequence[Atoms], targets: Sequence[Atoms], held_out: set[str], seconds: float,
) -> None:  # fmt: skip
    """Everything, and that it is ready, in one transaction."""
    with store.transaction() as db:
        for i, name in enumerate(model.levels):
            level = config.levels.get(name)
            text = None if level is None else json.dumps(level.model_dump(mode="json"))
            db.execute("INSERT INTO levels VALUES (?, ?, ?)", (name, i, text))
        why = f"loaded from {config.model}" if fit is None else f"fitted to the data of {config.fit}"
        row = (0, f"{MODELS}/model_0000.mfgp", "initial", why, now(), seconds, 0, 0.0, None)
        db.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        store.number_structures("pool_index", [store.add_structure(a, a.info.pop("source")) for a in pool])
        store.number_structures("target_index", [store.add_structure(a, a.info.pop("source")) for a in targets])
        if frames is not None:
            n = len(store.add_labels(frames.training(), "initial", learned_in=0, why="initial data"))
            db.execute("UPDATE models SET n_labels = ?", (n,))
            store.set_meta("fit", yaml.safe_dump(fit.model_dump(mode="json")) if fit is not None else "{}")
        for key, value in (("schema", SCHEMA), ("target", config.target), ("seed", config.seed)):
            store.set_meta(key, str(value))
        record(store, config)
        store.set_meta(HELD_OUT, json.dumps(sorted(held_out)))
        store.set_meta("created_by", f"mfgp {__version__}")
        store.event("init", f"{len(pool)} structures in the pool, {len(targets)} targets of their own; model {why}")
        store.set_meta("ready", now())


def _initial_frames(config: CampaignConfig, fit: FitConfig) -> FrameSet:
    if not fit.fidelities:
        raise ConfigError(f"{config.fit}: no `fidelities:`; name at least one level with its training files.")
    return read_frames({f.name: list(f.train) for f in fit.fidelities}, keys=fit.keys)


def _first_model(
    config: CampaignConfig, fit: FitConfig | None, frames: FrameSet | None, progress: bool
) -> MultiFidelityGP:
    if fit is None or frames is None:
        assert config.model is not None
        return MultiFidelityGP.load(config.model)
    return MultiFidelityGP.fit(frames, fit, progress=progress)


def _check_levels(config: CampaignConfig, levels: Sequence[str]) -> None:
    known = ", ".join(levels)
    if config.target not in levels:
        raise ConfigError(f"target: {config.target!r} is no level of the model; it has {known}.")
    strange = [name for name in config.levels if name not in levels]
    if strange:
        raise ConfigError(f"levels.{strange[0]}: no level of the model; it has {known}.")


def _check_costs(config: CampaignConfig, known: CostModel) -> None:
    given = {name: level.hours for name, level in config.levels.items() if level.hours is not None}
    missing = known.with_given(given).missing(config.levels)
    if missing:
        raise ConfigError(
            f"levels.{missing[0]}.hours: nothing says what a calculation costs (no label with cpu_seconds or wall_seconds); "
            "give a first estimate in hours."
        )

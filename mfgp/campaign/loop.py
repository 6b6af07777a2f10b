"""The loop of a campaign: select -> label -> check -> update, until the target is sure enough or the budget is spent.

    Campaign.init("campaign.yaml", "run1")
    with Campaign.open("run1") as campaign:
        campaign.run()

Everything that must survive is in one database (store) and in `models/`. A step is written before it is done: its
decisions and tasks first, each calculation as it starts and as it ends, the model file, then the row that names it with the
labels that it learned. So a process killed anywhere leaves a state from which `run` goes on: a finished calculation is
taken from its result file, an unfinished one starts again, a model file that no row names is written over.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from ase import Atoms

from mfgp.base.progress import Report, bars, silent
from mfgp.campaign.adding import arrivals, check_changed
from mfgp.campaign.calculators import Factory
from mfgp.campaign.config import CampaignConfig, load_campaign_config
from mfgp.campaign.failures import free, how_to_retry
from mfgp.campaign.inputs import check as check_inputs
from mfgp.campaign.learning import MODELS, Models
from mfgp.campaign.pool import extend
from mfgp.campaign.records import Planned
from mfgp.campaign.schema import CONFIG, DATABASE
from mfgp.campaign.start import start
from mfgp.campaign.store import LOCK, Store, only_process
from mfgp.campaign.tasks import Tasks
from mfgp.campaign.workers import workers
from mfgp.data.costs import CostModel
from mfgp.data.sources import Sources
from mfgp.data.training_frames import calculation_key, new_calculations
from mfgp.errors import ConfigError, DataError
from mfgp.frames import FrameSet, frames_from
from mfgp.model import MultiFidelityGP
from mfgp.notes.surprises import warn_of_surprises
from mfgp.selection.greedy import Selection, select

if TYPE_CHECKING:
    from distributed import Client

TAKEN_IN = (
    "They are taken in nevertheless. To take them back, give the right ones to `campaign add --replace` (replace=True): "
    "before the next step learns them or, where the campaign has a `fit`, at any time"
)
Structures: TypeAlias = Union[str, "PathLike[str]", Atoms, Sequence[Union[str, "PathLike[str]", Atoms]]]
MEASURED = 3  # labels of a level with their cost, from which on it is taken from them


@dataclass(frozen=True)
class Proposal:
    """What the next step would be: why the campaign stops, or what it would compute. std in eV/Å, of the target."""

    stop: str | None
    std: float
    planned: tuple[Planned, ...] = ()


class Campaign:
    """An open campaign; holds the campaign's lock from `open` until the block ends."""

    def __init__(self, directory: Path, store: Store, config: CampaignConfig, tasks: Tasks, models: Models) -> None:
        self.directory, self.store, self.config = directory, store, config
        self.tasks, self.models = tasks, models

    @staticmethod
    def init(
        config: str | Path | CampaignConfig,
        directory: str | Path,
        calculators: Mapping[str, Factory] | None = None,
        *,
        progress: bool = True,
    ) -> list[str]:
        """Make a campaign in a new (or empty) directory: reads the data, fits or loads the first model. Returns notices.

        calculators: factories of ASE calculators by level, for levels whose configuration names none. Raises ConfigError
        and DataError for what cannot be used, and leaves no directory that it made then; nothing that an interrupted `init`
        leaves is in the way of another.
        """
        settings = config if isinstance(config, CampaignConfig) else load_campaign_config(config)
        directory, settings = Path(directory), settings.absolute(Path.cwd())
        new = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        with only_process(directory):
            try:
                return start(settings, directory, dict(calculators or {}), progress)
            except BaseException:
                if new and [path.name for path in directory.iterdir()] == [LOCK]:
                    (directory / LOCK).unlink()
                    directory.rmdir()
                raise

    @classmethod
    @contextmanager
    def open(cls, directory: str | Path, calculators: Mapping[str, Factory] | None = None) -> Iterator[Campaign]:
        """Open a campaign, alone; what an earlier process left running is settled. Raises DataError if it is in use.

        `campaign.yaml` in the directory is read again: stop, batch, workers and the settings of levels may be changed there.
        """
        directory = Path(directory)
        if not (directory / DATABASE).is_file():
            raise DataError(f"{directory} is no campaign: there is no {DATABASE} in it; make one with `campaign init`.")
        with only_process(directory), ExitStack() as stack:
            store = Store(directory / DATABASE)
            stack.callback(store.close)
            config = load_campaign_config(directory / CONFIG, sources=False)
            for name in ("target", "seed"):
                if str(getattr(config, name)) != store.meta(name):
                    raise ConfigError(f"{directory / CONFIG}: {name} cannot change within a campaign.")
            check_inputs(store, config, directory / CONFIG)
            for leftover in (directory / MODELS).glob(".*.tmp"):  # of a write that was killed
                leftover.unlink()
            tasks = Tasks(directory, store, config, calculators)
            tasks.recover()
            yield cls(directory, store, config, tasks, Models(directory, store, config))

    def run(self, max_steps: int | None = None, *, progress: bool = True) -> str:
        """Steps until the campaign stops or `max_steps` are done; returns why."""
        done = 0
        with bars(progress) as report, self._workers() as client:
            while max_steps is None or done < max_steps:
                why = self._step(client, report)
                if why is not None:
                    return why
                done += 1
        return f"{done} step{'' if done == 1 else 's'} done"

    def add(self, sources: Sources, *, replace: bool = False) -> int:
        """Take in labels computed outside; the next step learns them. Returns how many were new.

        sources: {level: files or Atoms}, or files whose frames name their level. With a warning, held-out frames
        (info['split']) and calculations that the model was trained on are left out; labels that look like another unit are
        taken in with one. replace: labels of structures that have another one at their level take its place, and where a
        model has learned that, all labels are fitted again. Raises DataError for such labels without `replace` and for
        labels that the model cannot learn, ConfigError where there is no data to fit again; nothing is added then.
        """
        model = self.model()
        every = frames_from(sources, model.levels, model.config.keys)
        if every.held_out():
            n = len(every.held_out())
            warnings.warn(f"{n} of {len(every)} frames are held out (info['split']); left out", stacklevel=2)
        given = every.training()
        model.check_elements(given)
        found = arrivals(given, self.store.labels("accepted = 1"))
        check_changed(found, replace, self.store.meta("fit") is not None)
        here = FrameSet(given.levels, (*found.known, *found.fresh))
        held = {id(frame) for frame in found.known}
        fresh = [f for f in new_calculations(here, model.calculated, model.seen) if id(f) not in held]
        unseen = [f for f, _ in found.changed if calculation_key(f.fidelity, f.atoms) not in model.calculated]
        warn_of_surprises(model, FrameSet(given.levels, (*fresh, *unseen)), TAKEN_IN)
        with self.store.transaction():
            rows = self.store.add_labels(FrameSet(given.levels, tuple(fresh)), "added", why="computed outside")
            for frame, old in found.changed:
                rows += self.store.replace_labels(FrameSet(given.levels, (frame,)), old)
            text = f"{len(rows)} labels taken in, {len(found.changed)} of them in place of others; "
            self.store.event("add", f"{text}{len(given) - len(rows)} known already")
        return len(rows)

    def extend(self, structures: Structures) -> tuple[int, list[str]]:
        """More structures to choose from (files, or ase.Atoms; labels in them are not used), at the end of the pool.

        Returns how many are new, and notices of those left out: held out, repeated, in the pool already. Where the campaign
        has no `targets`, the target's std is over the new ones, too. Raises DataError for what cannot be read and for
        elements that the model does not know; nothing is added then.
        """
        given = [structures] if isinstance(structures, str | PathLike | Atoms) else structures
        sources = [s if isinstance(s, Atoms) else Path(s) for s in given]
        return extend(self.store, self.model(), sources)

    def propose(self, report: Report = silent) -> Proposal:
        """What the next step would choose, or why there is none; writes the model's std, nothing else."""
        version, model = self.models.latest()
        stop, spent = self.config.stop, self.store.hours_spent()
        left = None if stop.hours is None else stop.hours - spent
        pool = self.store.structures("pool_index")
        chosen = self._select(model, pool, left, report)
        std = chosen.std_before
        self.store.set_target_std(version, std)
        steps = self.store.count_steps()
        why = None
        if stop.std is not None and std <= stop.std:
            why = f"target reached: std {std:.4g} eV/Å, asked for {stop.std:g}"
        elif stop.steps is not None and steps >= stop.steps:
            why = f"{steps} step{'' if steps == 1 else 's'} done, as asked for"
        elif left is not None and left <= 0:
            why = f"budget spent: {spent:.4g} of {stop.hours:g} h"
        elif not chosen.choices:
            why = self._nothing_left(chosen.cheapest, left)
        return Proposal(why, std, () if why else self._planned(chosen, pool))

    def retry(self, level: str | None = None) -> int:
        """Let calculations that failed (all, or those of a level) be chosen again, once their cause is mended; how many.

        They are tried as if they were new, where a step chooses them. Raises ConfigError for an unknown level.
        """
        levels = self.store.levels()
        if level is not None and level not in levels:
            raise ConfigError(f"{level!r} is no level of this campaign; it has {', '.join(levels)}.")
        return free(self.store, levels if level is None else [level])

    def model(self) -> MultiFidelityGP:
        """The latest version."""
        return self.models.latest()[1]

    def costs(self) -> CostModel:
        """Hours by level: measured where MEASURED labels say their time, else as configured."""
        measured = self.model().costs
        timed = {t: measured.sums[t].count if t in measured.sums else 0 for t in self.config.levels}
        given = {t: c.hours for t, c in self.config.levels.items() if c.hours is not None and timed[t] < MEASURED}
        return measured.with_given(given)

    def _step(self, client: Callable[[], Client], report: Report) -> str | None:
        """Finish the step that is open, or do one; returns why the campaign stops, or None where it may go on."""
        step = self.store.unfinished_step()
        if step is None:
            self.models.learn(None, report)  # what was added meanwhile
            proposal = self.propose(report)
            if proposal.stop is not None:
                with self.store.transaction():
                    self.store.event("stop", proposal.stop)
                return proposal.stop
            step = self.store.open_step(self.models.latest()[0], proposal.std, proposal.planned)
        self.tasks.run(client, step, report)
        self.models.learn(step, report)
        return None

    def _select(
        self, model: MultiFidelityGP, pool: list[tuple[int, Atoms]], left: float | None, report: Report
    ) -> Selection:
        batch, index = self.config.batch, {row: i for i, (row, _) in enumerate(pool)}
        budgets = [hours for hours in (batch.hours, left) if hours is not None]
        targets = [atoms for _, atoms in self.store.structures("target_index")]
        return select(
            model,
            [atoms for _, atoms in pool],
            self.config.target,
            self.costs(),
            budget_hours=max(min(budgets), 0.0) if budgets else None,
            n=batch.n,
            levels=[t for t in model.levels if t in self.config.levels],
            targets=targets or None,
            taken={(index[row], level) for row, level in self.store.taken() if row in index},
            seed=self.config.seed,
            report=report,
        )

    def _nothing_left(self, cheapest: float, left: float | None) -> str:
        """Why a step chooses nothing. cheapest: of what could be chosen, left: of the budget, in hours."""
        limits = {"batch.hours": self.config.batch.hours, "stop.hours": left}
        tight = [f"{h:.3g} h by {name}" for name, h in limits.items() if h is not None and h < cheapest < float("inf")]
        failed = how_to_retry(len(self.store.tasks("state = 'failed' AND attempt > 0")), self.directory)
        if tight:
            why = (
                f"that fits the budget: the cheapest calculation takes {cheapest:.3g} h, allowed are {', '.join(tight)}"
            )
        elif cheapest < float("inf"):
            why = f"that would make {self.config.target} more certain"
        else:
            why = f"in the pool: all is calculated or known at {', '.join(self.config.levels)}, or failed"
        return f"nothing left to choose {why}{'; ' if failed else ''}{failed}"

    def _planned(self, chosen: Selection, pool: list[tuple[int, Atoms]]) -> tuple[Planned, ...]:
        out, before = [], chosen.std_before
        for c in chosen.choices:
            why = f"the largest gain per hour left: {self.config.target} std {1e3 * before:.4g} -> "
            why += f"{1e3 * c.std_after:.4g} meV/Å expected for {c.hours:.3g} h"
            out.append(Planned(pool[c.index][0], c.level, c.gain, before, c.std_after, c.hours, why))
            before = c.std_after
        return tuple(out)

    @contextmanager
    def _workers(self) -> Iterator[Callable[[], Client]]:
        """Workers that start when they are first asked for: a step that only learns needs none."""
        with ExitStack() as stack:
            held: list[Client] = []

            def client() -> Client:
                if not held:
                    held.append(stack.enter_context(workers(self.config.workers)))
                return held[0]

            yield client

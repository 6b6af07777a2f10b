"""Carrying out the calculations of a campaign: starting, recording, retrying, and settling what a killed process left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mfgp.base.progress import Report, silent
from mfgp.campaign.calculation_process import end_orphan, max_hours
from mfgp.campaign.calculators import Factory
from mfgp.campaign.config import CampaignConfig, LevelConfig
from mfgp.campaign.failures import check_works
from mfgp.campaign.labelling import NO_MOMENTS, Job, Outcome, clean, left_behind
from mfgp.campaign.records import Task
from mfgp.campaign.store import Store
from mfgp.campaign.workers import Ticket, run_all
from mfgp.data.structure_json import structure_record
from mfgp.errors import ConfigError
from mfgp.frames import frames_from

if TYPE_CHECKING:
    from distributed import Client

CALCULATIONS = "calculations"
POLL = 2.0  # s, between looks at a calculation that an earlier process left running


class Tasks:
    """The calculations of one campaign. Raises ConfigError where a level has no calculator."""

    def __init__(
        self, directory: Path, store: Store, config: CampaignConfig, calculators: Mapping[str, Factory] | None = None
    ) -> None:
        self.directory, self.store, self.config = directory, store, config
        self.calculators = dict(calculators or {})
        self.levels = store.levels()
        check_calculators(config, self.calculators)

    def recover(self) -> list[Task]:
        """Settle what an earlier process left running; returns the tasks that still run in some other process."""
        alive = []
        for task in self.store.tasks("state = 'running'"):
            attempt = self.store.running_attempt(task)
            found = left_behind(self._folder(attempt))
            if found == "running":
                alive.append(task)
            elif isinstance(found, Outcome):
                self._record(task, attempt, found)
            else:
                self.store.interrupt(task, attempt, "interrupted: the process that ran it is gone")
        return alive

    def run(self, client: Callable[[], Client], step: int, report: Report = silent) -> None:
        """Run tasks until none is planned or running. client: called when there is something to run.

        What an earlier process left running has the time that its level allows, counted from its start.
        Raises ConfigError after the first calculation of a level that gives no moments where `spin` asks for them, and after
        the first failures of one that never worked (failures).
        """
        total = len(self.store.tasks("step = ?", (step,)))

        def told() -> None:
            over = self.store.tasks("step = ? AND state IN ('done', 'failed', 'rejected')", (step,))
            bad = sum(task.state != "done" for task in over)
            report(f"step {step}: calculations", len(over), total, f"{bad} failed or rejected" if bad else "")

        def done(job: Job, outcome: Outcome) -> Ticket | None:
            self._record(self.store.task(job.task), job.attempt, outcome)
            told()
            task = self.store.task(job.task)
            self._check_moments(task)
            check_works(self.store, task.level, self._folder)
            self._end_overdue(alive)
            return self._start(task) if task.state == "planned" else None

        while True:
            alive = self._end_overdue(self.recover())
            told()
            planned = self.store.tasks("state = 'planned'")
            if planned:
                run_all(client(), (self._start(task) for task in planned), done)
            elif alive:
                time.sleep(POLL)
            else:
                return

    def _start(self, task: Task) -> Ticket:
        """planned -> running, and what the worker needs."""
        level = self._level(task)
        settings = level.settings_of(task.attempt)
        attempt = self.store.start(task, settings)
        job = Job(
            task=task.id,
            attempt=attempt,
            level=task.level,
            structure=structure_record(self.store.structure(task.structure)),
            directory=str(self._folder(attempt).resolve()),
            calculator=level.calculator,
            settings=settings,
            magmoms=dict(level.magmoms),
            spin={} if level.spin is None else dict(level.spin.moments),
            spin_tolerance=0.0 if level.spin is None else level.spin.tolerance,
            max_force=level.max_force,
            stress=level.stress,
            factory=self.calculators.get(task.level),
        )
        return Ticket(job, self._limit(task))

    def _limit(self, task: Task) -> float | None:
        """Seconds of wall time that a calculation may take."""
        hours = self._level(task).max_hours
        return None if hours is None else 3600.0 * hours

    def _end_overdue(self, orphans: list[Task]) -> list[Task]:
        """Stop and record those that ran past their limit; returns the others that still run."""
        left = []
        for task in orphans:
            if self.store.task(task.id).state != "running":
                continue
            attempt, limit = self.store.running_attempt(task), self._limit(task)
            seconds = self.store.seconds_running(attempt)
            if limit is None or seconds <= limit:
                left.append(task)
                continue
            problem = end_orphan(self._folder(attempt))
            found = left_behind(self._folder(attempt))
            why = max_hours(limit) + (f"; {problem}" if problem else "")
            over = found if isinstance(found, Outcome) else Outcome("failed", why, wall_seconds=seconds)
            self._record(task, attempt, over)
        return left

    def _record(self, task: Task, attempt: int, outcome: Outcome) -> None:
        """Write how a calculation ended, then forget its result file."""
        label = None
        if outcome.energy is not None:
            atoms = outcome.atoms(self.store.structure(task.structure), task.level)
            label = frames_from({task.level: [atoms]}, self.levels)
        last = task.attempt >= self._level(task).attempts()
        self.store.finish(task, attempt, outcome, label, last)
        clean(self._folder(attempt))

    def _check_moments(self, task: Task) -> None:
        """ConfigError for a task without moments where no calculation of its level had any: the next ones are paid, too."""
        told = "level = ? AND (state = 'done' AND why = '' OR state = 'rejected' AND why != ?)"
        if task.why == NO_MOMENTS and not self.store.tasks(told, (task.level, NO_MOMENTS)):
            raise ConfigError(
                f"levels.{task.level}: {NO_MOMENTS}. The label is kept, not learned (`campaign export --rejected`). Change "
                "the settings, or leave `spin` out, and run again."
            )

    def _level(self, task: Task) -> LevelConfig:
        if task.level not in self.config.levels:
            raise ConfigError(
                f"levels.{task.level}: gone from the configuration, but calculations are planned; put it back."
            )
        return self.config.levels[task.level]

    def _folder(self, attempt: int) -> Path:
        return self.directory / CALCULATIONS / f"{attempt:06d}"


def check_calculators(config: CampaignConfig, calculators: Mapping[str, Factory]) -> None:
    """ConfigError for a level without a calculator, or a calculator for no level."""
    missing = [t for t, level in config.levels.items() if level.calculator is None and t not in calculators]
    if missing:
        t = missing[0]
        raise ConfigError(
            f"levels.{t}.calculator: missing; name one, or pass calculators={{{t!r}: factory}} in Python."
        )
    strange = [t for t in calculators if t not in config.levels]
    if strange:
        known = ", ".join(config.levels)
        raise ConfigError(f"calculators: {strange[0]!r} is no level of the configuration; it has {known}.")

"""One streaming pass over labelled frames: rows of a few structures at a time, whitened and added up in blocks.

    G += A^T A,    b += A^T y,    A = [Phi | columns],   Phi = k(functional, Z) L^-T

Whitening and A^T A are matrix products with M columns whose cost per row falls with the number of rows, so the labelled rows
of many structures are collected by level and kind until they fill a block. Structures are expanded a batch at a time for
the same reason; frames of one geometry, at two levels, share their rows. Only what has labels is made: no virials without
a stress, no derivatives at all for a structure with energies alone. Memory is that of a batch or two for each thread and of
one block for each set of statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mfgp.base.progress import Report, silent
from mfgp.base.threads import ordered_map
from mfgp.baselines.columns import Baseline
from mfgp.data.single_point import structure_hash
from mfgp.fit.features import Features
from mfgp.frames import Frame, FrameSet
from mfgp.gp.centring import mean_kernels
from mfgp.gp.observations import Columns, frame_rows, telling, whitened_blocks
from mfgp.gp.statistics import Key, Statistics

BATCH_ATOMS = 256  # of the structures that are expanded together; a larger structure is by itself
BLOCK_ENTRIES, BLOCK_ROWS = 2**21, 512  # of the rows that are whitened and added up together: the larger of the two


def accumulate(
    frames: FrameSet,
    features: Features,
    columns: Columns,
    baselines: list[Baseline],
    default_sigma: float,
    report: Report = silent,
) -> Statistics:
    """One pass over the labelled frames: their sufficient statistics. default_sigma: initial noise of energies, eV."""
    blocks, done = RowBlocks(features, columns.size), 0
    centre = features.centre if features.store is not None else mean_kernels(features.basis)
    for batch, rows in ordered_map(lambda batch: (batch, _rows(features, batch)), batches(frames), features.device):
        for group, phi in zip(batch, rows, strict=True):
            for frame in group:
                level = frames.levels.index(frame.fidelity)
                labels = columns.labels(baselines, frame.atoms, level)
                extra = columns.rows_of(frame.atoms, labels).to(phi.device)
                blocks.add(level, frame_rows(frame, phi, columns, extra, level, default_sigma, centre))
        done += sum(len(group) for group in batch)
        report("structures with labels", done, len(frames), batch[-1][-1].fidelity)
    return blocks.finish()


def batches(frames: FrameSet) -> Iterator[list[list[Frame]]]:
    """Structures that need the same rows, about BATCH_ATOMS atoms at a time; each is the frames of one geometry."""
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(structure_hash(frame.atoms), []).append(frame)
    of_need: dict[tuple[bool, bool], list[list[Frame]]] = {}
    for group in groups.values():
        of_need.setdefault(needs(group), []).append(group)
    for chosen in of_need.values():
        batch: list[list[Frame]] = []
        n_atoms = 0
        for group in chosen:
            if batch and n_atoms + len(group[0].atoms) > BATCH_ATOMS:
                yield batch
                batch, n_atoms = [], 0
            batch.append(group)
            n_atoms += len(group[0].atoms)
        yield batch


def needs(group: list[Frame]) -> tuple[bool, bool]:
    """Whether frames of one geometry have labels of derivatives, and of the stress among them."""
    virial = any(f.stress is not None for f in group)
    return virial or any(f.forces is not None and not f.isolated_atom for f in group), virial


def _rows(features: Features, batch: list[list[Frame]]) -> list[Tensor]:
    """Rows [1+3N+6, M] of each structure: whitened where the features keep rows, else not."""
    structures = [group[0].atoms for group in batch]
    if features.store is not None:
        return [features.rows(atoms) for atoms in structures]
    derivatives, virial = needs(batch[0])
    return features.raw(structures, derivatives, virial)


class RowBlocks:
    """Labelled rows by level and kind, added to the statistics when a block is full."""

    def __init__(self, features: Features, n_columns: int) -> None:
        self.features = features
        self.statistics = Statistics(features.basis.size + n_columns)
        self.limit = max(BLOCK_ROWS, BLOCK_ENTRIES // self.statistics.size)
        self.waiting: dict[Key, list[tuple[Tensor, Tensor]]] = {}

    def add(self, level: int, rows: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Labelled rows {kind: (A, y)} of one frame; those that can say nothing are left out."""
        for kind, (a, y) in rows.items():
            told = telling(a)
            part = (a, y) if bool(told.all()) else (a[told], y[told])
            if not len(part[1]):
                continue
            waiting = self.waiting.setdefault((level, kind), [])
            waiting.append(part)
            if sum(len(y) for _, y in waiting) >= self.limit:
                self._add_block((level, kind))

    def finish(self) -> Statistics:
        """The statistics of all rows."""
        for key in list(self.waiting):
            self._add_block(key)
        return self.statistics

    def _add_block(self, key: Key) -> None:
        parts = self.waiting.pop(key)
        self._sum(key, self._whitened([a for a, _ in parts]), torch.cat([y for _, y in parts]))

    def _whitened(self, parts: list[Tensor]) -> list[Tensor]:
        """Blocks of columns of the whitened rows; rows that the features keep are whitened already."""
        return whitened_blocks(self.features.basis, parts) if self.features.store is None else [torch.cat(parts)]

    def _sum(self, key: Key, blocks: list[Tensor], y: Tensor) -> None:
        self.statistics.add_blocks(key, blocks, y)

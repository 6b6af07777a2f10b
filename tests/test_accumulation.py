"""The streaming pass: blocks and batches of any size give the same sums, and only what has labels is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose

from mfgp import FrameSet, MultiFidelityGP
from mfgp.fit import accumulation
from mfgp.fit.accumulation import accumulate, batches, needs
from mfgp.fit.features import RowStore
from mfgp.gp.observations import cell_volume, frame_rows
from mfgp.gp.statistics import Statistics

SIGMA = 0.005  # eV


def one_by_one(model: MultiFidelityGP, frames: FrameSet) -> Statistics:
    """Whitened rows of each frame by itself, G as a plain product."""
    size = model.basis.size + model.columns.size
    rows: dict[tuple[int, str], list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for frame in frames:
        level = frames.levels.index(frame.fidelity)
        extra = model.columns.rows(frame.atoms.numbers, [], cell_volume(frame.atoms))
        phi = model.features.rows(frame.atoms)
        for kind, part in frame_rows(frame, phi, model.columns, extra, level, SIGMA, model.features.centre).items():
            rows.setdefault((level, kind), []).append(part)
    out = Statistics(size)
    for (level, kind), parts in rows.items():
        out.add(level, {kind: (torch.cat([a for a, _ in parts]), torch.cat([y for _, y in parts]))})
        a = torch.cat([a for a, _ in parts])
        out.moments[level, kind].gram = a.T @ a
    return out


def agree(found: Statistics, expected: Statistics) -> None:
    assert found.observed() == expected.observed()
    for key, m in expected.moments.items():
        scale = float(m.gram.abs().max())
        assert_allclose(found.moments[key].gram, m.gram, rtol=0, atol=1e-10 * scale)
        assert_allclose(
            found.moments[key].projection, m.projection, rtol=0, atol=1e-10 * float(m.projection.abs().max())
        )
        assert found.moments[key].count == m.count


@pytest.mark.parametrize(("atoms", "entries", "rows"), [(1, 1, 1), (9, 1, 7), (10**6, 10**9, 512)])
def test_any_batches_and_blocks_give_the_same(
    atoms: int, entries: int, rows: int, model: MultiFidelityGP, two_levels: FrameSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulation, "BATCH_ATOMS", atoms)
    monkeypatch.setattr(accumulation, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(accumulation, "BLOCK_ROWS", rows)
    frames = two_levels.training()
    agree(accumulate(frames, model.features, model.columns, [], SIGMA), one_by_one(model, frames))


def test_rows_that_are_kept_are_whitened_once(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    frames = two_levels.training()
    kept = replace(model.features, store=RowStore())
    for _ in range(2):
        agree(accumulate(frames, kept, model.columns, [], SIGMA), one_by_one(model, frames))


def test_labels_of_any_kind_missing(model: MultiFidelityGP, two_levels: FrameSet) -> None:
    frames = [
        replace(f, forces=None if i % 3 == 0 else f.forces, stress=None if i % 2 == 0 else f.stress)
        for i, f in enumerate(two_levels.training())
    ]
    some = FrameSet(two_levels.levels, tuple(frames))
    assert {needs([f]) for f in frames} == {(False, False), (True, False), (True, True)}
    agree(accumulate(some, model.features, model.columns, [], SIGMA), one_by_one(model, some))


def test_a_geometry_at_two_levels_is_expanded_once(two_levels: FrameSet) -> None:
    """The five high frames are geometries of low ones."""
    frames = two_levels.training()
    groups = [group for batch in batches(frames) for group in batch]
    assert sum(len(g) for g in groups) == len(frames)
    assert len(groups) == len(frames) - 5


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_a_fit_on_the_gpu_is_that_on_the_cpu(two_levels: FrameSet, model: MultiFidelityGP) -> None:
    config = model.config.model_copy(update={"device": "cuda"})
    found = MultiFidelityGP.fit(two_levels, config, progress=False)
    for frame in list(two_levels)[:3]:
        ours, theirs = found.predict(frame.atoms), model.predict(frame.atoms)
        assert_allclose(ours.forces, theirs.forces, rtol=0, atol=1e-4)  # eV/Å; the optimiser magnifies rounding

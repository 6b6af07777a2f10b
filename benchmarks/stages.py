"""CPU seconds of the pass over the data by stage, and over the floor: its flops at the matrix-product rate of this run.

    rows        sum_s 2 * 3 n_ca D M_s       n_ca (centre, atom) pairs of the smallest cells that structures repeat,
                                             M_s inducing points of the centre's species
    whitening   R sum_s M_s^2                R labelled rows
    Gram        R M'^2                       M' = M and the columns beside

An implementation that makes full use of the processor's matrix products, and computes nothing twice, takes 1. (For several
species less is possible: rows are made from E < D products a pair, see mfgp/gp/rows.py.)
"""

from __future__ import annotations

from common import gemm_rate, timed
from torch import Tensor

from mfgp import FitConfig, FrameSet
from mfgp.fit.accumulation import RowBlocks, batches, needs
from mfgp.fit.features import Features
from mfgp.fit.fitting import build_columns
from mfgp.gp.centring import mean_kernels
from mfgp.gp.observations import Columns, frame_rows
from mfgp.gp.statistics import Key, Statistics
from mfgp.rates import row_products

STAGES = ("rows", "whitening", "Gram")


class TimedBlocks(RowBlocks):
    """Blocks of rows that know how long whitening and Gram matrices took."""

    def __init__(self, features: Features, n_columns: int) -> None:
        super().__init__(features, n_columns)
        self.spent, self.n_rows = dict.fromkeys(STAGES, 0.0), 0

    def _whitened(self, parts: list[Tensor]) -> list[Tensor]:
        with timed() as whitening:
            out = super()._whitened(parts)
        self.spent["whitening"] += whitening.cpu
        return out

    def _sum(self, key: Key, blocks: list[Tensor], y: Tensor) -> None:
        with timed() as gram:
            super()._sum(key, blocks, y)
        self.spent["Gram"] += gram.cpu
        self.n_rows += len(y)


def timed_pass(
    frames: FrameSet, features: Features, config: FitConfig
) -> tuple[Statistics, dict[str, float], dict[str, float], Columns, Tensor]:
    """Statistics, CPU seconds and floating-point operations of each stage, and the columns with their prior widths."""
    columns, column_std = build_columns(frames, features.basis.species, config, [])
    blocks = TimedBlocks(features, columns.size)
    pairs, sigma, centre = 0.0, config.training.noise_energy, mean_kernels(features.basis)
    for batch in batches(frames):
        structures = [group[0].atoms for group in batch]
        with timed() as rows:
            raw = features.raw(structures, *needs(batch[0]))
        blocks.spent["rows"] += rows.cpu
        pairs += row_products([group[0] for group in batch], features)
        for group, phi in zip(batch, raw, strict=True):
            extra = columns.rows_of(group[0].atoms, [])
            for frame in group:
                level = frames.levels.index(frame.fidelity)
                blocks.add(level, frame_rows(frame, phi, columns, extra, level, sigma, centre))
    statistics = blocks.finish()
    squares = sum(len(points) ** 2 for points in features.basis.points)
    flops = {
        "rows": 6.0 * features.soap.n_features * pairs,
        "whitening": 1.0 * blocks.n_rows * squares,
        "Gram": 1.0 * blocks.n_rows * statistics.size**2,
    }
    return statistics, blocks.spent, flops, columns, column_std


def over_floor(frames: FrameSet, features: Features, config: FitConfig) -> dict[str, float]:
    """Time over the floor of each stage and of all three together."""
    rate = gemm_rate()
    _, spent, flops, *_ = timed_pass(frames, features, config)
    rate = 0.5 * (rate + gemm_rate())  # before and after: the machine may be busier at one end
    out = {stage: spent[stage] * rate / flops[stage] for stage in STAGES}
    return {**out, "all": sum(spent.values()) * rate / sum(flops.values())}

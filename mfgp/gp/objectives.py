"""What hyperparameters are chosen by: the evidence, its variational bound, or cross-validation.

    evidence   log p(y), the projected process (DTC; Quinonero-Candela & Rasmussen, JMLR 6, 1939 (2005))
    vfe        log p(y) - 1/2 sum_{t,kind} sigma^-2 sum_z S_t[z] ( tr prior_z - tr G_z )
    cv         sum_k log p(y_k | y_-k) = sum_k [ log p(y) - log p(y_-k) ]

`vfe` is the collapsed bound (Titsias, AISTATS 2009): the trace is the prior variance of all labelled rows that the inducing
points do not carry, G_z the Gram block of species z. `cv` is the log density of each fold of structures given the others;
all of it comes from the statistics of the folds, K + 1 evidences a step. Isolated atoms are in no fold: they fix references,
and stay in. Each adds the log priors of the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mfgp.gp.evidence import evidence
from mfgp.gp.hyperparameters import AutoregressiveGP, Evidence, LevelNoise
from mfgp.gp.statistics import Key, Statistics, merge

FOLDS = 4


class CollapsedBound(Evidence):
    """The variational bound; traces [S] of the prior variance of the labelled rows at unit amplitude, by (level, kind).

    Those of isolated atoms are left out: they are labels of e0.
    """

    title = "variational bound"

    def __init__(self, likelihood: LevelNoise, model: AutoregressiveGP, traces: Mapping[Key, Tensor]) -> None:
        super().__init__(likelihood, model)
        self.traces = traces

    def forward(self, statistics: Statistics, species_index: Tensor, column_std: Tensor) -> Tensor:
        value = super().forward(statistics, species_index, column_std)
        inverse_noise = self.inverse_noise(statistics, self.scales(species_index, column_std))
        variances = self.model.local_variances()  # [T, S]
        for key in self.traces:
            diagonal = statistics.moments[key].gram.diagonal()[: len(species_index)]
            carried = torch.zeros_like(self.traces[key]).index_add_(0, species_index, diagonal)
            left = (self.traces[key] - carried).clamp(min=0.0)
            value = value - 0.5 * inverse_noise[key] * (variances[key[0]] * left).sum()
        return value


class CrossValidation(Evidence):
    """Log density of every fold given the others; `statistics` of forward are of everything."""

    title = "cross-validation"

    def __init__(self, likelihood: LevelNoise, model: AutoregressiveGP, folds: Sequence[Statistics]) -> None:
        super().__init__(likelihood, model)
        self.folds = folds

    def forward(self, statistics: Statistics, species_index: Tensor, column_std: Tensor) -> Tensor:
        d = self.scales(species_index, column_std)
        inverse_noise = self.inverse_noise(statistics, d)
        value = len(self.folds) * evidence(statistics, d, inverse_noise)
        for fold in self.folds:
            value = value - evidence(without(statistics, fold), d, inverse_noise)
        return value + self.log_prior()


def without(statistics: Statistics, fold: Statistics) -> Statistics:
    """Statistics less those of a fold; what only the fold observes is gone."""
    left = merge([statistics, fold], [1, -1])
    return Statistics(left.size, {key: m for key, m in left.moments.items() if m.count > 0})


@dataclass(frozen=True)
class TrainingData:
    """Statistics of all data, and what an objective needs beside them: those of the folds, or traces of the prior."""

    statistics: Statistics
    folds: tuple[Statistics, ...] = ()
    traces: Mapping[Key, Tensor] = field(default_factory=dict)

    def subset(self, index: Tensor) -> TrainingData:
        """The same of the model with only the parameters `index` [m]."""
        return TrainingData(self.statistics.subset(index), tuple(f.subset(index) for f in self.folds), self.traces)

    def objective(self, noise: LevelNoise, prior: AutoregressiveGP) -> Evidence:
        """The objective that these data are for."""
        if self.folds:
            return CrossValidation(noise, prior, self.folds)
        if self.traces:
            return CollapsedBound(noise, prior, self.traces)
        return Evidence(noise, prior)

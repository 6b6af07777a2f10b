"""What may be wrong with labelled data, before a fit is spent on it.

`examine` returns findings, each with a severity and a way out; nothing is printed and nothing is changed. Checks of
structures and counts are here, those of labels in `labels` and `moments`, of forces along trajectories in
`paths`, of elemental references in `composition`, of the unit of lengths and of transposed cells in `lengths`, and of levels
against each other in `levels`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mfgp.base.progress import Report as Progress
from mfgp.base.progress import silent
from mfgp.data.labels import unused_label_keys
from mfgp.data.same_structure import groups
from mfgp.doctor.composition import reference_checks
from mfgp.doctor.labels import energy_checks, force_checks, stress_checks
from mfgp.doctor.lengths import cell_checks, length_checks
from mfgp.doctor.levels import level_checks
from mfgp.doctor.moments import moment_checks
from mfgp.doctor.paths import path_checks
from mfgp.doctor.report import SEVERITIES, Finding, Report, about, by_structure, examples
from mfgp.frames import Frame, FrameSet

_SAME_ENERGY = 1e-4  # eV/atom
_SAME_FORCE = 1e-3  # eV/Å


def examine(frames: FrameSet, progress: Progress = silent) -> Report:
    """Check labelled frames and say what may be wrong with them, errors first. Raises nothing about the data."""
    findings: list[Finding] = [*_shared_keys(frames), *_held_out(frames), *reference_checks(frames)]
    labels = (energy_checks, force_checks, path_checks, moment_checks, stress_checks)
    checks = (_unlabelled, _tags, _duplicates, length_checks, cell_checks, *labels)
    for i, level in enumerate(frames.levels):
        own = frames.of(level)
        for k, check in enumerate(checks, start=1):
            findings.extend(check(level, own))
            progress("checks", i * len(checks) + k, len(frames.levels) * len(checks), level)
    between, correlations = level_checks(frames)
    findings.extend(between)
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(frames.summary(), tuple(ordered), correlations)


def _unlabelled(level: str, frames: Sequence[Frame]) -> list[Finding]:
    bare = [frame for frame in frames if not frame.labelled]
    if not bare:
        return []
    message = f"fidelity {level!r}: {len(bare)} of {len(frames)} frames carry no label, {examples(bare)}; they teach "
    return [about("warning", "labels", message + "the model nothing: label or remove them.", bare)]


def _tags(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """Frames whose own tag names another level than the one they were given for."""
    other = [f for f in frames if f.atoms.info.get("fidelity") is not None and str(f.atoms.info["fidelity"]) != level]
    if not other:
        return []
    tags = ", ".join(sorted({repr(str(frame.atoms.info["fidelity"])) for frame in other}))
    message = f"fidelity {level!r}: {len(other)} frames are tagged {tags} in info, {examples(other)}; "
    return [about("warning", "tags", message + f"check that they belong to {level!r}.", other)]


def _shared_keys(frames: FrameSet) -> list[Finding]:
    """Keys that look like labels and were not read."""
    counts: dict[str, int] = defaultdict(int)
    for frame in frames:
        for key in unused_label_keys(frame.atoms):
            counts[key] += 1
    if not counts:
        return []
    named = ", ".join(f"{key} ({count} frames)" for key, count in sorted(counts.items()))
    message = f"keys that look like labels but are not read as such: {named}; set `keys` if one of them is the label."
    return [about("info", "keys", message)]


def _held_out(frames: FrameSet) -> list[Finding]:
    """Test frames: how many, and whether their structures are trained on."""
    test, findings = frames.held_out(), []
    if len(test):
        counts = ", ".join(f"{len(test.of(level))} of {level!r}" for level in frames.levels)
        splits = ", ".join(sorted({str(frame.split) for frame in test}))
        message = f"held out of training by info['split'] ({splits}): {counts} frames."
        findings.append(about("info", "split", message, test.frames))
    number = dict(zip(map(id, frames), groups([f.atoms for f in frames]), strict=True))
    trained: dict[int, list[Frame]] = defaultdict(list)
    for frame in frames.training():
        trained[number[id(frame)]].append(frame)
    for level in frames.levels:
        twins = [(frame, twin) for frame in test.of(level) for twin in trained.get(number[id(frame)], [])]
        for same in (True, False):
            leaked = list({frame.source: frame for frame, twin in twins if (twin.fidelity == level) is same}.values())
            if leaked:
                where = "the same level" if same else "another level"
                message = f"fidelity {level!r}: {len(leaked)} test structures are trained on at {where}, "
                message += f"{examples(leaked)}; an error measured on them is too small: hold them out there too."
                findings.append(about("error" if same else "warning", "split", message, leaked))
    return findings


def _duplicates(level: str, frames: Sequence[Frame]) -> list[Finding]:
    """The same structure more than once in a level, with equal or with different labels."""
    repeated = [own for own in by_structure(f for f in frames if not f.isolated_atom).values() if len(own) > 1]
    differing = [frame for own in repeated if any(_differ(own[0], other) for other in own[1:]) for frame in own]
    equal = [frame for own in repeated if not any(_differ(own[0], other) for other in own[1:]) for frame in own]
    findings = []
    if differing:
        message = f"fidelity {level!r}: {len(differing)} frames repeat a structure with other labels, "
        message += f"{examples(differing)}; keep the right one of each (another SCF solution, or another level?)."
        findings.append(about("error", "duplicates", message, differing))
    if equal:
        message = f"fidelity {level!r}: {len(equal)} frames repeat a structure with the same labels, "
        message += f"{examples(equal)}; keep one of each, or it counts twice."
        findings.append(about("warning", "duplicates", message, equal))
    return findings


def _differ(one: Frame, other: Frame) -> bool:
    energies = None not in (one.energy, other.energy)
    if energies and abs((one.energy or 0.0) - (other.energy or 0.0)) > _SAME_ENERGY * len(one.atoms):
        return True
    if one.forces is None or other.forces is None:
        return False
    used = one.force_mask & other.force_mask
    return bool((np.abs(one.forces - other.forces)[used] > _SAME_FORCE).any())

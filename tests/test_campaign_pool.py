"""More structures to choose from, after a campaign has begun."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from campaign_systems import traced
from command_line import ok, refused
from conftest import alloy, label
from test_campaign import N_POOL, client, folder, in_process, rows, run, start, with_a_fit  # noqa: F401 (fixtures)
from test_campaign import config as campaign_config

from mfgp import DataError
from mfgp.campaign import Campaign


def extend(folder: Path, *structures: Path | Atoms) -> tuple[int, list[str]]:  # noqa: F811
    with Campaign.open(folder / "run", {"low": traced}) as campaign:
        return campaign.extend(structures)


def pool(folder: Path) -> list[int]:  # noqa: F811
    return [i for (i,) in rows(folder, "SELECT pool_index FROM structures WHERE pool_index IS NOT NULL ORDER BY 1")]


@pytest.mark.usefixtures("in_process")
def test_what_is_added_can_be_chosen(folder: Path) -> None:  # noqa: F811
    start(folder)
    run(folder)
    strange = alloy(401, rattle=0.5)  # the most uncertain of all
    known = alloy(200, rattle=0.2)  # the first of the pool
    assert extend(folder, known, strange, strange) == (
        1,
        ["structures given: repeated, and taken once: 1 of 3.", "in the pool already: 1 of 2."],
    )
    assert pool(folder) == list(range(N_POOL + 1))
    with Campaign.open(folder / "run", {"low": traced}) as campaign:
        campaign.config = campaign.config.model_copy(
            update={"stop": campaign.config.stop.model_copy(update={"steps": 9})}
        )
        chosen = campaign.propose().planned[0]
        np.testing.assert_array_equal(campaign.store.structure(chosen.structure).positions, strange.positions)
        assert campaign.store.source(chosen.structure) == "structure 1 of those given"


def test_what_cannot_be_used_adds_nothing(folder: Path) -> None:  # noqa: F811
    start(folder)
    foreign = alloy(402)
    foreign.numbers[0] = 47
    with pytest.raises(DataError, match=r"structure 1 of those given.*Ag"):
        extend(folder, alloy(403), foreign)
    broken = alloy(404)
    broken.positions[0] = np.nan
    with pytest.raises(DataError, match="structure 0 of those given"):
        extend(folder, broken)
    with pytest.raises(DataError, match="no structures given"):
        extend(folder)
    assert pool(folder) == list(range(N_POOL))


def test_held_out_structures_stay_out(folder: Path, two_levels: Any, config: Any) -> None:  # noqa: F811
    """By their own split, or by that of the data of the fit, which need not be there any more."""
    with_a_fit(folder, two_levels, config)
    held, test = alloy(405), alloy(406)
    frame = label(held, "high")
    frame.info["split"] = "test"
    write(folder / "high.extxyz", frame, append=True)
    start(folder)
    (folder / "high.extxyz").unlink()
    test.info["split"] = "test"
    rounded = held.copy()
    rounded.positions = np.round(rounded.positions, 5)
    turned = held.copy()
    turned.rotate(30, "z", rotate_cell=True)
    n, notices = extend(folder, held, rounded, turned[::-1], test, alloy(407))
    assert n == 1
    assert notices == ["structures given: held out (info['split'], or in the fit's data) and left out: 4 of 5."]
    with pytest.raises(DataError, match="of 2 all are held out"):
        extend(folder, held, test)


def test_the_command_takes_what_is_new_in_a_file_of_the_pool(folder: Path) -> None:  # noqa: F811
    campaign_config(folder, levels={"low": {"calculator": "emt", "hours": 0.01}})
    start(folder)
    write(folder / "pool.extxyz", alloy(408), append=True)
    with pytest.warns(UserWarning, match="`campaign extend`"), Campaign.open(folder / "run", {"low": traced}):
        pass
    command = ("campaign", "extend", folder / "pool.extxyz", "-d", folder / "run")
    result = ok(*command)
    assert "changed since" not in result.output
    assert f"1 structure added to the pool, which has {N_POOL + 1} now" in result.output
    assert f"in the pool already: {N_POOL} of {N_POOL + 1}" in result.stderr
    assert "0 structures added" in ok(*command).output
    with warnings.catch_warnings():  # the file is known as it is now
        warnings.simplefilter("error")
        with Campaign.open(folder / "run", {"low": traced}):
            pass
    assert "no such file" in refused("campaign", "extend", folder / "none.extxyz", "-d", folder / "run").lower()
    assert pool(folder) == list(range(N_POOL + 1))

"""Campaigns: select, calculate, check and learn in a loop that can be killed at any moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfgp.campaign.loop import Campaign

__all__ = ["Campaign"]


def __getattr__(name: str) -> Any:
    """Import on first use: `mfgp campaign status` does not wait for torch."""
    if name != "Campaign":
        raise AttributeError(f"module 'mfgp.campaign' has no attribute {name!r}")
    from mfgp.campaign.loop import Campaign

    return Campaign

"""Settings of the SOAP descriptor: typed, validated once, frozen."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator

HARD_CUTOFF_DECAY = 1e-3  # DScribe keeps neighbours whose Gaussian still exceeds this at r_cut


class RadialScaling(BaseModel):
    """u(r) = 1 / (1 + (r/r0)^m), the weight of a neighbour at distance r.

    Willatt, Musil & Ceriotti, Phys. Chem. Chem. Phys. 20, 29661 (2018).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    r0: float = Field(gt=0, allow_inf_nan=False, description="distance in Å at which the weight is one half")
    m: float = Field(gt=0, allow_inf_nan=False, description="exponent; forces are smooth at r = 0 for m >= 2")


class SOAPConfig(BaseModel):
    """SOAP power spectrum with a GTO radial basis.

    cutoff_width = 0 is DScribe's hard cutoff: no cutoff function, neighbours up to r_cut + sigma sqrt(-2 ln 1e-3).
    Raises pydantic's ValidationError (a ValueError) for values out of range and for unknown names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    r_cut: float = Field(default=5.0, gt=1, allow_inf_nan=False, description="cutoff in Å; the GTO basis starts at 1 Å")
    n_max: int = Field(default=8, ge=1, le=20, description="radial functions")
    l_max: int = Field(default=6, ge=0, le=12, description="highest degree of the spherical harmonics")
    sigma: float = Field(default=0.4, gt=0, allow_inf_nan=False, description="width of the atomic Gaussians in Å")
    cutoff_width: float = Field(default=1.0, ge=0, description="the density falls to 0 over [r_cut - width, r_cut], Å")
    radial_scaling: RadialScaling | None = RadialScaling(r0=2.0, m=4)
    contraction: float | None = Field(default=None, gt=0, le=1, description="retained variance of the channels per l")

    @model_validator(mode="after")
    def _width_within_cutoff(self) -> SOAPConfig:
        if self.cutoff_width > self.r_cut:
            raise ValueError(f"cutoff_width = {self.cutoff_width} Å is larger than r_cut = {self.r_cut} Å; lower it.")
        return self

    @property
    def neighbor_cutoff(self) -> float:
        """Largest distance in Å at which a neighbour enters the density."""
        if self.cutoff_width > 0:
            return self.r_cut
        return self.r_cut + self.sigma * math.sqrt(-2 * math.log(HARD_CUTOFF_DECAY))

"""Positions -> features: the SOAP power spectrum, its reverse pass and its Jacobian."""

from descriptors.config import RadialScaling, SOAPConfig
from descriptors.contraction import Contraction, fit_contraction
from descriptors.jacobian import Jacobian, jacobian
from descriptors.neighbors import Neighborhoods, neighborhoods
from descriptors.soap import SOAP, Expansion

__all__ = [
    "SOAP",
    "Contraction",
    "Expansion",
    "Jacobian",
    "Neighborhoods",
    "RadialScaling",
    "SOAPConfig",
    "fit_contraction",
    "jacobian",
    "neighborhoods",
]

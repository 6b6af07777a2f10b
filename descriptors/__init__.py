"""Positions -> features: the SOAP power spectrum, its reverse pass and its Jacobian."""

from descriptors.config import RadialScaling, SOAPConfig
from descriptors.contraction import Contraction, fit_contraction
from descriptors.jacobian import Jacobian, jacobian, jacobian_of_atoms, strain_jacobian
from descriptors.neighbors import Neighborhoods, neighborhoods, without_gaps
from descriptors.skin import SkinPairs, SlotPairs
from descriptors.soap import SOAP, ForwardPass
from descriptors.table import RadialTable

__all__ = [
    "SOAP",
    "Contraction",
    "ForwardPass",
    "Jacobian",
    "Neighborhoods",
    "RadialScaling",
    "RadialTable",
    "SOAPConfig",
    "SkinPairs",
    "SlotPairs",
    "fit_contraction",
    "jacobian",
    "jacobian_of_atoms",
    "neighborhoods",
    "strain_jacobian",
    "without_gaps",
]

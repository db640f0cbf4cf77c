"""The treatment ``factors``: a basis that one or more projections share, with coefficients for each of them."""

from basis_sharing.treatments.base import register
from basis_sharing.treatments.factors.treatment import FactorsTreatment

register(FactorsTreatment())

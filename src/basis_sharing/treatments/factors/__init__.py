"""The treatment ``factors``: a basis that one or more projections share, and coefficients of their own."""

from basis_sharing.treatments.base import register
from basis_sharing.treatments.factors.treatment import FactorsTreatment

register(FactorsTreatment())

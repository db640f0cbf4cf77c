"""The treatment ``expert-factors``: factors of their own for the matrices of every expert."""

from basis_sharing.treatments.base import register
from basis_sharing.treatments.expert_factors.treatment import ExpertFactorsTreatment

register(ExpertFactorsTreatment())

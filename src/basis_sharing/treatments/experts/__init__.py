"""The treatment ``experts``: the experts of a block at a smaller width, between two bases that all of them share."""

from basis_sharing.treatments.base import register
from basis_sharing.treatments.experts.treatment import ExpertsTreatment

register(ExpertsTreatment())

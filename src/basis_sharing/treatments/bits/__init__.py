"""The treatment ``bits``: the weight of one projection, rounded to few bits."""

from basis_sharing.treatments.base import register
from basis_sharing.treatments.bits.treatment import BitsTreatment

register(BitsTreatment())

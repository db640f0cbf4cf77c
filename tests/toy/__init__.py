"""A treatment from outside the package: a few inputs of a projection, in eight bits.

y = x[inputs] (codes * scales) + b: ``codes`` are int8, ``scales`` are one fp32 number per output, and the chosen inputs
are those that count most. All that the package has to know of it is registered when this folder is imported.
"""

from basis_sharing.treatments.base import register
from toy.layers import ToyKind
from toy.treatment import ToyTreatment

register(ToyTreatment(), kind=ToyKind())

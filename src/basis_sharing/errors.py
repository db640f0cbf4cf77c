"""Errors that a user can act on: every message says what is wrong and how to correct it."""


class BasisSharingError(Exception):
    """Base class of all errors of this package; the command line prints the message and exits with code 2."""


class RecipeError(BasisSharingError):
    """A setting is missing, out of range or contradicts another one."""


class ModelError(BasisSharingError):
    """The model cannot be read, or has a structure that cannot be compressed."""


class ModelWarning(UserWarning):
    """Something that the folder of a model holds was left aside; results say it as a note."""


class CorpusError(BasisSharingError):
    """A calibration or evaluation text cannot be read, or is too short."""


class PlanError(BasisSharingError):
    """A plan does not fit the model it is applied to."""


class NumericalError(BasisSharingError):
    """A computation gives NaN or infinity."""


class MemoryBudgetError(BasisSharingError):
    """The memory budget of a run is too small."""


class CheckpointError(BasisSharingError):
    """A compressed checkpoint is damaged, inconsistent or too new for this version."""


class OutputError(BasisSharingError):
    """The output cannot be written."""


class ResultError(BasisSharingError):
    """A file of results is damaged, of another kind, or too new for this version."""

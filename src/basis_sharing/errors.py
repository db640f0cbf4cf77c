"""Errors a user can act on: every message says what is wrong and what to do about it."""


class BasisSharingError(Exception):
    """Base of all errors raised on purpose; the command line prints the message and exits with 2."""


class RecipeError(BasisSharingError):
    """A setting is missing, out of range or contradicts another one."""


class ModelError(BasisSharingError):
    """The model cannot be read, or has a structure that cannot be compressed."""


class CorpusError(BasisSharingError):
    """A calibration or evaluation text cannot be read, or is too short."""


class PlanError(BasisSharingError):
    """A plan does not fit the model it is applied to."""


class NumericalError(BasisSharingError):
    """Non-finite numbers where the mathematics needs finite ones."""


class MemoryBudgetError(BasisSharingError):
    """The memory that a run may take is too small for it."""


class CheckpointError(BasisSharingError):
    """A compressed checkpoint is damaged, contradicts itself or is too new for this version."""


class OutputError(BasisSharingError):
    """The result cannot be written where it was asked for."""


class ResultError(BasisSharingError):
    """A file of results is damaged, of another kind, or too new for this version."""

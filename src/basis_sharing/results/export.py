"""The result of an export to a runtime."""

from typing import Literal

from basis_sharing.results.base import Frozen, Result


class ExportCheck(Frozen):
    """The comparison of an export in its runtime with the model in PyTorch, fp32, on a few prompts.

    Attributes:
        prompts: Number of prompts.
        tokens: Tokens compared, one by one, each after those that the model in PyTorch has chosen.
        same: How many of them the export chooses as well.
        largest_difference: Largest difference of two logits.
        nats: Mean Kullback-Leibler divergence of the export's next-token distributions from the model's, in nats.
        without_torch: Whether the runtime ran in a process without PyTorch.
    """

    prompts: int
    tokens: int
    same: int
    largest_difference: float
    nats: float
    without_torch: bool


class ExportResult(Result):
    """What an exported folder holds.

    Attributes:
        form: Name of the export.
        weights: The form of its weights, e.g. ``"int8"``.
        parameters: Parameters of the model, shared ones counted once.
        bytes_on_disk: Bytes of the folder, without this file.
        check: The comparison with the model in PyTorch.
        versions: Versions of the software that wrote and ran it.
    """

    kind: Literal["export"] = "export"
    form: str
    weights: str
    parameters: int
    bytes_on_disk: int
    check: ExportCheck
    versions: dict[str, str]

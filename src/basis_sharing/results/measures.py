"""Sizes and perplexity, which are parts of several results."""

from basis_sharing.results.base import Frozen


class Sizes(Frozen):
    """The size of a model.

    Attributes:
        parameters: Parameters of the whole model, shared ones counted once.
        projection_parameters: Parameters of the weights of the compressible projections (biases not counted).
        projection_bytes: Bytes of these weights, with scales and indices; None in results of earlier versions.
        projection_multiplications: Multiplications per token in the compressible projections.
        bytes_in_memory: Bytes of all parameters and buffers, shared storage counted once.
        bytes_on_disk: Bytes of the weight files; None for a model that is not on disk.
    """

    parameters: int
    projection_parameters: int
    projection_bytes: int | None = None
    projection_multiplications: int
    bytes_in_memory: int
    bytes_on_disk: int | None


class Perplexity(Frozen):
    """Perplexity of a model on one text.

    Attributes:
        text: Source of the text.
        fingerprint: Fingerprint of the token windows.
        perplexity: exp of the mean negative log-likelihood per token.
        nats_per_token: Mean negative log-likelihood per token, in nats.
        window_nats: The same mean for each window.
        bits_per_byte: Negative log-likelihood in bits per byte of text, comparable across tokenizers; None for a file
            of token windows.
        windows: Number of windows.
        length: Tokens per window.
        tokens: Number of predicted tokens.
        bos: Whether every window starts with the beginning-of-sequence token.
        dtype: Dtype the model ran in.
        notes: Notes for the reader.
    """

    text: str
    fingerprint: str
    perplexity: float
    nats_per_token: float
    window_nats: tuple[float, ...] = ()
    bits_per_byte: float | None
    windows: int
    length: int
    tokens: int
    bos: bool
    dtype: str
    notes: tuple[str, ...] = ()

"""Compiled execution: check for a compiler, and settings that prevent a fallback to eager execution."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from basis_sharing.errors import ModelError

_MOST_FORMS_OF_ONE_MODEL = 8


def finds_compiler() -> bool:
    """Return whether PyTorch finds a C++ compiler."""
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True


def compiled_forward(model: Any, device: torch.device) -> Callable[..., Any]:
    """Return the compiled forward pass of a model, which is compiled when it is first called.

    On CUDA its kernels are recorded in graphs, so that launching them costs next to nothing.
    """
    forward: Callable[..., Any] = torch.compile(
        model.forward, mode="reduce-overhead" if device.type == "cuda" else None
    )
    if device.type != "cuda":
        return forward

    def step(**inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # the outputs of the last step may be overwritten
        return forward(**inputs)

    return step


@contextmanager
def compiled_models(count: int) -> Iterator[None]:
    """Allow ``count`` models of one class to be compiled within the context, without a silent fallback to eager.

    Raises:
        ModelError: A model cannot be compiled.
    """
    try:
        with torch._dynamo.config.patch(
            recompile_limit=count * _MOST_FORMS_OF_ONE_MODEL, fail_on_recompile_limit_hit=True
        ):
            yield
    except Exception as error:  # backends raise errors of any type
        raise ModelError(f"compiling failed ({_reason(error)}): pass --no-compile.") from error
    finally:
        torch.compiler.reset()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__

"""Compiled execution: check for a compiler, and settings that prevent a fallback to eager execution."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from basis_sharing.errors import ModelError, RecipeError

_MOST_FORMS_OF_ONE_MODEL = 8


def check_compiler() -> None:
    """Make sure that PyTorch finds a C++ compiler, before the models are loaded.

    Raises:
        RecipeError: There is none.
    """
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        raise RecipeError(
            "--compile needs a C++ compiler, and PyTorch finds none: install one (such as g++), or leave out --compile."
        ) from None


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
        raise ModelError(f"compiling failed ({_reason(error)}): leave out --compile.") from error
    finally:
        torch.compiler.reset()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__

"""Compile functions to machine code once and keep it, wherever a cache can be written."""

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled at its first call, to run without the interpreter's lock.

    A kernel calls parts of its own file only: numba's cache does not see that another file has changed.
    """
    try:
        compiled: Callable[..., Any] = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the checkout nor the home folder can be written: compile in each process
        compiled = njit(nogil=True)(function)
    return compiled


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that kernels can call, compiled into them; it may not make arrays.

    Without the counting of references to its arguments, which `_nrt` switches off, splitting words is four times as
    fast; the kernel that calls holds the arrays meanwhile.
    """
    # Options that numba has, but that its annotations lack.
    options: dict[str, Any] = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    compiled: Callable[..., Any] = njit(**options)(function)
    return compiled

"""Compile functions to machine code once and keep it, wherever a cache can be written."""

from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from numba import config, njit

# Files whose constants are compiled into kernels of other files.
TABLES = ("characters.py", "exceptions.py")


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled at its first call, to run without the interpreter's lock.

    A kernel calls parts of its own file only: numba's cache does not see that another file has changed.
    """
    before: str = getattr(config, "CACHE_DIR")  # noqa: B009 - numba sets its attributes at run time
    config.CACHE_DIR = str(_cache_folder())  # type: ignore[attr-defined]
    try:
        compiled: Callable[..., Any] = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # the checkout cannot be written: compile in each process
        compiled = njit(nogil=True)(function)
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]
    return compiled


@cache
def _cache_folder() -> Path:
    """Return a folder whose name changes with the tables, so that no kernel is older than they are."""
    here = Path(__file__).parent
    digest = blake2b(b"".join((here / name).read_bytes() for name in TABLES), digest_size=8)
    return here / "__pycache__" / f"kernels-{digest.hexdigest()}"


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that kernels can call, compiled into them; it may not make arrays.

    Without the counting of references to its arguments, which `_nrt` switches off, splitting words is four times as
    fast; the kernel that calls holds the arrays meanwhile.
    """
    # Options that numba has, but that its annotations lack.
    options: dict[str, Any] = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    compiled: Callable[..., Any] = njit(**options)(function)
    return compiled

"""Registers the handler (`_kernels/xla.pyx`) with XLA, if the two go together."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from .._kernels import require, xla
from .._version import __version__

NAME = f"fastbptt {__version__}"  # programs are compiled for one version, wherever JAX may keep them
VERSION = r"^#define XLA_FFI_API_MAJOR (\d+)$.*^#define XLA_FFI_API_MINOR (\d+)$"


def installed_version() -> tuple[int, int] | None:
    """(major, minor) of XLA's foreign function interface, as the header that comes with jaxlib says; None if there is none.

    XLA says it too, to the handler, but not before a program is lowered.
    """
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    found = re.search(VERSION, header.read_text(), re.MULTILINE | re.DOTALL) if header.exists() else None
    return (int(found[1]), int(found[2])) if found else None


def require_known(version: tuple[int, int] | None) -> None:
    """ImportError if it is another major version than the handler was made for."""
    if version is not None and version[0] != xla.MADE_FOR[0]:
        raise ImportError(
            f"fastbptt.jax: expected version {xla.MADE_FOR[0]}.x of XLA's foreign function interface, but jaxlib {jax.lib.__version__} "
            f"has {version[0]}.{version[1]}; a newer fastbptt, or an older jaxlib, may know each other"
        )


def register() -> None:
    require()
    require_known(installed_version())
    jax.ffi.register_ffi_target(NAME, xla.handler, platform="cpu")


register()

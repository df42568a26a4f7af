"""tfray: a sequence-to-sequence Transformer on Ray, from raw text to Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfray.inference.load import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> object:
    """Import what needs torch only when it is asked for: `import tfray` stays light."""
    if name == "load":
        from tfray.inference.load import load

        return load
    raise AttributeError(f"module 'tfray' has no attribute {name!r}")

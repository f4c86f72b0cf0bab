"""jcmr: cross-modal retrieval in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jcmr.serve.scorer import Scorer as Scorer

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`jcmr.Scorer`, imported when it is asked for: losses and ops alone stay light."""
    if name == "Scorer":
        from jcmr.serve.scorer import Scorer

        return Scorer
    raise AttributeError(f"module 'jcmr' has no attribute {name!r}")

"""What a call may not change, and ways to fail in the middle: the ones that the package ships."""

from segproof.errors import ModelError
from segproof.testing.sideeffects import facts, unsettle
from segproof.testing.toys import Fails

__all__ = ["Fails", "facts", "told", "unsettle"]


def told(error: type[BaseException], place: str) -> type[BaseException]:
    """What a user sees of an error: a network's own exceptions come as a ModelError."""
    return ModelError if place == "network" and issubclass(error, Exception) else error

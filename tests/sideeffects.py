"""What a call may not change, and ways to fail in the middle: the ones that the package ships."""

from segproof.testing import Fails, facts, unsettle

__all__ = ["Fails", "facts", "unsettle"]

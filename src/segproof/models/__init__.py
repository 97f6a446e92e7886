"""Wraps any segmentation network in one contract: loads it, reads its outputs, lists its layers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

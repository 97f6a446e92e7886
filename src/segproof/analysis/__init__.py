"""Turns the rows of a study into statistics, tables, verdicts and comparisons."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

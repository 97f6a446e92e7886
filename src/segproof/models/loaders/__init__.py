"""Loads networks from files: folders, state dicts, checkpoints and factories of one's own."""

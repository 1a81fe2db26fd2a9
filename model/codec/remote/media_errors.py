"""The errors that readers of images and videos raise, whatever the libraries under them raise."""

from __future__ import annotations


class MediaError(ValueError):
    """A file cannot be read; the message says why, and what to give instead."""


class MediaOverBound(MediaError):
    """A file exceeds a bound, though its header shows no damage."""

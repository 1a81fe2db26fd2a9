"""What readers of images and videos raise, whatever the libraries below them raise."""

from __future__ import annotations


class MediaError(ValueError):
    """A file that cannot be read: why, and what to give instead."""


class MediaTooLarge(MediaError):
    """A file that is sound, as far as its header tells, but over a bound."""

"""What can go wrong between a test and its device. Every error carries what the device said, and says it in its text.

DirectError
  NoAnswer                    a wait came to its end
    DeviceBroken              ... and the device says why: DEVICE_NEEDS_RESET
  RequestRefused              the IOMMU answered a request with another status than OK (answers.py)
  FeaturesRefused, QueueRefused, NotNegotiated, RingViolation, RingFull
  OutOfDmaMemory
  AccelError                  see accel.py
"""

from __future__ import annotations


class DirectError(Exception):
    """Anything this package raises about a device; misuse of the package is ValueError."""


class NoAnswer(DirectError):
    """Nothing came back in time. The text has the ring's state, the status register and the configuration."""


class DeviceBroken(NoAnswer):
    """The device set DEVICE_NEEDS_RESET. A vhost-user unit cannot show that bit: there it is a plain NoAnswer."""


class RingViolation(DirectError):
    """The device broke the rules of the ring: an id it was never given, or more bytes than it had."""


class RingFull(DirectError):
    """The ring has not enough free descriptors."""


class FeaturesRefused(DirectError):
    """The device cleared FEATURES_OK; `wanted` and `offered` are masks."""

    def __init__(self, wanted: int, offered: int, words: str) -> None:
        super().__init__(words)
        self.wanted = wanted
        self.offered = offered


class QueueRefused(DirectError):
    """A queue does not exist, or the device does not take its size."""


class NotNegotiated(DirectError):
    """The operation needs a feature that was not accepted, or a capability that is not there."""


class OutOfDmaMemory(DirectError):
    """No huge page, or no room in one."""

"""Ids of requests: they sort by time, so that what was kept of one is found without an index."""

import os
import time

_TIME_BITS, _VERSION_BITS, _VARIANT_BITS = 80, 76, 62
_RANDOM = ~(0xF << _VERSION_BITS | 0x3 << _VARIANT_BITS)
_MARKS = 0x7 << _VERSION_BITS | 0x2 << _VARIANT_BITS


def new_request_id(seconds: float | None = None) -> str:
    """A UUIDv7 (RFC 9562) in 32 hex digits, of `seconds` since 1970 or of now."""
    milliseconds = int(1000 * (time.time() if seconds is None else seconds))
    random = int.from_bytes(os.urandom(10)) & _RANDOM
    return f"{milliseconds << _TIME_BITS | random | _MARKS:032x}"


def seconds_of(request_id: str) -> float | None:
    """When the id was made, in unix seconds; None if it is none of ours."""
    if len(request_id) != 32 or not set(request_id) <= set("0123456789abcdef"):
        return None
    return int(request_id[:12], 16) / 1000

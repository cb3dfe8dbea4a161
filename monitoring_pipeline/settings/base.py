"""The base of all sections of the settings."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

_DURATION = re.compile(r"([1-9]\d{0,3})(h|d)")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def hours_of_text(text: str) -> int:
    """The number of hours in `text`, such as 6h or 3d.

    Raises:
        ValueError: the text has another form, or means more than 30 days.
    """
    match = _DURATION.fullmatch(text)
    hours = int(match[1]) * (24 if match[2] == "d" else 1) if match else 0
    if not 1 <= hours <= 720:
        raise ValueError(f"{text!r} is not a length of time: write whole hours or days up to 30d, such as 1h, 6h or 3d")
    return hours

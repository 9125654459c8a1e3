"""What a check of ``mlcd doctor`` says."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line. text: what was found, and for a warning or an error what to do."""

    subject: str
    state: State
    text: str

"""SIGTERM is handled here for a while, and Prefect still knows a cancelled run from a crashed one.

Before it sends SIGTERM to a run that is cancelled, Prefect asks the run to confirm, and the run does while the handler
that is installed is the one that Prefect's engine names as its own. Where it does not, the run counts as crashed. So
what takes the place of that handler takes its name, too.
"""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def replace_sigterm_handler(handler: Handler) -> Handler:
    """Install a handler, and return the one that was installed, to be given to this function again.

    Only for the main thread.
    """
    usual = signal.signal(signal.SIGTERM, handler)
    engine: Any = sys.modules.get("prefect.utilities.engine")  # in a job there is no Prefect
    if engine is not None and engine._prefect_sigterm_handler is usual:
        engine._prefect_sigterm_handler = handler
    return usual

"""What failed on a worker, as the error a person can use.

Ray wraps an exception of a worker in one of its own whose text is the worker's traceback. An error that was meant for
people is taken out of the wrapping; a worker that died says so. Anything else is a defect and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from mlcd_core.errors import MlcdError, StageFailedError


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise the error that stands inside a worker's failure, instead of the failure."""
    try:
        yield
    except Exception as error:
        plain = _plain_error(error)
        if plain is None or plain is error:
            raise
        raise plain from error


def _plain_error(error: BaseException) -> MlcdError | None:
    import ray.exceptions
    from ray.train import WorkerGroupError

    if isinstance(error, ray.exceptions.RayTaskError):
        return _plain_error(error.cause) if isinstance(error.cause, Exception) else None
    if isinstance(error, MlcdError):
        return error
    if isinstance(error, WorkerGroupError):
        failures = list(error.worker_failures.values())
        inner = [_plain_error(getattr(failure, "_base_exc", failure)) for failure in failures]
        return next((plain for plain in inner if plain is not None), None)
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
        return StageFailedError(
            f"a worker process died ({str(error).splitlines()[0]}); "
            "run the same command again: finished units and saved links are kept"
        )
    return None

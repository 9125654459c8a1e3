"""Where training runs, on how many workers, and which failures are tried again."""

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.specs import TrainSpec
from tasks.train_attempts import fitting_world, lost_reason, pick_train_device, worker_slots

SPEC = TrainSpec(lanes=12, batch_size=48)
DEATH = WorkerHealthCheckFailedError("a worker health check failed", ActorDiedError())
BROKEN = RuntimeError("[/pytorch/third_party/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]")


@pytest.mark.parametrize(
    ("workers", "slots", "num_blocks", "world"),
    [(4, 10, 8, 4), (4, 3, 8, 3), (6, 5, 8, 4), (12, 100, 8, 6), (4, 1, 8, 1), (4, 0, 8, None)],
)
def test_the_largest_world_that_divides_the_lanes_and_has_room_is_taken(
    workers: int, slots: int, num_blocks: int, world: int | None
) -> None:
    assert fitting_world(SPEC, workers=workers, slots=slots, num_blocks=num_blocks) == world


def test_a_world_whose_rows_the_pieces_do_not_divide_is_left_out() -> None:
    spec = SPEC.model_copy(update={"accumulation": 12})
    assert [fitting_world(spec, workers=n, slots=9, num_blocks=8) for n in (4, 3, 2, 1)] == [4, 2, 2, 1]


def test_auto_is_cuda_where_ray_has_a_gpu() -> None:
    assert pick_train_device("auto", {"CPU": 8}) == "cpu"
    assert pick_train_device("auto", {"CPU": 8, "GPU": 2}) == "cuda"
    assert pick_train_device("cpu", {"CPU": 8, "GPU": 2}) == "cpu"
    with pytest.raises(ConfigError, match=r"Ray has no GPU.*train\.device to auto"):
        pick_train_device("cuda", {"CPU": 8})


def test_each_worker_needs_a_cpu_and_on_cuda_a_gpu_too() -> None:
    assert worker_slots({"CPU": 8, "GPU": 2}, "cuda") == 2
    assert worker_slots({"CPU": 8, "GPU": 2}, "cpu") == 8
    assert worker_slots({"CPU": 1, "GPU": 2}, "cuda") == 1
    assert worker_slots({}, "cpu") == 0


def test_a_dead_worker_and_the_broken_connections_it_leaves_are_a_loss() -> None:
    reason = lost_reason(WorkerGroupError("failed", {0: BROKEN, 1: DEATH}))
    assert reason is not None
    assert reason.startswith("rank 1: ")
    assert "connection" in str(lost_reason(WorkerGroupError("failed", {0: BROKEN})))
    assert lost_reason(ControllerError(WorkerGroupStartupTimeoutError(2))) is not None


def test_an_error_of_the_loop_is_no_loss_also_beside_the_connections_it_breaks() -> None:
    nan = TrainingError("the loss of step 3 is nan")
    assert lost_reason(WorkerGroupError("failed", {0: nan, 1: BROKEN})) is None
    assert lost_reason(WorkerGroupError("failed", {0: ValueError("a defect"), 1: BROKEN})) is None
    assert lost_reason(WorkerGroupError("failed", {0: RuntimeError("shape '[2]' is invalid")})) is None
    assert lost_reason(ControllerError(ValueError("a defect"))) is None

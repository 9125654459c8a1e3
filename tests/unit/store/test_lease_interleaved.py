"""Whatever the order of operations, and whoever sleeps or dies: never two awake holders, and nobody waits for ever."""

import random
from dataclasses import replace

import pytest

from mlcd_core.errors import LeaseLostError
from mlcd_core.store.claims import Claim, Claims
from mlcd_core.store.holder import Holder, this_process
from mlcd_core.store.lease import PACE, take_lease
from tests.unit.store.interleaving import Actor, World

ACTORS, TURNS, SEEDS = 4, 4, 25
LOOK_S = 5.0


class WatchedClaims(Claims):
    """Notes that from its claim on, an actor was never asleep, until it is."""

    def __init__(self, actor: Actor, world: World) -> None:
        super().__init__(world.files(actor), "embed/0123456789ab", "f" * 64)
        self._actor = actor

    def create(self, claim: Claim) -> bool:
        self._actor.slept = False
        return super().create(claim)


class Race:
    """Actors that take the lease several times, hold it for some heartbeats, and release it."""

    def __init__(self, seed: int, *, sleeps: float, deaths: float, visible: bool) -> None:
        self.holding: set[str] = set()
        self.holds = 0
        self._visible = visible  # whether actors can see that others died
        self.world = World(seed, check=self._one_awake_holder, sleeps=sleeps, deaths=deaths)
        self._seed = seed
        self._holder = {f"actor-{i}": this_process(f"actor-{i}") for i in range(ACTORS)}

    def run(self) -> None:
        self.world.run(dict.fromkeys(self._holder, self._take_turns))

    def _take_turns(self, actor: Actor) -> None:
        chance = random.Random(f"{self._seed} {actor.name}")
        for turn in range(TURNS):
            holder = replace(self._holder[actor.name], id=f"{actor.name} {turn}")
            lease = take_lease(
                WatchedClaims(actor, self.world),
                holder,
                tell=lambda line: None,
                pace=replace(PACE, look_s=LOOK_S),
                is_gone=self._is_gone,
                clock=lambda: self.world.now,
                sleep=lambda seconds: self.world.sleep(actor, seconds),
            )
            self.holding.add(actor.name)
            self.holds += 1
            try:
                for _ in range(chance.randrange(3)):
                    self.world.sleep(actor, PACE.beat_s)
                    lease.beat()
                lease.confirm()
                self.holding.remove(actor.name)
                lease.release()
            except LeaseLostError:
                assert actor.slept, f"{actor.name} was awake and lost its lease"
                self.holding.discard(actor.name)

    def _is_gone(self, holder: Holder) -> bool:
        return self._visible and any(actor.is_dead for actor in self.world.actors if actor.name == holder.run)

    def _one_awake_holder(self) -> None:
        awake = [a.name for a in self.world.actors if a.name in self.holding and not a.slept and not a.is_dead]
        assert len(awake) <= 1, f"{awake} hold the lease at once"


@pytest.mark.parametrize(
    ("sleeps", "deaths", "visible"),
    [(0, 0, False), (0.03, 0, False), (0.03, 0.005, False), (0.03, 0.005, True)],
    ids=["undisturbed", "sleeps", "sleeps and deaths", "sleeps and seen deaths"],
)
def test_actors_in_any_order_never_hold_at_once_and_all_get_their_turn(
    sleeps: float, deaths: float, visible: bool
) -> None:
    holds = 0
    for seed in range(SEEDS):
        race = Race(seed, sleeps=sleeps, deaths=deaths, visible=visible)
        race.run()
        holds += race.holds
        assert race.holds == ACTORS * TURNS or deaths, seed
    assert holds > SEEDS * TURNS

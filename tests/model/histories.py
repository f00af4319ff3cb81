"""Which histories are played: every single fault at every step, then chains of faults at random.

Why both. The sweeps are exhaustive and need no luck: each fault at each step of the ordinary course of a small
scenario. As a frozen node thaws only when all others have nothing left to do, "freeze at every step" is also
"takeover at every step, and then go on with the oldest possible view". They find nearly all mutants, in seconds and
at every run. Bugs that need several faults in a row, or an unusual order of the nodes, are for the chains and for the
random part: hypothesis draws gaps and moves, always the same ones (derandomized), and shrinks what it finds. A state
machine of hypothesis' own (RuleBasedStateMachine) was not taken: its rules are drawn without a notion of an ordinary
course, most of its histories stall before the first claim, and its shrinking cannot drop an ordinary step without
changing the meaning of all that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.model.stores import Store
from tests.model.world import Deviation, Move, Scenario, Violation, World

History = tuple[Deviation, ...]

SINGLE: tuple[Move, ...] = ("freeze", "crash", "error")
_RANDOM: tuple[Move, ...] = (
    *("switch", "switch", "switch", "freeze", "freeze", "crash", "error", "error"),
    *("thaw", "tick", "tick", "edit", "edit", "stop", "join", "lose"),
)


@dataclass
class Search:
    """Plays histories on one store until one breaks a promise."""

    store: Store
    locks: Path
    played: int = 0

    def play(self, scenario: Scenario, history: History) -> World:
        """One history; Violation, told with all its steps, when it breaks a promise."""
        self.played += 1
        world = World(self.store, scenario, self.locks)
        try:
            world.play(history)
        except Violation as violation:
            raise Violation(_tell(scenario, history, world, str(violation))) from None
        return world

    def sweep(self, scenarios: Sequence[Scenario], moves: Sequence[Move] = SINGLE, stride: int = 1) -> None:
        """Every one of `moves` after every `stride`th step of the ordinary course that can tell something."""
        for scenario in scenarios:
            for steps in self._telling_steps(scenario, stride):
                for move in moves:
                    self.play(scenario, (Deviation(steps, move),))

    def _telling_steps(self, scenario: Scenario, stride: int) -> list[int]:
        telling = self.play(scenario, ()).telling
        return [steps for steps, tells in enumerate(telling, start=1) if tells][::stride]

    def edit(self, scenarios: Sequence[Scenario]) -> None:
        """Every edit in every second of the ordinary course, when moments are due and when they are claimed."""
        for scenario in scenarios:
            for steps in (*self.play(scenario, ()).seconds, *self._telling_steps(scenario, 4)):
                for pick in range(len(scenario.edits)):
                    self.play(scenario, (Deviation(steps, "edit", pick),))

    def chain(self, scenarios: Sequence[Scenario], gaps: Sequence[int] = (15, 25, 35), stride: int = 1) -> None:
        """A node freezes at every `stride`th step, others take `gaps` steps, one dies or not, and it thaws."""
        for scenario in scenarios:
            for steps in self._telling_steps(scenario, stride):
                for gap in gaps:
                    thaw = (Deviation(steps, "freeze"), Deviation(gap, "thaw"))
                    crash = (Deviation(steps, "freeze"), Deviation(gap, "crash"), Deviation(0, "thaw"))
                    for history in (thaw, crash):
                        self.play(scenario, history)

    def race(self, scenarios: Sequence[Scenario], stride: int = 1) -> None:
        """At every `stride`th step another thread goes first, each one in turn; then all go on in order."""
        for scenario in scenarios:
            for steps in self._telling_steps(scenario, stride):
                for pick in range(3):
                    self.play(scenario, (Deviation(steps, "switch", pick),))

    def overlap(self, scenarios: Sequence[Scenario]) -> None:
        """A node with a task at work freezes; later, at every step, the other one; they wake in this order."""
        for scenario in scenarios:
            begin = self.play(scenario, ()).working[0]
            for gap in range(1, 80):
                wake = (Deviation(0, "thaw"), Deviation(14, "thaw"))
                self.play(scenario, (Deviation(begin, "freeze"), Deviation(gap, "freeze"), *wake))

    def at_random(self, scenarios: Sequence[Scenario], examples: int, *, shrink: bool = True) -> None:
        """`examples` histories of several moves, the same ones at each call."""

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(st.sampled_from(scenarios), histories())
        def play(scenario: Scenario, history: History) -> None:
            self.play(scenario, history)

        play()


def histories() -> st.SearchStrategy[History]:
    """Histories of up to six moves. Most gaps are short, as faults that meet in one transaction's steps tell most."""
    gap = st.one_of(st.integers(0, 12), st.integers(0, 80))
    deviation = st.builds(Deviation, gap, st.sampled_from(_RANDOM), st.integers(0, 5))
    return st.lists(deviation, min_size=1, max_size=6).map(tuple)


def _tell(scenario: Scenario, history: History, world: World, what: str) -> str:
    moves = ", ".join(repr(deviation) for deviation in history)
    steps = "\n  ".join(world.trace)
    return f"{what}\nscenario: {scenario.name}\nhistory: ({moves})\n  {steps}"

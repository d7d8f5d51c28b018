"""The Locust shape: a plan's stages, then a drain in which users finish what they have begun."""

from __future__ import annotations

from typing import ClassVar

from locust import LoadTestShape

from scenarios.engine import Engine

SPAWN_PER_S_MAX = 10_000


class PlanShape(LoadTestShape):  # type: ignore[misc]
    """Users over time as the plan says. A scenario names its `engine`."""

    abstract = True
    engine: ClassVar[Engine]

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now and how fast to get there; None ends the test. The first start begins the load.

        After the last stage no user begins anything, but one that has no answer yet may go on asking
        under its key until its budget is spent: to stop at once would leave operations unknown that a
        second more would settle. Locust itself would give them `--stop-timeout` in a lump at the end.
        """
        engine, runner = self.engine, self.runner
        assert engine.crew is not None
        assert runner is not None
        if engine.crew.live.abandoned:
            return None
        elapsed_s = engine.crew.elapsed_s
        users = engine.crew.plan.users_at(elapsed_s)
        if users == 0 and elapsed_s < engine.crew.plan.stages[0].ramp_s:
            users = 1  # somebody comes at once: the shape is asked again in a second only
        if users is not None:
            # Each change is made within the second that it belongs to.
            return users, float(min(max(abs(users - runner.user_count), 1), SPAWN_PER_S_MAX))
        load = engine.crew.plan.load
        deadline_s = engine.crew.plan.load_s + load.patience_s + load.answer_budget_s + 1
        if engine.user_count == 0 or elapsed_s > deadline_s:
            return None
        return 0, float(max(stage.users for stage in engine.crew.plan.stages))

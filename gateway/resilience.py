"""From the configuration to guards around backends, and the one ear that hears them all."""

from __future__ import annotations

from backends.wrappers import BreakerSettings, Call, Guard, Policy, State, Use, Watcher
from gateway.settings import Settings


def policy(settings: Settings, model: str) -> Policy:
    """How a model of the configuration is guarded."""
    retries, breaker = settings.resilience.retries, settings.resilience.breaker
    return Policy(
        retries=retries.most,
        pause=retries.pause,
        longest=retries.longest,
        share=retries.share,
        reserve=retries.reserve,
        breaker=BreakerSettings(
            window=breaker.window,
            least=breaker.least,
            share=breaker.share,
            pause=breaker.pause,
            pause_most=breaker.pause_most,
        )
        if breaker.enabled
        else None,
        hedge_after=settings.models[model].hedge_after,
    )


class Ear(Watcher):
    """Passes on what the guards tell. The guards are made before anybody listens, so listeners come later, and may be replaced.

    counts: hears everything but calls. calls: is asked about every use of a backend; None: nobody is.
    """

    __slots__ = ("calls", "counts")

    def __init__(self) -> None:
        self.counts = Watcher()
        self.calls: Watcher | None = None

    def call(self, model: str, use: Use, attempt: int) -> Call | None:
        return None if self.calls is None else self.calls.call(model, use, attempt)

    def failed(self, model: str, cause: str) -> None:
        self.counts.failed(model, cause)

    def retried(self, model: str, cause: str) -> None:
        self.counts.retried(model, cause)

    def unaffordable(self, model: str) -> None:
        self.counts.unaffordable(model)

    def rerun(self, model: str) -> None:
        self.counts.rerun(model)

    def hedged(self, model: str) -> None:
        self.counts.hedged(model)

    def hedge_won(self, model: str) -> None:
        self.counts.hedge_won(model)

    def turned(self, model: str, state: State) -> None:
        self.counts.turned(model, state)

    def stepped(self, model: str, steps: int, seconds: float) -> None:
        self.counts.stepped(model, steps, seconds)


class Guards:
    """The guards of the configured models, by name; made when first asked for, and kept across reloads."""

    def __init__(self, ear: Ear | None = None) -> None:
        self.ear = ear or Ear()
        self._guards: dict[str, Guard] = {}

    def of(self, settings: Settings, model: str) -> Guard:
        """The guard of a model. One whose rules have changed is made anew, with a closed breaker."""
        wanted = policy(settings, model)
        guard = self._guards.get(model)
        if guard is None or guard.policy != wanted:
            guard = self._guards[model] = Guard(model, wanted, self.ear)
        return guard

    def renew(self, model: str) -> None:
        """The model is another one from now on: what is known of the old one says nothing about it."""
        self._guards.pop(model, None)

    def may_rerun(self, model: str) -> bool:
        """Whether an unseen stage of this model may be run again; takes it from the model's budget."""
        guard = self._guards.get(model)
        if guard is None:
            return False
        if not guard.budget.take():
            self.ear.unaffordable(model)
            return False
        self.ear.rerun(model)
        return True

    def not_closed(self) -> dict[str, State]:
        """Model → state of its breaker, where it is not closed."""
        return {name: guard.state for name, guard in self._guards.items() if guard.state != "closed"}

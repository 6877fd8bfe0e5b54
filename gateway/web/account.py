"""One request on the books: the key it came with, its route and arm, what it holds of its key's limits, what it has spent so far, and in
the end its row in the ledger.

The middleware `Accounts` opens one for every request that is counted and closes it, whatever became of it; routes fill it in.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from backends.estimate import prompt_tokens
from backends.types import Message, Usage
from gateway.experiments.choose import Choice, Facts, OverrideForbidden, UnknownArm, choose, shadowed
from gateway.experiments.shadow import Original, texts
from gateway.keys.key import Key
from gateway.ledger.meter import Meter, RunMeter
from gateway.ledger.row import Row, outcome
from gateway.limits.estimate import Budgets, estimate
from gateway.limits.headers import rate_headers
from gateway.limits.limiter import Lease, LimitsUnknown, Refused
from gateway.limits.verdict import Ask, Verdict
from gateway.observability.record import RequestRecord, record_of
from gateway.operations import Operations
from gateway.wire.errors import bad_request
from gateway.wire.refusals import limits_unknown, not_allowed, refusal

if TYPE_CHECKING:
    from gateway.runtime import Prepared, Runtime
    from gateway.wire.decode import ChatRequest
    from strategies.planning import Plan

DEFAULT = 1024
"""Tokens that an answer is taken to have where nothing bounds it but the model's context."""
_KEY = "modelnet.account"
_WHO = "modelnet.key"


class Account:
    """entered: the caller was let in, so the request is to be remembered. prompt: its tokens, estimated. writer: the model that
    reads and writes, where there is no plan to watch."""

    __slots__ = (
        *("answers", "at", "attempts", "choice", "entered", "key", "lease", "messages", "meter"),
        *("operations", "record", "verdict", "wiring", "writer", "_alone", "_leave"),
    )

    def __init__(self, operations: Operations, record: RequestRecord) -> None:
        self.operations = operations
        self.record = record
        self.at = time.time()
        self.entered = False
        self.key: Key | None = None
        self.choice: Choice | None = None
        self.lease: Lease | None = None
        self.verdict: Verdict | None = None
        self.meter = Meter(operations.prices)
        self.wiring: str | None = None
        self.writer: str | None = None
        self.attempts: list[tuple[str, str]] = []
        self.messages: Sequence[Message] = ()
        self.answers: dict[int, list[str]] | None = None
        self._alone: str | None = None  # a model that is asked without a plan to watch
        self._leave: Callable[[], None] | None = None

    def enter(self, key: Key | None) -> None:
        """The caller may come in; key: None where none is asked for."""
        self.entered, self.key = True, key
        if key is not None:
            self.record.key = key.id

    def direct_chat(self, request: ChatRequest, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """`direct` for a chat request."""
        named = (request.extra.get(name) for name in ("user", "safety_identifier"))
        user = next((name for name in named if isinstance(name, str) and name), None)
        return self.direct(request.model, headers, request.messages, user, request.arm)

    def direct(
        self,
        model: str,
        headers: Iterable[tuple[bytes, bytes]],
        messages: Sequence[Message] = (),
        user: str | None = None,
        arm: str | None = None,
    ) -> str:
        """The model name that answers a request for `model`: of its arm, if that is a route, else itself. Raises APIError (400)."""
        route = self.operations.routes.get(model)
        if route is None:
            if arm is not None:
                raise bad_request(f"{model[:128]!r} is no route, so it has no arms.", "modelnet.arm")
            return model
        named = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers}
        key = self.key.id if self.key is not None else None
        facts = Facts(
            user, key, named, messages, arm, uuid.uuid4().hex
        )  # not the request's id: clients may choose that
        try:
            self.choice = choose(route, facts, self.at)
        except (UnknownArm, OverrideForbidden) as error:
            raise bad_request(str(error), "modelnet.arm" if arm else None) from error
        self.record.route, self.record.arm = model, self.choice.arm
        return self.choice.model

    def check(self, model: str, wiring: str, models: Iterable[str]) -> None:
        """Whether the key may use this. model: as asked for. Raises APIError (403)."""
        if self.key is not None and not self.key.rights.allow(model, wiring, models):
            raise not_allowed(model)

    async def admit_plan(self, prepared: Prepared, messages: Sequence[Message], n: int, conversations: int = 1) -> None:
        """`admit` for n runs of a plan, each over one of the conversations that the messages are together."""
        prompt = self.meter.prompt = -(-prompt_tokens(messages) // conversations)
        if self.limited:
            options = prepared.options
            budgets = Budgets(
                options.stage_max_tokens, options.sampling.max_tokens or options.answer_max_tokens or DEFAULT
            )
            await self.admit(estimate(prepared.plan, prompt, budgets, n, self.operations.prices))
        else:
            await self.admit(Ask())

    async def admit_model(self, asked: str, model: str, read: int, written: int = 0) -> None:
        """`check` and `admit` for one model that is asked without a plan. read, written: tokens, at most. Raises APIError."""
        self.wiring = self.writer = self._alone = model
        self.check(asked, model, (model,))
        self.meter.prompt = read
        await self.admit(
            Ask(read + written, self.operations.prices.nano(model, read, written)) if self.limited else Ask()
        )

    async def admit(self, ask: Ask) -> None:
        """Take what the request may need of its key's limits. Raises APIError (429, 503)."""
        if self.key is None or self.lease is not None or not self.limited:
            return  # where nothing limits it, what was spent is all that has to be known, and only in the end
        try:
            self.lease = await self.operations.limiter.admit(self.key, ask)
        except Refused as error:
            self.verdict = error.verdict
            raise refusal(error.verdict, ask, self.key.rights) from error
        except LimitsUnknown as error:
            raise limits_unknown() from error
        self.verdict = self.lease.verdict

    def begin(self, completion: str, runtime: Runtime, request: ChatRequest, prepare: Any) -> None:
        """The answer of this id is about to be written. prepare: plans the same request for another model name."""
        self.record.completion = completion
        if self.operations.settings.ledger.texts:
            self.messages, self.answers = request.messages, {}
        choice = self.choice
        if choice is not None and request.messages and shadowed(choice, completion):
            original = Original(
                choice, completion, self.record.request_id, request.messages, self.meter.prompt, prepare
            )
            self.operations.shadows.copy(runtime, original)

    def watch(self, choice: int, plan: Plan) -> RunMeter:
        """What meters one run, of one choice."""
        watch = self.meter.run(plan, keep=self.answers is not None)
        if self.answers is not None:
            self.answers[choice] = watch.parts
        return watch

    @property
    def limited(self) -> bool:
        """Whether an estimate of what the request may spend is needed at all."""
        return self.key is not None and self.key.rights.limited

    def headers(self) -> dict[str, str]:
        """What the client is told of its limits, and of its arm where it might have chosen one."""
        headers = rate_headers(self.verdict) if self.verdict is not None else {}
        if self.choice is not None and self.choice.route.override:
            headers["x-modelnet-arm"] = self.choice.arm
        return headers

    def hold(self, leave: Callable[[], None]) -> None:
        """The request has a place, which `leave` gives back; calling that again does nothing."""
        self._leave = leave

    async def free(self) -> None:
        """Give back what the request holds: its last byte is about to go out, and who has that may ask again at once.

        What is held by a shared counter as well is given back by `close`, so that no answer waits for that; the limiter is patient.
        """
        self._count()
        if self._leave is not None:
            self._leave()
        if self.lease is not None and self.operations.limiter.shared is None:
            await self.lease.settle(self.meter.spent)

    def _count(self) -> None:
        """Meter what the server of a model that was asked without a plan has told by now."""
        if self._alone is not None and self.record.usage is not None:
            self.meter.add(self._alone, self.record.usage)
            self._alone = None

    async def close(self, endpoint: str, broke: bool) -> None:
        """The request is over. broke: it ended with an exception, after its response had begun."""
        self._count()
        record, meter = self.record, self.meter
        ended = outcome(record.status, record.error or ("broke_off" if broke else None))
        if ended == "abandoned" and self.writer is not None and meter.usage == Usage():
            meter.add(self.writer, Usage(meter.prompt, 0))  # it was read, at least
        if self.lease is not None:
            await self.lease.settle(meter.spent)
        elif self.key is not None and ((spent := meter.spent).tokens or spent.nano):
            self.operations.keyring.spending.add(self.key.id, spent)
        ledger = self.operations.ledger
        if ledger is not None and self.entered:
            ledger.put(self._row(endpoint, ended))

    def _row(self, endpoint: str, ended: Any) -> Row:
        record, choice, usage = self.record, self.choice, self.meter.usage
        kept = None
        if self.answers is not None:
            kept = texts(self.messages, ["".join(self.answers[index]) for index in sorted(self.answers)])
        return Row(
            id=uuid.uuid4().hex,
            at=self.at,
            request_id=record.request_id,
            endpoint=endpoint,
            completion=record.completion,
            key=self.key.id if self.key is not None else None,
            route=choice.route.name if choice is not None else None,
            arm=choice.arm if choice is not None else None,
            arm_by=choice.by if choice is not None else None,
            subject=choice.subject if choice is not None else None,
            shares=choice.shares if choice is not None else None,
            model=record.model,
            wiring=self.wiring,
            shape=record.shape,
            kind=record.kind,
            status=record.status,
            outcome=ended,
            error=record.error,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            nano=self.meter.spent.nano,
            seconds=record.seconds(),
            first_token=record.first_token,
            stages=tuple(self.meter.stages),
            attempts=tuple(self.attempts),
            texts=kept,
        )


def attach_account(scope: MutableMapping[str, Any], account: Account) -> None:
    """Put it where everything further in finds it."""
    scope[_KEY] = account


def account_of(scope: MutableMapping[str, Any], operations: Operations) -> Account:
    """The account of this request; where nothing outside has opened one, one that nobody will close."""
    found = scope.get(_KEY)
    if not isinstance(found, Account):
        scope[_KEY] = found = Account(operations, record_of(scope))
    return found


def set_caller(scope: MutableMapping[str, Any], key: Key | None) -> None:
    """The caller is let in, with this key."""
    scope[_WHO] = key
    account = scope.get(_KEY)
    if isinstance(account, Account):
        account.enter(key)


def caller(scope: MutableMapping[str, Any]) -> Key | None:
    """The key that a request came with; None where none is asked for."""
    found = scope.get(_WHO)
    return found if isinstance(found, Key) else None

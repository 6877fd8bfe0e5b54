"""Rules between fields: what a type can't say. Each finding is a key path and a message."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.settings.check_operations import findings
from gateway.settings.models import LlamaCppModel
from gateway.settings.schema import Settings
from gateway.settings.source import KeyPath
from strategies.fusion import FuserError, fuser_of
from strategies.routing import Alias as Route
from strategies.routing import AliasError, check_aliases
from strategies.topology import Limits

BUILT_IN_PROMPTS = ("default", "paper")

Finding = tuple[KeyPath, str]


def check(settings: Settings, resolve: Callable[[str], Path]) -> list[Finding]:
    """All findings. `resolve` turns a path written in the file into a real one."""
    return [*_models(settings, resolve), *_prompts(settings, resolve), *_aliases(settings), *_budgets(settings)]


def _models(settings: Settings, resolve: Callable[[str], Path]) -> Iterator[Finding]:
    from gateway.weights import catalogue

    for name, model in settings.models.items():
        if not isinstance(model, LlamaCppModel):
            continue
        at = ("models", name)
        if (model.weights is None) == (model.path is None):
            yield at, "name the weights by exactly one of `weights` and `path`"
        elif model.weights is not None and model.weights not in catalogue():
            yield (*at, "weights"), f"no weights of that name; there are {', '.join(catalogue())}"
        for key in ("path", "chat_template"):
            written = getattr(model, key)
            if written is not None and not resolve(written).is_file():
                yield (*at, key), f"no such file: {resolve(written)}"


def _prompts(settings: Settings, resolve: Callable[[str], Path]) -> Iterator[Finding]:
    for name, written in settings.prompts.items():
        if name in BUILT_IN_PROMPTS:
            yield ("prompts", name), "is the name of a built-in prompt set"
        elif not resolve(written).is_file():
            yield ("prompts", name), f"no such file: {resolve(written)}"


def _aliases(settings: Settings) -> Iterator[Finding]:
    known_prompts = (*BUILT_IN_PROMPTS, *settings.prompts)
    for name, alias in settings.aliases.items():
        at = ("aliases", name)
        if alias.prompts is not None and alias.prompts not in known_prompts:
            yield (*at, "prompts"), f"no prompt set of that name; there are {', '.join(known_prompts)}"
        if alias.fuser is not None:
            try:
                fuser_of(alias.fuser)
            except FuserError as error:
                yield (*at, "fuser"), str(error)
    aliases, limits = routes(settings), wiring_limits(settings)
    try:
        check_aliases(aliases, settings.models, limits)
        yield from findings(settings, aliases, limits)
    except AliasError as error:
        where, pointer = error.caret().split("\n")
        text = f"column {error.column + 1}: {error.message}\n    {where}\n    {pointer}"
        yield ("aliases", error.alias, "expression"), text


def _budgets(settings: Settings) -> Iterator[Finding]:
    limits = settings.limits
    if limits.answer_max_tokens > limits.max_tokens:
        yield ("limits", "answer_max_tokens"), "is larger than limits.max_tokens"


def routes(settings: Settings) -> dict[str, Route]:
    """The aliases as routing takes them."""
    return {
        name: Route(
            alias.expression,
            prompts=alias.prompts,
            fuser=alias.fuser,
            on_member_failure=alias.on_member_failure,
            member_seconds=alias.member_seconds,
            drafts=alias.drafts,
            early_prefill=alias.early_prefill,
            quorum=alias.quorum,
            stage_max_tokens=alias.stage_max_tokens,
            max_tokens=alias.max_tokens,
            description=alias.description or "",
        )
        for name, alias in settings.aliases.items()
    }


def wiring_limits(settings: Settings) -> Limits:
    """How large a wiring may be."""
    limits = settings.limits
    return Limits(limits.wiring_length, limits.wiring_depth, limits.wiring_stages, limits.wiring_members)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to that host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_problem(settings: Settings, host: str, stored_keys: bool = False) -> str | None:
    """Why the gateway must not be served on that host, None if it may. stored_keys: there are keys that `modelnet keys` made."""
    if settings.keys or stored_keys or is_loopback(host):
        return None
    return (
        f"no keys are configured or stored, so only this machine may connect: use --host 127.0.0.1; "
        f"to serve on {host}, set `keys`, or make one with `modelnet keys create`"
    )

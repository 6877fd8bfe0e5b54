"""All that a started backend holds: weights, context, worker, prompt maker. Made and unmade in a thread, because it blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jinja2

from backends.errors import BackendUnavailable
from backends.llama_cpp.batching import exact_width
from backends.llama_cpp.context import Context, DecodeFailed
from backends.llama_cpp.cores import Cores
from backends.llama_cpp.kept import Kept
from backends.llama_cpp.library import LoadedModel, load, log, release
from backends.llama_cpp.probe import can_repack
from backends.llama_cpp.prompt import Prompter
from backends.llama_cpp.settings import LlamaCppSettings
from backends.llama_cpp.template import TRANSCRIPT, TRANSCRIPT_STOPS, ChatTemplate
from backends.llama_cpp.worker import Worker


@dataclass(slots=True, eq=False)
class Engine:
    """kept: the sequences that are free. turn_stops: strings that end an answer where the model has no end of turn of its own. size: ids in
    the vocabulary."""

    model: LoadedModel
    context: Context
    worker: Worker
    kept: Kept
    prompter: Prompter
    turn_stops: tuple[str, ...]
    size: int

    def stop(self) -> None:
        """End the worker and free everything. Blocks until a pass under way is over."""
        self.worker.stop()
        self.context.free()
        release(self.model)


def start_engine(name: str, settings: LlamaCppSettings, cores: Cores) -> Engine:
    """Load and try it with one token. Blocks for seconds. Raises BackendUnavailable, and then holds nothing."""
    repack = settings.repack == "on" or (settings.repack == "auto" and can_repack(settings.path))
    if not repack and settings.repack == "auto":
        log.warning("model %s: this build of llama.cpp can't rearrange weights for this CPU; it runs, but slower", name)
    model = load(name, settings.path, repack)
    undo: list[Callable[[], None]] = [lambda: release(model)]
    try:
        source = settings.chat_template or model.metadata.values.get("tokenizer.chat_template")
        template = _template(name, model, str(source) if source else TRANSCRIPT)
        room = min(settings.context, model.trained_context) if model.trained_context > 0 else settings.context
        threads = min(settings.threads or cores.total, cores.total)
        context = Context(name, model, room, settings.seats, settings.chunk, cores, threads)
        undo.append(context.free)
        width = _try(name, context, model, settings)
        log.info("model %s: %d of %d sequences may share a pass", name, width, settings.seats)
        worker = Worker(name, context, width)
        prompter = Prompter(model, template)
        worker.start()
        kept = Kept(settings.seats, context.chunk, keep=settings.prefix_cache)
        return Engine(model, context, worker, kept, prompter, () if source else TRANSCRIPT_STOPS, model.size)
    except BaseException:
        for action in reversed(undo):
            action()
        raise


def _template(name: str, model: LoadedModel, source: str) -> ChatTemplate:
    bos, eos = model.bos()[0], model.eos()
    texts = ["" if id is None else model.text(id).decode(errors="replace") for id in (bos, eos)]
    try:
        return ChatTemplate(source, *texts)
    except jinja2.TemplateSyntaxError as error:
        raise BackendUnavailable(name, f"The chat template of model {name!r} is not valid: {error.message}") from error


def _try(name: str, context: Context, model: LoadedModel, settings: LlamaCppSettings) -> int:
    """Compute one token: reads the weights from disk, and finds out now whether they work. How many sequences are to share a pass."""
    token = model.bos()[0] or 0
    try:
        context.decode([(0, 0, token, True)])
        context.forget(0)
        if settings.batching == "fast":
            return settings.seats
        if settings.seats not in model.widths:  # the same for everybody who computes with these weights
            model.widths[settings.seats] = exact_width(context, settings.seats, model.size)
        return model.widths[settings.seats]
    except DecodeFailed as error:
        raise BackendUnavailable(name, f"Model {name!r} can't compute.") from error

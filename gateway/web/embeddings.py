"""POST /v1/embeddings: handed to the server of a single model, if it has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.catalog import Entry
from backends.protocol import EmbeddingBackend
from gateway.observability.record import RequestRecord
from gateway.web.passthrough import AskRoute, lacks
from gateway.wire.embeddings import checked, normalised, usage_of
from gateway.wire.fields import Fields


class EmbeddingsRoute(AskRoute):
    """Texts → vectors."""

    async def _ask(self, fields: Fields, entry: Entry, record: RequestRecord) -> Mapping[str, Any]:
        wanted = checked(fields)
        backend = entry.backend
        if not isinstance(backend, EmbeddingBackend):
            raise lacks(entry, "it has no embeddings")
        answer = normalised(await backend.embed(wanted), fields)
        record.usage = usage_of(answer)
        self._metrics.spent(backend.name, record.usage)
        return answer

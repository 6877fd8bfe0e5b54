"""LangChain's own tests of chat models, over the gateway. Run by pytest in the client's environment."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

WIRING = os.environ["WIRING"]


class _Ours:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": WIRING, "stream_usage": True}

    supports_json_mode = True
    # The gateway hands images on; none of the models here sees.
    supports_image_inputs = False
    supports_image_urls = False
    supports_model_override = True
    model_override_value = WIRING


class TestUnit(_Ours, ChatModelUnitTests):
    pass


class TestIntegration(_Ours, ChatModelIntegrationTests):
    pass

"""Embeddings and tokens through the official client, over servers that have them and models that do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from served import gateway, upstream

CONFIG = """
models:
  vec: {{backend: openai, base_url: "{vec}", model: vec-there}}
  engine: {{backend: vllm, urls: ["{vec}"]}}
  plain: {{backend: openai, base_url: "{plain}"}}
  gone: {{backend: openai, base_url: "http://127.0.0.1:9/v1"}}
  a: {{backend: fake}}
  b: {{backend: fake}}
aliases:
  vectors: {{expression: vec}}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("embeddings")
    with upstream(folder, "vec") as vec, upstream(folder, "plain", "--dialect", "plain") as plain:
        with gateway(folder, CONFIG.format(vec=vec, plain=plain)) as client:
            yield client


@pytest.mark.parametrize("model", ["vec", "engine", "vectors"])
def test_vectors_come_through(client: openai.OpenAI, model: str) -> None:
    """drop-in 35: strings and lists, and the client's own name for the model."""
    one = client.embeddings.create(model=model, input="Hello")
    two = client.embeddings.create(model=model, input=["Hello", "是的"])
    assert one.model == two.model == model
    assert [item.index for item in two.data] == [0, 1]
    assert two.data[0].embedding == one.data[0].embedding != two.data[1].embedding
    assert two.usage.prompt_tokens == two.usage.total_tokens > one.usage.prompt_tokens > 0


def test_base64_floats_and_dimensions_agree(client: openai.OpenAI) -> None:
    """drop-in 35: the client asks for base64 by itself and decodes it."""
    by_default = client.embeddings.create(model="vec", input="Hello", dimensions=5)
    floats = client.embeddings.create(model="vec", input="Hello", dimensions=5, encoding_format="float")
    assert len(floats.data[0].embedding) == 5
    assert by_default.data[0].embedding == pytest.approx(floats.data[0].embedding)
    raw: Any = client.embeddings.with_raw_response.create(model="vec", input="Hello", encoding_format="base64")
    assert isinstance(raw.http_response.json()["data"][0]["embedding"], str)


def test_token_ids_are_inputs(client: openai.OpenAI) -> None:
    ids = post(client, "/tokenize", model="vec", prompt="Hello")["tokens"]
    by_ids = client.embeddings.create(model="vec", input=[ids])
    assert by_ids.data[0].embedding == client.embeddings.create(model="vec", input="Hello").data[0].embedding


@pytest.mark.parametrize("model", ["plain", "a", "vec>a", "a|b"])
def test_where_there_are_none_is_a_404(client: openai.OpenAI, model: str) -> None:
    """drop-in 35: the server has none, the model is none of a server, the wiring is of several."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model=model, input="Hello")
    assert (missing.value.code, missing.value.param) == ("unsupported_endpoint", "model")


def test_errors(client: openai.OpenAI) -> None:
    """drop-in 26, 27: nobody, nothing, and a server that is not there."""
    with pytest.raises(openai.NotFoundError) as nobody:
        client.embeddings.create(model="nobody", input="Hello")
    assert nobody.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as nothing:
        client.embeddings.create(model="vec", input=[])
    assert nothing.value.param == "input"
    with pytest.raises(openai.InternalServerError) as gone:
        client.embeddings.create(model="gone", input="Hello")
    assert gone.value.status_code == 502
    assert "127.0.0.1" not in str(gone.value)


@pytest.mark.parametrize("model", ["engine", "vec", "a"])
def test_tokens_of_texts(client: openai.OpenAI, model: str) -> None:
    """vLLM's routes: by the server, or by the model's own vocabulary."""
    told = post(client, "/tokenize", model=model, prompt="Hello 中国", return_token_strs=True)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert "".join(told["token_strs"]) == "Hello 中国"
    assert told["max_model_len"] > 0
    assert post(client, "/detokenize", model=model, tokens=told["tokens"]) == {"prompt": "Hello 中国"}
    chat = post(client, "/tokenize", model=model, messages=[{"role": "user", "content": "Hello"}])
    assert chat["count"] > 1


@pytest.mark.parametrize("model", ["plain", "vec>a"])
def test_tokens_of_others_are_a_404(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        post(client, "/tokenize", model=model, prompt="Hello")
    assert missing.value.code == "unsupported_endpoint"


def post(client: openai.OpenAI, path: str, **body: Any) -> Any:
    root = str(client.base_url).removesuffix("/v1/")
    return client.post(f"{root}{path}", body=body, cast_to=object)

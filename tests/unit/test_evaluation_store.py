"""Question sets by name, a run's directory, the process for algebra, and asking under faults."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from aiohttp import web

from gateway.evaluation import runner
from gateway.evaluation.checker import Checker, available
from gateway.evaluation.client import open_client
from gateway.evaluation.errors import GatewayGone, SpecError, StoreError
from gateway.evaluation.runner import Budget, jobs, run, said_right
from gateway.evaluation.sources import Task, read_task
from gateway.evaluation.spec import Settings, Spec, make_paths
from gateway.evaluation.store import ANSWERS, open_store, read_answers, read_run, write_run
from gateway.web.serving import bind, url
from strategies.evaluation.generated import generated
from strategies.evaluation.questions import Question, kind_of, question_from
from strategies.evaluation.records import Record, key_of


def spec(count: int = 3, wirings: tuple[str, ...] = ("a", "b"), **settings: Any) -> Spec:
    task = Task("sums", "arithmetic", tuple(generated("arithmetic", count, 1)))
    return Spec((task,), make_paths((), (), wirings), Settings(**settings))


def record_of(what: Spec, index: int, wiring: str = "a", **fields: Any) -> Record:
    question = what.tasks[0].questions[index]
    key = key_of("sums", question, wiring, what.settings.value())
    return Record(key, "sums", question.id, wiring, "number", question.answer, **fields)


def test_files_of_both_kinds_and_names(tmp_path: Path) -> None:
    lines, table = tmp_path / "set.jsonl", tmp_path / "set.csv"
    lines.write_text(
        '\ufeff{"question": "2+2?", "answer": 4}\n\n{"id": "x", "question": "3+3?", "answer": "6"}\n', encoding="utf-8"
    )
    table.write_text('problem,solution,A,B\n"Which, then?",b,one,two\n', encoding="utf-8")
    task = read_task(str(lines), None, 0)
    assert (task.name, [q.id for q in task.questions], task.questions[0].answer) == ("set", ["1", "x"], "4")
    named = read_task(f"Mine={table}", 5, 0, {"question": "problem", "answer": "solution"})
    assert (named.name, named.questions[0].kind, named.questions[0].choices) == ("Mine", "choice", ("one", "two"))
    assert named.questions[0].stem == "Which, then?"
    assert read_task("arithmetic", 3, 1).questions == tuple(generated("arithmetic", 3, 1))


def test_a_sample_is_drawn_by_the_seed_and_grows(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": n}) for n in range(50)), encoding="utf-8")
    few, many = (read_task(str(file), n, 3, sample=True).questions for n in (5, 20))
    assert many[:5] == few
    assert [q.id for q in few] != [q.id for q in read_task(str(file), 5, 4, sample=True).questions]
    assert all(q.id == str(int(q.answer) + 1) for q in many)  # an id says where it stands, drawn or not


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a", "answer": "b"}\n{', ":2: not a line of JSON"),
        ('{"question": "a", "answer": "b", "id": "1"}\n{"question": "c", "answer": "d", "id": "1"}', "have the id"),
        ('{"question": "a", "answer": "E", "A": "1", "B": "2"}', "none of the letters AB"),
        ('{"question": " ", "answer": "b"}', "not empty"),
        ('{"question": "a", "answer": "b", "kind": "choice"}', "needs its choices"),
    ],
)
def test_what_is_wrong_with_a_set_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=message):
        read_task(str(file), None, 0)


def test_sets_that_are_not_there() -> None:
    with pytest.raises(SpecError, match="built-in sets"):
        read_task("no/such.jsonl", None, 0)


def test_the_hubs_sets_come_through_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, name: str | None, split: str) -> list[dict[str, str]]:
        asked.append((path, name, split))
        if path == "gone":
            raise ConnectionError("no network")
        return [{"question": "1+1?", "answer": "So 1+1 = <<1+1=2>>2\n#### 2"}] * 3

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = read_task("hf:openai/gsm8k:main:train", 2, 0)
    assert (task.name, len(task.questions), task.questions[1].answer) == ("gsm8k", 2, "2")
    assert asked == [("openai/gsm8k", "main", "train")]
    with pytest.raises(SpecError, match="no network"):
        read_task("hf:gone", None, 0)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpecError, match=r"modelnet-gateway\[datasets\]"):
        read_task("hf:openai/gsm8k", None, 0)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("42", "number"), ("1,072", "number"), ("-3/91", "number"), ("0", "number"), ("2*x + 1", "expression"),
        ("-73, 0, 184", "expression"), ("11*sqrt(3)", "expression"), ("\\frac{1}{x}", "expression"), ("Paris", "text"),
        ("New York", "text"), ("北京", "text"), ("3/0", "expression"), ("x", "text"),
    ],
)  # fmt: skip
def test_an_answers_kind_shows(answer: str, kind: str) -> None:
    assert kind_of(answer) == kind


def test_separators_of_lines_in_a_question_do_not_end_its_line(tmp_path: Path) -> None:
    """JSON has no need to escape them, and splitlines takes them for ends."""
    asked = tuple(Question(f"q{n}", f"a{mark}b?", "1", "number") for n, mark in enumerate("\u2028\u2029\x85"))
    what = Spec((Task("t", "t", asked),), make_paths((), (), ("a",)), Settings())
    write_run(tmp_path, what)
    assert tuple(read_run(tmp_path).questions["t"].values()) == asked
    write_run(tmp_path, what)


def test_answers_of_other_models_do_not_belong_into_one_run(tmp_path: Path) -> None:
    def meant(**means: str) -> Spec:
        notes = {
            "means": {name.replace("_", " "): value for name, value in means.items()},
            "sittings": [{"concurrency": 1}],
        }
        return replace(spec(), notes=notes)

    with open_store(tmp_path) as store:
        write_run(tmp_path, meant(model_a="1", model_b="1", prompt_set_paper="x"), store.answers)
        write_run(
            tmp_path, meant(model_a="2", model_b="1", prompt_set_paper="y"), store.answers
        )  # nothing is answered yet
        store.append(record_of(spec(), 0))
        for other in ({"model_a": "3"}, {"prompt_set_paper": "z"}):
            with pytest.raises(SpecError, match="has changed since"):
                write_run(tmp_path, meant(**other), store.answers)
        write_run(tmp_path, meant(model_a="2", model_b="9"), store.answers)  # which has answered nothing
    notes = read_run(tmp_path).notes
    assert notes["means"] == {"model a": "2", "model b": "9", "prompt set paper": "y"}
    assert len(notes["sittings"]) == 3


def test_choices_come_in_three_forms() -> None:
    base = {"question": "Which?"}
    letters = question_from({**base, "A": "one", "B": "two", "C": "three", "answer": "c"})
    listed = question_from({**base, "choices": ["one", "two", "three"], "answer": 2})
    held = question_from(
        {**base, "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]}, "answer": "three"}
    )
    assert letters.answer == listed.answer == held.answer == "C"
    assert letters.text == listed.text == held.text


def test_a_torn_line_is_cut_and_all_else_stays(tmp_path: Path) -> None:
    what = spec()
    with open_store(tmp_path) as store:
        store.append(record_of(what, 0, text="中文 \n line"))
        store.append(record_of(what, 1))
    file = tmp_path / ANSWERS
    whole = file.read_bytes()
    for torn in (b'{"key', b"x" * 200_000, '{"text":"中'.encode()[:-1]):
        file.write_bytes(whole + torn)
        assert len(read_answers(file).by_key) == 2
        with open_store(tmp_path) as store:
            assert store.cut == len(torn)
            assert len(store.answers.by_key) == 2
        assert file.read_bytes() == whole
    file.write_bytes(b"{")
    with open_store(tmp_path) as store:
        store.append(record_of(what, 2))
    assert len(read_answers(file).by_key) == 1


def test_a_damaged_line_is_named_and_nothing_is_thrown_away(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(record_of(spec(), 0))
    file = tmp_path / ANSWERS
    damaged = b"nonsense\n" + file.read_bytes()
    file.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"answers\.jsonl:1"), open_store(tmp_path):
        pass
    assert file.read_bytes() == damaged


def test_two_runs_do_not_write_into_one_directory(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(StoreError, match="another run"), open_store(tmp_path):
        pass
    with open_store(tmp_path):
        pass


def test_a_run_grows_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    write_run(tmp_path, spec(2, ("a",)))
    write_run(tmp_path, spec(3, ("b",)))
    write_run(tmp_path, spec(1, ("a",)))
    found = read_run(tmp_path)
    assert [path.wiring for path in found.paths] == ["a", "b"]
    assert len(found.tasks["sums"]) == 3
    with pytest.raises(SpecError, match="seed 0, now 1"):
        write_run(tmp_path, spec(seed=1))
    other = Task("sums", "", (replace(spec().tasks[0].questions[0], text="another one?"),))
    with pytest.raises(SpecError, match="was another one before"):
        write_run(tmp_path, replace(spec(), tasks=(other,)))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match="not a run"):
        read_run(tmp_path)


def test_the_order_is_by_question_shuffled_and_the_same_every_time() -> None:
    what = spec(20, ("a", "b", "c", "d"))
    order = [(job.question.id, job.wiring) for job in jobs(what)]
    assert order == [(job.question.id, job.wiring) for job in jobs(what)]
    ids = [q for q, _ in order]
    assert ids == [q.id for q in what.tasks[0].questions for _ in range(4)]
    assert len({tuple(w for q, w in order if q == question) for question in dict.fromkeys(ids)}) > 5


@pytest.mark.skipif(not available(), reason="math-verify is not installed")
def test_an_answer_that_takes_for_ever_does_not() -> None:
    with Checker(seconds=2) as checker:
        assert checker.equal("2*x", "x + x")
        began = time.monotonic()
        assert not checker.equal("x**2 + 1", "(x+1)**5000")
        assert time.monotonic() - began < 10
        assert checker.timeouts == 1
        assert checker.equal("x**2 - 1", "(x-1)(x+1)")
        assert not checker.equal("x", "__import__('os').system('true')")
        process = checker._process
        assert process is not None
        process.kill()  # died by itself
        process.wait()
        assert checker.equal("x**2", "x \\cdot x")


@pytest.mark.parametrize(
    ("said", "right"),
    [("RIGHT", True), ("wrong.", False), ("It is not WRONG: RIGHT", True), ("maybe", False), (None, None)],
)
def test_a_judges_word(said: str | None, right: bool | None) -> None:
    assert said_right(said) is right


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def asked(handler: Handler, tmp_path: Path, count: int = 2, **options: Any) -> tuple[Any, list[Record]]:
    """A run against a server whose chat route is `handler`."""

    async def models(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    app.router.add_get("/v1/models", models)
    server = web.AppRunner(app)
    await server.setup()
    sock = bind("127.0.0.1", 0)
    await web.SockSite(server, sock).start()
    try:
        async with open_client(url(sock), "secret") as client:
            with open_store(tmp_path) as store:
                with anyio.fail_after(20):
                    state = await run(client, spec(count, ("a",)), store, **options)
                return state, list(store.answers.by_key.values())
    finally:
        await server.cleanup()


def stream(*events: str) -> web.Response:
    return web.Response(
        text="".join(f"{'' if event[0] == ':' else 'data: '}{event}\n\n" for event in events),
        content_type="text/event-stream",
    )


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> str:
    delta = {} if content is None else {"content": content}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BACKOFF_SECONDS", 0.001)


@pytest.mark.anyio
async def test_any_server_of_the_api_can_be_asked(tmp_path: Path) -> None:
    bodies: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append((await request.json(), request.headers["Authorization"]))
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        return stream(
            ": comment",
            chunk("####"),
            chunk(" 7"),
            chunk(finish="length"),
            json.dumps({"choices": [], "usage": usage}),
            "[DONE]",
        )

    state, found = await asked(handler, tmp_path, count=1)
    assert (state.done, state.failed) == (1, 0)
    assert (found[0].text, found[0].finish_reason, found[0].prompt_tokens, found[0].stages) == (
        "#### 7",
        "length",
        5,
        (),
    )
    body, key = bodies[0]
    assert key == "Bearer secret"
    assert body["modelnet"] == {"stages": True, "prompts": "paper"}
    assert (body["temperature"], body["max_tokens"], body["seed"], body["stream"]) == (0.0, 400, 0, True)


@pytest.mark.anyio
async def test_a_refusal_is_an_answer_to_be_judged(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        said = json.dumps({"choices": [{"index": 0, "delta": {"refusal": "I won't."}, "finish_reason": None}]})
        return stream(said, chunk(finish="stop"), "[DONE]")

    state, found = await asked(handler, tmp_path, count=1)
    assert (state.done, found[0].text) == (1, "I won't.")


@pytest.mark.anyio
async def test_what_may_pass_is_asked_again_and_what_may_not_is_kept_as_a_failure(tmp_path: Path) -> None:
    replies = [
        web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "0"}),
        web.json_response({"error": {"message": "full", "code": None}}, status=503),
        stream(chunk("cut")),  # no [DONE]: the connection was lost
        stream(chunk("#### 1"), chunk(finish="stop"), "[DONE]"),
        web.json_response({"error": {"message": "too slow"}}, status=504),
    ]

    async def handler(_: web.Request) -> web.StreamResponse:
        return replies.pop(0)

    state, found = await asked(handler, tmp_path)
    assert (state.done, state.failed) == (1, 1)
    assert [record.error for record in found] == [None, "504: too slow"]
    assert found[0].text == "#### 1"


@pytest.mark.anyio
async def test_an_error_in_the_stream_and_a_broken_one_are_failures(tmp_path: Path) -> None:
    replies = [stream(chunk("half"), json.dumps({"error": {"message": "model died"}})), stream("{nonsense")]

    async def handler(_: web.Request) -> web.StreamResponse:
        return replies.pop(0)

    _, found = await asked(handler, tmp_path)
    assert [record.text for record in found] == ["", ""]
    assert found[0].error == "model died"
    assert "no JSON" in (found[1].error or "")


@pytest.mark.anyio
async def test_a_question_that_only_loses_connections_is_a_failure_not_the_end(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        text = (await request.json())["messages"][0]["content"]
        return stream(chunk("x")) if text == first else stream(chunk("#### 1"), "[DONE]")

    first = spec(2).tasks[0].questions[0].text
    state, found = await asked(handler, tmp_path)
    assert (state.done, state.failed) == (1, 1)
    assert "lost 5 times" in (found[0].error or "")


@pytest.mark.anyio
async def test_a_gateway_that_refuses_the_key_or_is_gone_ends_the_sitting(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no such key"}}, status=401)

    with pytest.raises(GatewayGone, match="no such key"):
        await asked(handler, tmp_path)
    async with open_client("http://127.0.0.1:9", None) as client:
        with open_store(tmp_path / "b") as store, pytest.raises(GatewayGone):
            await run(client, spec(), store)
        assert not store.answers.by_key


@pytest.mark.anyio
async def test_a_time_budget_lets_what_runs_finish(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        await anyio.sleep(0.15)
        return stream(chunk("#### 1"), "[DONE]")

    state, found = await asked(handler, tmp_path, count=30, concurrency=2, budget=Budget(seconds=0.3))
    assert state.why == "time"
    assert 2 <= len(found) <= 8
    assert all(record.error is None for record in found)

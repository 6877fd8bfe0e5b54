// The official client for JavaScript, with its helper `.stream()` and its runner of tools.
import assert from "node:assert/strict";
import OpenAI from "openai";
import {
  HELLO, HELLO_SAID, PARAMETERS, PERSON, PERSON_SCHEMA, SCRIPTED, WEATHER, WIRING, functions, looped, main, needsSense, person, said,
} from "./checks.mjs";

const client = new OpenAI({ maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: HELLO }];
const tools = Object.entries(functions).map(([name, run]) => ({
  type: "function",
  function: { name, description: name, parameters: PARAMETERS[name], parse: JSON.parse, function: run },
}));

await main({
  async chat() {
    const answer = await client.chat.completions.create({ model: WIRING, messages, max_tokens: 40 });
    said(answer.choices[0].message.content, HELLO_SAID);
    assert.equal(answer.model, WIRING);
    assert.ok(answer._request_id);
  },
  async streaming() {
    let text = "";
    const chunks = await client.chat.completions.create({ model: WIRING, messages, max_tokens: 40, stream: true });
    for await (const chunk of chunks) text += chunk.choices[0]?.delta?.content ?? "";
    said(text, HELLO_SAID);
  },
  async stream_helper() {
    const runner = client.chat.completions.stream({ model: WIRING, messages, max_tokens: 40, n: 2 });
    let text = "";
    runner.on("content", (delta) => (text += delta));
    const final = await runner.finalChatCompletion();
    assert.equal(final.choices.length, 2);
    for (const choice of final.choices) said(choice.message.content, HELLO_SAID);
    assert.ok(text);
  },
  async stream_usage() {
    const runner = client.chat.completions.stream({ model: WIRING, messages, max_tokens: 40, stream_options: { include_usage: true } });
    said(await runner.finalContent(), HELLO_SAID);
    assert.ok((await runner.totalUsage()).total_tokens > 0);
  },
  async tool_loop() {
    needsSense();
    const runner = client.chat.completions.runTools({ model: WIRING, messages: [{ role: "user", content: WEATHER }], tools });
    looped(await runner.finalContent());
  },
  async streamed_tool_loop() {
    needsSense();
    const runner = client.chat.completions.runTools({ model: WIRING, messages: [{ role: "user", content: WEATHER }], tools, stream: true });
    looped(await runner.finalContent());
  },
  async parse() {
    const format = { type: "json_schema", json_schema: { name: "person", strict: true, schema: PERSON_SCHEMA } };
    const ask = [{ role: "user", content: PERSON }];
    const answer = await client.chat.completions.create({ model: WIRING, messages: ask, response_format: format, max_tokens: 200 });
    person(JSON.parse(answer.choices[0].message.content));
    const runner = client.chat.completions.stream({ model: WIRING, messages: ask, response_format: format, max_tokens: 200 });
    person(JSON.parse(await runner.finalContent()));
  },
  async completions() {
    const answer = await client.completions.create({ model: WIRING, prompt: HELLO, max_tokens: 40 });
    assert.ok(answer.choices[0].text);
  },
  async responses() {
    said((await client.responses.create({ model: WIRING, input: HELLO })).output_text, HELLO_SAID);
    const stream = client.responses.stream({ model: WIRING, input: HELLO });
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = await stream.finalResponse();
    said(text, HELLO_SAID);
    assert.equal(final.output[0].content[0].text, text);
  },
  async models() {
    assert.equal((await client.models.retrieve(WIRING)).id, WIRING);
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes("a") || !SCRIPTED);
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      return true;
    });
    await assert.rejects(new OpenAI({ apiKey: "sk-wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
  },
  async leaving() {
    const chunks = await client.chat.completions.create({ model: WIRING, messages, stream: true });
    for await (const chunk of chunks) if (chunk.choices[0]?.delta?.content) break;
    assert.ok(chunks.controller.signal.aborted);
  },
});

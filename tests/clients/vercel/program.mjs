// Vercel's AI SDK, by its provider for servers like OpenAI's.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { BASE_URL, HELLO, HELLO_SAID, KEY, PERSON, WEATHER, WIRING, functions, looped, main, needsSense, person, said } from "./checks.mjs";

const provider = createOpenAICompatible({
  name: "net", baseURL: BASE_URL, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider(WIRING);
const tools = {
  get_weather: tool({ inputSchema: z.object({ city: z.string() }), execute: functions.get_weather }),
  to_fahrenheit: tool({ inputSchema: z.object({ celsius: z.number().int() }), execute: functions.to_fahrenheit }),
};
const schema = z.object({ name: z.string(), age: z.number().int() });
const common = { model, maxRetries: 0, maxOutputTokens: 200 };

await main({
  async chat() {
    const { text, usage } = await generateText({ ...common, prompt: HELLO });
    said(text, HELLO_SAID);
    assert.ok(usage.outputTokens > 0);
  },
  async streaming() {
    const result = streamText({ ...common, prompt: HELLO });
    let text = "";
    for await (const part of result.textStream) text += part;
    said(text, HELLO_SAID);
    assert.ok((await result.usage).outputTokens > 0);
  },
  async tool_loop() {
    needsSense();
    looped((await generateText({ ...common, prompt: WEATHER, tools, stopWhen: stepCountIs(5) })).text);
  },
  async streamed_tool_loop() {
    needsSense();
    const result = streamText({ ...common, prompt: WEATHER, tools, stopWhen: stepCountIs(5) });
    await result.consumeStream();
    looped(await result.text);
  },
  async structured() {
    person((await generateObject({ ...common, prompt: PERSON, schema })).object);
    const { partialObjectStream, object } = streamObject({ ...common, prompt: PERSON, schema });
    for await (const part of partialObjectStream) assert.ok(part);
    person(await object);
  },
  async structured_output() {
    person((await generateText({ ...common, prompt: PERSON, output: Output.object({ schema }) })).output);
  },
  async embeddings_are_refused_clearly() {
    await assert.rejects(
      provider.textEmbeddingModel(WIRING).doEmbed({ values: ["one"] }), (error) => (assert.equal(error.statusCode, 404), true),
    );
  },
});

// What every client's program is told, and how it tells what it saw; see checks.py.
import assert from "node:assert/strict";

export const { OPENAI_BASE_URL: BASE_URL, OPENAI_API_KEY: KEY, WIRING } = process.env;
export const SCRIPTED = (process.env.SCRIPTED ?? "1") === "1";
export const HELLO = "Say hello.";
export const HELLO_SAID = "Hello from all of us. 是的 😀 naïve";
export const WEATHER = "What is the weather in Paris, in Fahrenheit?";
export const WEATHER_SAID = "It is 69.8 °F in Paris. 好的 👍";
export const PERSON = "Describe Ada as JSON.";

export const PERSON_SCHEMA = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};

export const called = [];
export const functions = {
  get_weather: ({ city }) => (called.push(["get_weather", city]), "21 degrees"),
  to_fahrenheit: ({ celsius }) => (called.push(["to_fahrenheit", celsius]), `${(celsius * 9) / 5 + 32}`),
};
export const PARAMETERS = {
  get_weather: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
  to_fahrenheit: { type: "object", properties: { celsius: { type: "integer" } }, required: ["celsius"], additionalProperties: false },
};

export function said(text, expected) {
  assert.equal(typeof text, "string");
  assert.ok(text);
  if (SCRIPTED) assert.equal(text, expected);
}

export function person({ name, age }) {
  assert.equal(typeof name, "string");
  assert.equal(typeof age, "number");
  if (SCRIPTED) assert.deepEqual([name, age], ["Ada", 36]);
}

export function looped(text) {
  said(text, WEATHER_SAID);
  assert.deepEqual(called, [["get_weather", "Paris"], ["to_fahrenheit", 21]]);
}

class Skip extends Error {}

export function needsSense() {
  if (!SCRIPTED) throw new Skip("a small model need not do that");
}

export async function main(checks) {
  for (const [name, check] of Object.entries(checks)) {
    called.length = 0;
    const began = Date.now();
    let [outcome, why] = ["passed", ""];
    try {
      await check();
    } catch (error) {
      [outcome, why] = error instanceof Skip ? ["skipped", error.message] : ["failed", `${error?.stack ?? error}`.split("\n").filter((line) => !/node_modules|node:internal/.test(line)).join("\n")];
    }
    console.log(JSON.stringify({ check: name, outcome, why, seconds: (Date.now() - began) / 1000 }));
  }
}

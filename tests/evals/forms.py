"""Do answers of a group keep to their JSON schema? Real models of three tokenizers, judged by another library than the one that holds them.

    make eval-forms                              some quarter of an hour on two cores; goes on where it was interrupted

Every schema of data/forms.yaml is asked for several times, once greedy and then at temperatures up to 1.3. An answer is *valid* if it came
to its end by itself, is JSON, and `jsonschema` accepts it, formats included. Exit code 1 if any is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import yaml
from asking import DATA, ask_all, gateway, say, show, table, write

TEMPERATURES = (0.0, 0.5, 0.5, 0.8, 0.8, 1.0, 1.0, 1.3)
"""Of the answers to one schema; the seed is the place in this row."""


def forms() -> dict[str, dict[str, Any]]:
    """Name → question and schema."""
    read: dict[str, dict[str, Any]] = yaml.safe_load((DATA / "forms.yaml").read_text(encoding="utf-8"))
    return read


def body(wiring: str, form: Mapping[str, Any], temperature: float, seed: int, max_tokens: int) -> dict[str, Any]:
    """A request for one answer of that form."""
    return {
        "model": wiring,
        "messages": [{"role": "user", "content": f"{form['question']} Answer in JSON."}],
        "temperature": temperature,
        "seed": seed,
        "max_tokens": max_tokens,
        "response_format": {"type": "json_schema", "json_schema": {"name": "form", "schema": form["schema"]}},
    }


def wrong(answer: Mapping[str, Any], schema: Any) -> str:
    """What is wrong with an answer; "" if it is valid."""
    choice = answer["choices"][0]
    if choice["finish_reason"] != "stop":
        return f"ended by {choice['finish_reason']}"
    try:
        value = json.loads(choice["message"]["content"], parse_float=Decimal)
    except ValueError as error:
        return f"no JSON: {error}"
    exact = json.loads(json.dumps(schema), parse_float=Decimal)  # 0.29 is a multiple of 0.01, but not in floating point
    checker = jsonschema.Draft202012Validator(exact, format_checker=jsonschema.FormatChecker())
    return "; ".join(error.message for error in checker.iter_errors(value))


async def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One line per answer."""
    asked = [
        (name, form, temperature, seed)
        for seed, temperature in enumerate(TEMPERATURES[: args.each])
        for name, form in forms().items()
    ]
    bodies = [body(args.wiring, form, t, seed, args.max_tokens) for _, form, t, seed in asked]

    def tell(number: int, answer: Mapping[str, Any]) -> None:
        name, form, temperature, _ = asked[number]
        problem = wrong(answer, form["schema"])
        text = answer["choices"][0]["message"]["content"]
        say(f"{number + 1}/{len(asked)} {name} at {temperature}: {problem or 'valid'}: {text!r}")

    async with gateway(args.config) as (_, client):
        answers = await ask_all(client, bodies, args.concurrency, args.out.with_suffix(".jsonl"), tell)
    return [
        {
            "form": name,
            "temperature": temperature,
            "seed": seed,
            "problem": wrong(answer, form["schema"]),
            "text": answer["choices"][0]["message"]["content"],
            "fusion": answer["modelnet"]["stages"][-1]["fusion"],
        }
        for (name, form, temperature, seed), answer in zip(asked, answers, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--wiring", default="qwen|smol|gemma")
    parser.add_argument("--each", type=int, default=len(TEMPERATURES), help="answers per schema")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(".bench/forms.json"))
    args = parser.parse_args()
    began = time.perf_counter()
    lines = anyio.run(run, args)
    write(args.out, vars(args), lines)
    rows = []
    for temperature in sorted({line["temperature"] for line in lines}):
        those = [line for line in lines if line["temperature"] == temperature]
        pieces = Counter[str]()
        for line in those:
            pieces.update({key: line["fusion"][key] for key in ("pieces", "drift", "uncertified")})
        valid = sum(not line["problem"] for line in those)
        different = len({(line["form"], line["text"]) for line in those})
        rows.append([temperature, f"{valid} of {len(those)}", different, pieces["pieces"], pieces["drift"]])
    show(table(["temperature", "valid", "different answers", "pieces", "repairs"], rows))
    bad = [line for line in lines if line["problem"]]
    for line in bad:
        show(f"{line['form']} at {line['temperature']}: {line['problem']}: {line['text']!r}")
    show(f"\n{len(lines) - len(bad)} of {len(lines)} valid; {time.perf_counter() - began:.0f} s; written to {args.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

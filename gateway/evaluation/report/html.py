"""A report as one HTML file that needs nothing else: no network, no fonts, no libraries."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import Any

from gateway.evaluation.report.blocks import Block, Picture, Section, Table, Text


def page(title: str, subtitle: str, sections: Sequence[Section], answers: dict[str, Any]) -> str:
    """answers: see `questions.data`."""
    here = files("gateway.evaluation.report")
    style = (here / "page.css").read_text(encoding="utf-8")
    script = (here / "page.js").read_text(encoding="utf-8")
    body = "".join(_section(section, index) for index, section in enumerate(sections))
    links = "".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    # In a script element only "</" and "<!--" end or hide what follows: no "<" is left in the data.
    data = json.dumps(answers, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}<a href="#answers">Question by question</a></nav></header>'
        f"<main>{body}"
        '<section id="answers"><h2>Question by question</h2>'
        "<p>Every square is one answer: choose it to see what each stage wrote.</p>"
        '<div id="browser"><noscript>This part needs JavaScript.</noscript></div></section></main>'
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n'
    )


def _section(section: Section, index: int) -> str:
    parts = []
    for pictured, blocks in groupby(section.blocks, lambda block: isinstance(block, Picture)):
        inner = "".join(_block(block) for block in blocks)
        parts.append(f"<div class=figures>{inner}</div>" if pictured else inner)
    return f'<section id="s{index}"><h2>{escape(section.title)}</h2>{"".join(parts)}</section>'


def _block(block: Block) -> str:
    if isinstance(block, Text):
        kind = ' class="strong"' if block.strong else ""
        # A number stays beside its unit.
        text = re.sub(r"(?<=\d) (?=(?:%|s|ms|points)(?!\w))", "\u00a0", block.text)
        return f"<p{kind}>{escape(text)}</p>"
    if isinstance(block, Picture):
        return f"<figure>{block.svg}<figcaption>{escape(block.caption)}</figcaption></figure>"
    return _table(block)


def _table(table: Table) -> str:
    head = "".join(f'<th{_side(i, table)} scope="col">{escape(name)}</th>' for i, name in enumerate(table.columns))
    rows = "".join(
        f"<tr{' class=theirs' if i in table.emphasis else ''}>"
        + "".join(f"<td{_side(j, table)}>{escape(value)}</td>" for j, value in enumerate(row))
        + "</tr>"
        for i, row in enumerate(table.rows)
    )
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return (
        f"<h3>{escape(table.title)}</h3><div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _side(column: int, table: Table) -> str:
    return " class=t" if column < table.texts else ""

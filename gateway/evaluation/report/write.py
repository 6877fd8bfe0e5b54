"""A report's files in one directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gateway.evaluation.errors import StoreError
from gateway.evaluation.report import as_json, html, markdown, questions
from gateway.evaluation.report.content import Content
from gateway.evaluation.report.sections import sections

FORMATS = ("html", "md", "json", "tex")


def write(content: Content, directory: Path, formats: Sequence[str] = FORMATS, texts: bool = True) -> list[Path]:
    """report.html, report.md (its plots in `plots/`), report.json, report.tex. texts: the HTML page carries questions and answers.

    Raises StoreError.
    """
    title = "Which wiring is worth it"
    asked = sum(len(ids) for ids in content.run.tasks.values())
    subtitle = f"{len(content.grid.wirings)} wirings, {asked} questions: {', '.join(content.run.tasks)}. Made {content.made[:10]}."
    parts = sections(content)
    files: dict[str, str] = {}
    if "html" in formats:
        files["report.html"] = html.page(title, subtitle, parts, questions.data(content, texts))
    if "md" in formats:
        files["report.md"] = markdown.markdown(title, parts, "plots")
        files |= {f"plots/{name}.svg": svg + "\n" for name, svg in markdown.pictures_of(parts).items()}
    if "json" in formats:
        files["report.json"] = (
            json.dumps(as_json.value_of(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        )
    if "tex" in formats:
        files["report.tex"] = markdown.latex(title, parts)
    written = []
    try:
        for name, text in files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            if file.parent == directory:
                written.append(file)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror or error}") from error
    return written

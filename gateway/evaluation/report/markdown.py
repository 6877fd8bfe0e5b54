"""A report as Markdown (plots as files beside it), and as LaTeX tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.evaluation.report.blocks import Picture, Section, Table, Text


def markdown(title: str, sections: Sequence[Section], pictures: str | None) -> str:
    """pictures: the folder of the plots' files, as the page links to it; None leaves them out."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(f"**{_inline(block.text)}**" if block.strong else _inline(block.text))
            elif isinstance(block, Table):
                parts += [f"### {block.title}", _table(block), *([_inline(block.note)] if block.note else [])]
            elif pictures is not None:
                parts.append(f"![{block.caption}]({pictures}/{block.name}.svg)")
    return "\n\n".join(parts) + "\n"


def pictures_of(sections: Sequence[Section]) -> dict[str, str]:
    """name → SVG text."""
    return {b.name: b.svg for s in sections for b in s.blocks if isinstance(b, Picture)}


def _table(table: Table) -> str:
    head = "| " + " | ".join(_cell(column) for column in table.columns) + " |"
    rule = "|" + "|".join(" --- " if i < table.texts else " ---: " for i in range(len(table.columns))) + "|"
    rows = [
        "| "
        + " | ".join(f"*{_cell(value)}*" if i in table.emphasis and value else _cell(value) for value in row)
        + " |"
        for i, row in enumerate(table.rows)
    ]
    return "\n".join([head, rule, *rows])


def _cell(text: str) -> str:
    return _inline(text).replace("|", "\\|").replace("\n", " ")


def _inline(text: str) -> str:
    return re.sub(r"([<*_`])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "σ": r"$\sigma$", "×": r"$\times$", "≈": r"$\approx$",
}  # fmt: skip


def latex(title: str, sections: Sequence[Section]) -> str:
    """Every table as a `table` with booktabs' rules; needs \\usepackage{booktabs}. Chinese text needs xeCJK or ctex."""
    tables = [_latex_table(block) for section in sections for block in section.blocks if isinstance(block, Table)]
    return "\n\n".join([f"% {title}", "% \\usepackage{booktabs,graphicx}", *tables]) + "\n"


def _latex_table(table: Table) -> str:
    columns = "l" * table.texts + "r" * (len(table.columns) - table.texts)
    lines = [
        "\\begin{table}", "\\centering", f"\\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{{columns}}}", "\\toprule",
        " & ".join(_tex(column) for column in table.columns) + r" \\", "\\midrule",
    ]  # fmt: skip
    for i, row in enumerate(table.rows):
        cells = [f"\\textit{{{_tex(value)}}}" if i in table.emphasis else _tex(value) for value in row]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}"])


def _tex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text).replace("--", "-{}-")  # which would become a dash

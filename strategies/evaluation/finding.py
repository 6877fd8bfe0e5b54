"""Finds the answer in what a model wrote.

A text may mark its answer (`#### 7`, `\\boxed{7}`, "the answer is 7", 答案：7); the last mark counts, since models correct themselves.
Without a mark the last number, the one letter that is spoken for, or the last line is taken, and `how` says so. None means that
the text gives no answer: that is reported apart from a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from strategies.evaluation.numbers import plain
from strategies.evaluation.questions import LETTERS, AnswerKind

How = Literal["marked", "last"]

# Not \w around numbers: to that Chinese characters are letters.
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-+]?\s?\$?\s?[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?![A-Za-z0-9_]))?"
    r"(?:\s*/\s*\d+(?:,\d{3})*(?!\.?\d))?(?:\s?%)?|(?<![A-Za-z0-9_.])[-+]?\.\d+(?:\s?%)?"
)
_MIXED = re.compile(r"(?<![\d.,/])(-?)(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])")
_MARK = re.compile(
    r"####+|(?:final\s+|correct\s+|right\s+)?\b(?:answer|result)\b(?:\s+to\s+[^\n.:]{1,60}?)?\s*(?:\*\*|__)?\s*(?:is\b|are\b|would\s+be\b|should\s+be\b|:|=|：)+"
    r"|(?:最终)?(?:答案|结果)\s*(?:\*\*)?\s*(?:应该是|应当是|应为|就是|是|为|：|:|=)+|(?:^|\n)\s*答\s*[:：]",
    re.IGNORECASE,
)
_NEW_TURN = re.compile(
    r"\n\s*(?:\*\*|#{1,3}\s)?(?:Question|Q|Human|User|Problem|Exercise|Example|问题|用户|题目|例题)\s*\d*\s*[:：.]|<\|im_start\|>|<start_of_turn>|\n\s*###\s*(?:Instruction|Question)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"\n|(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s+[A-Z]|\s*$)|[。；;]|,\s+(?=because|since|as\b|not\b|which|so\b|where)|，(?=因为|所以|其中)"
)
_LIST_MARK = re.compile(
    r"(?m)^\s*(?:[-*]\s+)?(?:\*\*)?(?:\d{1,2}[.)]\s|(?:Step|步骤|第)\s*\d{1,2}\s*(?:步)?\s*[:：.)]?)"
)
_EQUALS = re.compile(r"[=≈→⇒]|[-=]>|\bequals\b|等于", re.IGNORECASE)
_OPERATION = re.compile(r"\d[)\]]?\s*(?:[-+*×÷^]|\*\*|x(?=\s*\d)|/(?=\s*\())\s*[-+]?[($\[]*\s*\.?\d")
_SENTENCE = re.compile(r"(?<=\D)\.\s|(?<=\d)\.\s+(?=[A-Z])|[。；;!?！？]")
_WORDS = 3  # that a formula has at most
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan asin acos atan log exp sqrt cbrt abs max min mod".split()
)
_ENDS = re.compile(r"[\s*)\]）】\"”]*(?:[.。,，;；:：]|$)|[^\S\n]*\n")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


@dataclass(frozen=True, slots=True)
class Found:
    """The answer as it stands there (numbers without commas and signs of currency), and how it was found."""

    value: str
    how: How


def find(text: str, kind: AnswerKind, choices: Sequence[str] = (), *, cut: bool = False) -> Found | None:
    """The answer that a text gives, None if it gives none. choices: what the letters of a multiple choice stand for. cut: the text was cut
    short, so what stands at its very end may be a part of an answer that stands before it as a whole ("…is 50. …is 5")."""
    text = said(text)
    if cut and kind != "choice":
        text = _without_torn_mark(text)
    if not text.strip():
        return None
    if kind == "number":
        return _number(text)
    if kind == "choice":
        return _choice(text, choices, cut)
    if kind == "expression":
        return _expression(text)
    return _text(text)


def said(text: str) -> str:
    """A text without its reasoning block, and without a next question that a model went on to ask itself."""
    if "</think>" in text:
        text = text.rsplit("</think>", 1)[1]
    elif "<think>" in text:
        text = text.split("<think>", 1)[0]
    turn = _NEW_TURN.search(text)
    if turn is not None and (_MARK.search(text[: turn.start()]) or "\\boxed" in text[: turn.start()]):
        return text[: turn.start()]
    return text


def boxed(text: str) -> list[str]:
    """What stands in `\\boxed{…}` and `\\fbox{…}`, braces balanced; an unclosed one goes on to the end of its line."""
    found = []
    for mark in re.finditer(r"\\f?boxed\s*\{", text):
        depth, end = 1, mark.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inner = text[mark.end() : end - 1] if not depth else text[mark.end() :].split("\n", 1)[0]
        found.append(inner.strip())
    return found


def _marked(text: str) -> list[tuple[int, str]]:
    """(position, what follows) of every mark, by position; a boxed answer stands for itself."""
    found = [(mark.start(), text[mark.end() :]) for mark in _MARK.finditer(text)]
    position = 0
    for inner in boxed(text):
        position = text.find("boxed", position) + 1
        found.append((position, inner))
    return sorted(found, key=lambda pair: pair[0])


def _without_torn_mark(text: str) -> str:
    """The text up to its last mark if that one's answer goes on to the text's end and there is an earlier one, or it was still being
    worked out ("#### 5 * 8 = 40 = …")."""
    marks = _marked(text)
    if not marks:
        return text
    position, rest = marks[-1]
    clause = plain(rest).lstrip(" *_:：\n\t")
    torn = text.endswith(rest) and len(_CLAUSE.split(clause, maxsplit=1)) == 1
    return text[:position] if torn and (len(marks) > 1 or len(_EQUALS.findall(clause)) > 1) else text


def _number(text: str) -> Found | None:
    for mark, rest in reversed(_marked(text)):
        clause = _CLAUSE.split(plain(rest).lstrip(" *_:：\n\t"), maxsplit=1)[0]
        if re.match(r"not\b|不", clause):  # "the answer is not 16 but 18"
            continue
        if text[mark : mark + 3].strip().startswith("答") and not text[mark : mark + 3].strip().startswith("答案"):
            clause = (_numbers(clause) or [""])[-1]  # 答：a whole sentence, what is asked for at its end
        if value := _of_clause(clause) or _not_worked_out(clause):
            return Found(value, "marked")
    whole = _LIST_MARK.sub(" ", plain(text))
    for line in reversed(whole.splitlines()):
        bold = [value for part in _BOLD.findall(line) if (value := _of_clause(part))]
        if bold:
            return Found(bold[-1], "last")
        for sentence in reversed(_SENTENCE.split(line)):
            outside = re.sub(r"\([^()]*\)", " ", sentence)  # "30 minutes (0.5 hours)"
            said = outside if _numbers(outside) else sentence
            if numbers := _numbers(said):
                after = _EQUALS.split(said)[-1]
                return Found((_of_clause(after) if after != said else None) or numbers[-1], "last")
    return None


def _of_clause(clause: str) -> str | None:
    """Of "5 * 8 = 40 apples" and of "40 = 5 * 8" the 40; of "40 apples" too; nothing of "5 * 8", which nobody worked out."""
    for side in reversed(_EQUALS.split(clause)):
        if (numbers := _numbers(side)) and not _OPERATION.search(side):
            return numbers[0]
    return None


def _not_worked_out(clause: str) -> str | None:
    """Of "5 * 8" all of it: that is what stands there, and no number."""
    return clause.strip() if _OPERATION.search(clause) else None


def _numbers(text: str) -> list[str]:
    def mixed(match: re.Match[str]) -> str:
        sign, whole, top, bottom = match[1], int(match[2]), int(match[3]), int(match[4])
        return f"{sign}{whole * bottom + top}/{bottom}" if 0 < top < bottom else match[0]

    text = _MIXED.sub(mixed, text)
    return [re.sub(r"[\s,$+]", "", found) for found in NUMBER.findall(text)]


def _choice(text: str, choices: Sequence[str], cut: bool) -> Found | None:
    letters = LETTERS[: len(choices)] if choices else "ABCD"
    text = plain(text)
    one = rf"(?<![A-Za-z])([{letters}])(?![A-Za-z'’])"
    marks = (
        rf"(?:答案|正确的?(?:选项|答案)|应选择?|故选择?|选择|选项(?=\s*[是为:：])|所以选|因此选|选(?!项)|(?:correct|right|best)\s+(?:option|choice)"
        rf"|(?:option|choice)(?=\s+is\b|\s*[:：])|answer)"
        rf"\s*(?:\*\*)?\s*[】\]]?\s*(?:应该是|应当是|应为|应选|就是|是|为|选|is|:|：|=)*\s*(?:option\s+|choice\s+|letter\s+|选项\s*)?[\s*(\[（【\"“$]*"
        rf"{one}(?!\s*(?:不|错|是错|is\s+(?:not|wrong|incorrect)))"
    )
    # "选项A是错误的", "option A is wrong" speak against a letter; a mark speaks for it.
    found = [
        (m.start(), m[1])
        for m in re.finditer(marks, text, re.IGNORECASE)
        if not _against(text, m)
        and (m[1].isupper() or _ENDS.match(text, m.end()))  # "the answer is a person": an article
    ]
    found += [
        (m.start(), m[1])
        for m in re.finditer(
            rf"{one}[)\]）.】*]*\s*(?:选?项)?\s*(?:是(?:唯一)?正确|正确|is\s+(?:the\s+)?(?:correct|right|best))", text
        )
    ]
    for inner in boxed(text):
        if match := re.search(one, inner):
            found.append((text.find(inner, text.rfind("boxed{")), match[1]))
    if found:
        return Found(max(found)[1].upper(), "marked")
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if cut and len(lines) > 1 and not text.endswith("\n"):
        lines.pop()  # it may be the head of a longer one
    alone = [
        match[1].upper()
        for line in lines
        if (match := re.fullmatch(rf"[\s*(\[（【\"“]*([{letters}{letters.lower()}])[\s*)\]）】\"”.。:：,，、]*", line))
    ]
    if alone and set(alone) != {*letters}:  # lines that are nothing but a letter, and no list of them all
        return Found(alone[-1], "marked")
    headed = [
        match[1] if (match := re.match(rf"[\s*(\[（【]*([{letters}])[)\]）】.。:：、]\s*\S", line)) else ""
        for line in lines
    ]
    for letter in (headed[-1], headed[0]):
        if letter and (headed.count(letter) > 1 or not any(other not in ("", letter) for other in headed)):
            return Found(letter, "last")  # and no list of all the options
    spoken = {m[1] for m in re.finditer(one, text) if not _is_article(text, m) and not _against(text, m)}
    if len(spoken) == 1:
        return Found(spoken.pop(), "last")
    quoted = [
        letter for letter, choice in zip(letters, choices, strict=False) if len(choice) > 1 and plain(choice) in text
    ]
    return Found(quoted[0], "last") if len(quoted) == 1 else None


def _is_article(text: str, match: re.Match[str]) -> bool:
    return match[1] == "A" and bool(re.match(r"\s(?!or\b|and\b|is\b|was\b)[a-z]", text[match.end() : match.end() + 5]))


def _against(text: str, match: re.Match[str]) -> bool:
    before, after = text[max(0, match.start() - 4) : match.start()], text[match.end() : match.end() + 16]
    return bool(re.search(r"(?:不选?|排除|not)\s*$", before, re.IGNORECASE)) or bool(
        re.match(
            r"[)\]）】.*]*\s*(?:选?项)?\s*(?:是?不(?:正确|对|符合|是)|是?错误?的?|有误|(?:is|was)\s+(?:not|wrong|incorrect|false))",
            after,
            re.IGNORECASE,
        )
    )


def _expression(text: str) -> Found | None:
    for _, rest in reversed(_marked(text)):
        line = re.split(r"\n(?!\s*(?:\\\[|\$\$))", rest.lstrip(" *_:：\n\t"), maxsplit=1)[0]
        if value := _mathematics(line):
            return Found(value, "marked")
    lines = [line for line in text.strip().splitlines() if line.strip(" `*\\[]$")]
    value = _mathematics(lines[-1]) if lines else ""
    return Found(value, "last") if value else None


def _mathematics(line: str) -> str:
    """The last formula between `$`, `\\(` or `\\[`; without any, the line without the words and marks around."""
    line = line.strip().strip("`*_ ")
    spans: list[str] = [
        "".join(found)
        for found in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)(?:\\\]|$)", line, re.DOTALL)
    ]
    value = spans[-1] if spans else re.sub(r"^\s*[A-Za-z' ]{4,}(?:\bis\b|\bare\b|:)\s*", "", line)
    if inner := boxed(value):
        value = inner[-1]
    value = value.strip().strip("`").rstrip(".。,; ").strip()
    # Two words and no formula, or many words: a sentence.
    words = len([word for word in re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", value) if word not in _FUNCTIONS])
    wordy = words > _WORDS or (words > 1 and not re.search(r"[0-9=+*/^\\]", value))
    placeholder = value.lstrip("# ").casefold() == "answer"  # as instructions say it: "#### answer"
    return value if re.search(r"[0-9A-Za-z]", value) and not wordy and not placeholder else ""


def _text(text: str) -> Found | None:
    if inner := boxed(text):
        return Found(re.sub(r"\\text\{([^{}]*)\}", r"\1", inner[-1]), "marked")
    marks = _marked(text)
    rest = marks[-1][1].strip(" *_:：\n\t").split("\n", 1)[0] if marks else ""
    value = _bare(rest)
    if value:
        return Found(value, "marked")
    lines = [line for line in text.strip().splitlines() if line.strip()]
    value = _bare(lines[-1]) if lines else ""
    return Found(value, "last") if value else None


def _bare(line: str) -> str:
    return line.strip().strip("*_`\"“”'").strip().rstrip(".。").strip()

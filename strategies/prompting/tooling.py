"""What models are told about tools, where it is us who tell them. A prompt set may word any of it otherwise."""

from __future__ import annotations

from typing import Literal, get_args

ToolText = Literal["offer", "auto", "required", "named", "one", "closed"]
"""offer: what tools there are ({tools}) and how to call one. Then one of auto, required and named ({name}), which say whether to; then
one, where there may be one call only. closed: instead of all this, to whoever is not to call any ({tools})."""

TOOL_TEXTS: tuple[ToolText, ...] = get_args(ToolText)

PLACEHOLDERS: dict[ToolText, frozenset[str]] = {
    "offer": frozenset({"tools"}),
    "auto": frozenset(),
    "required": frozenset(),
    "named": frozenset({"name"}),
    "one": frozenset(),
    "closed": frozenset({"tools"}),
}

# The marks and the form of a call are those that Qwen and Hermes models know; the guide holds all others to it.
BUILT_IN: dict[tuple[ToolText, str], str] = {
    ("offer", "en"): """# Tools

You can call functions. Each line here describes one of them:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object, in exactly this form:
<tool_call>
{"name": <function-name>, "arguments": <arguments-json-object>}
</tool_call>
What it returns is then given to you between <tool_response> and </tool_response>.""",
    ("auto", "en"): "Call a function only where it helps. Where none does, or the results are there, answer directly.",
    ("required", "en"): "Your answer now must be a call.",
    ("named", "en"): "Your answer now must be a call of {name}.",
    ("one", "en"): "Make one call at most.",
    ("closed", "en"): """# Tools

There are functions that others can call. You can't call any: answer with text. Each line here describes one of them:
<tools>
{tools}
</tools>""",
    ("offer", "zh"): """# 工具

你可以调用函数。下面每一行描述一个函数：
<tools>
{tools}
</tools>

调用函数时，请严格按照以下格式写出函数名和 JSON 对象形式的参数：
<tool_call>
{"name": <function-name>, "arguments": <arguments-json-object>}
</tool_call>
函数的返回结果会放在 <tool_response> 和 </tool_response> 之间交给你。""",
    ("auto", "zh"): "只在有帮助时调用函数。不需要调用，或者已经有了结果时，请直接回答。",
    ("required", "zh"): "这一次你必须调用函数。",
    ("named", "zh"): "这一次你必须调用函数 {name}。",
    ("one", "zh"): "最多调用一次。",
    ("closed", "zh"): """# 工具

有一些函数可以由其他人调用。你不能调用它们，请用文字回答。下面每一行描述一个函数：
<tools>
{tools}
</tools>""",
}

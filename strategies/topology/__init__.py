"""The model name as a wiring.

    parse("s2p:qwen>ds|yi").topology == Serial((Model("qwen"), Parallel((Member(Model("ds")), Member(Model("yi"))))))

`ast` holds the values, `parser` reads them, `writer` writes them, `shape` says what a wiring looks like as a whole, `limits`
how large it may be, and `errors` how a wrong one is shown. Pure, and bounded in time by the limits.
"""

from strategies.topology.ast import Kind, Member, Model, Parallel, Serial, Shape, Topology, models, parallel, serial
from strategies.topology.errors import TopologyError
from strategies.topology.limits import Limits, Size, measure
from strategies.topology.parser import Parsed, check_kind, parse
from strategies.topology.shape import shape
from strategies.topology.writer import format

__all__ = [
    "Kind",
    "Limits",
    "Member",
    "Model",
    "Parallel",
    "Parsed",
    "Serial",
    "Shape",
    "Size",
    "Topology",
    "TopologyError",
    "check_kind",
    "format",
    "measure",
    "models",
    "parallel",
    "parse",
    "serial",
    "shape",
]

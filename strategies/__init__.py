"""Strategies: which models answer, in what order, and how their answers become one.

`topology` (the model name as a wiring) → `planning` (a wiring and a catalogue make a plan, or a reason why not) →
`engine` (runs a plan, yields events) with `fusion` over `vocabulary` (many next-token distributions make one).
No web, no sockets, no torch here; planning and fusion are pure.
"""

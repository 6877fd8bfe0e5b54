"""How much a key may use: requests and tokens per minute, requests at once, a budget.

The model, per key:

- *Requests* and *tokens* are token buckets: a bucket holds what a minute allows, and fills again at that rate, continuously. So
  at once at most one minute's amount goes through, and in any t seconds at most limit · (1 + t/60).
- Tokens are *held* when a request is admitted (an estimate of all its stages and members) and *charged* when it ends (what it
  spent). What is held does not drain: giving back an estimate never makes room that was not there. A request that spends more than
  its estimate is charged in full; later ones wait for that.
- Requests at once are counted; money and tokens of a budget are held and charged in the same way, but never fill again.
- A refused request is charged nothing.

`bucket` is the arithmetic, in whole numbers: exact, and the same in Python and in Lua. `local` keeps the state of one process;
`shared` keeps it in Valkey or Redis, in one atomic script (`limits.lua`), for many processes; `limiter` joins the two and decides
what happens while the server is down. `estimate` says what a plan may spend; `headers` what clients are told.
"""

from gateway.limits.limiter import Lease, Limiter, Refused
from gateway.limits.verdict import Ask, Verdict

__all__ = ["Ask", "Lease", "Limiter", "Refused", "Verdict"]

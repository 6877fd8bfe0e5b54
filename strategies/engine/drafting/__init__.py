"""Drafts: a group's text read ahead and then verified, several tokens in one pass. The same text, sooner.

Model. A guess says what bytes may come next: copied (`copying`), or what the fastest member says by itself (`leading`). For each member
it becomes a draft of that member's own tokens behind the place where its session stands, and one pass scores all of it (`ahead`). Then
the fuser is asked as always, piece by piece; a place that was scored is answered without a pass, and the first one that was not, or
that the fuser goes elsewhere from, takes the next pass. The fuser knows nothing of this: it is fed the same distributions in the same
order. `pace` decides how far to read ahead.

Invariants. Where scored distributions equal single steps' to the last bit (`draft_noise` 0), everything that an answer says of itself is
the same with and without drafts, but for the number of passes. Where they do not, a scored distribution is used only where the last digits
can't matter (`verdicts`), and all others come from single steps. Time decides how long drafts are, never what is said.
"""

from strategies.engine.drafting.ahead import Ahead, noise_of
from strategies.engine.drafting.copying import Copier
from strategies.engine.drafting.drafts import Drafts
from strategies.engine.drafting.leading import Leader
from strategies.engine.drafting.pace import Pace

__all__ = ["Ahead", "Copier", "Drafts", "Leader", "Pace", "noise_of"]

"""The process that compares expressions: `python -m gateway.evaluation.algebra`. A JSON pair a line in, true or false a line out."""

from __future__ import annotations

import json
import signal
import sys


def main() -> None:
    """Until its input ends."""
    from strategies.evaluation.symbolic import equal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    equal("x", "x")  # imports
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        answer, given = json.loads(line)
        sys.stdout.write(f"{json.dumps(equal(answer, given))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

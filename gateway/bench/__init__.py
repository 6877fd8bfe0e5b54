"""Measurements on this machine, for `modelnet bench`: one module per family of numbers.

    speed     models alone and groups, by turns, so that ratios inside one run are fair; how exact the groups were
    tape      a group's answer with everything its models said, recorded from real sessions and played back
    own       what our own code costs per piece of such an answer, the models left out
    memory    what this process holds
    machine   where and with which code it was measured
    report    the numbers as tables and as JSON, and beside an earlier run

Nothing here judges: wall-clock time depends on the machine and on who else uses it. Every number goes out with its raw samples.
"""

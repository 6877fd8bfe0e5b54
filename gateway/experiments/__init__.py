"""Comparing wirings on live traffic.

A *route* is a public model name; its *arms* are wirings that share its requests by weight. Which arm a request goes to is a pure
function of the route, its subject (a user, a key, a conversation …) and the weights now: no state, so that restarts, other processes
and other machines agree.

    assign       subject and weights → arm (weighted rendezvous hashing)
    route        what a route is: arms, ramps, overrides, shadow, fallbacks
    choose       a request's facts → its arm
    fallback     which causes lead to which next model
    shadow       copies of requests to a second wiring, whose answers nobody waits for
    statistics   intervals, and the probability that one arm is better
    report       the ledger's rows of a route → what can be said of its arms, and what can't
    page         the same as one HTML page
"""

from gateway.experiments.choose import Choice, Facts, choose
from gateway.experiments.route import Arm, Route

__all__ = ["Arm", "Choice", "Facts", "Route", "choose"]

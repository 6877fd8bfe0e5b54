"""Backends: each reaches one model.

A `TextBackend` streams text; a `TokenBackend` also opens token sessions, the one contract of every parallel stage
(`backends.protocol`). What crosses the border is in `backends.types`; what can go wrong is in `backends.errors`.
This room knows nothing of wirings, fusion or the OpenAI API that the gateway serves.
"""

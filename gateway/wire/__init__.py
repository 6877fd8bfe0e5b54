"""OpenAI's JSON, both ways: requests decoded by hand, answers and streams written, errors mapped. Knows no HTTP server.

Decoding is by hand because the rules are not a schema's: null equals absent, unknown fields are kept, every mistake is a 400
that names its `param` (never 422), and what can't be honoured is refused rather than dropped.
"""

"""HTTP: the hot route as plain ASGI, control routes on FastAPI, and what stands around both as pure ASGI middleware."""

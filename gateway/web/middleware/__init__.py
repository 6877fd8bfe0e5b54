"""What stands around every request, one idea per file, all of it pure ASGI. The order is in `gateway.app`."""

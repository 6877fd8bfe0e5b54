# Real clients, each in an environment of its own, kept with the weights. Included by Makefile. `make test` makes the small ones by
# itself; what can't be installed is skipped, and said.

.PHONY: clients test-clients

clients: setup ## environments of all clients that the gateway is tried with (large)
	@$(PY) tests/clients/environments.py

test-clients: clients weights ## the gateway with all of them
	MODELNET_CLIENTS=all $(BIN)/pytest tests/clients -m clients $(ARGS)

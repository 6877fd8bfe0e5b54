# Real clients, each in an environment of its own, kept with the weights. Included by Makefile. `make test` makes the small ones by
# itself; what can't be installed is skipped, and said.

CLIENTS = $(or $(MODELNET_HOME),$(HOME)/.cache/modelnet)/clients

.PHONY: clients test-clients

clients: setup ## environments of all clients that the gateway is tried with (large)
	@$(PY) tests/clients/environments.py

test-clients: clients weights ## the gateway with all of them
	MODELNET_CLIENTS=all LM_EVAL="$(CLIENTS)/lm_eval/bin/lm_eval" \
		$(BIN)/pytest tests/clients tests/e2e/test_lm_eval_guide.py $(ARGS)

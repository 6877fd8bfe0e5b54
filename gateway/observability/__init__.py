"""What the gateway says about itself: structured logs without secrets or prompts, and metrics for Prometheus."""

"""Pictures and networks: torch, numpy and nothing of the pipeline's tools."""

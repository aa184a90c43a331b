"""The vLLM side: one file per thing that talks to an engine."""

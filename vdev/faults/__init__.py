"""Fault plans: what to refuse, hold or corrupt, decided per request. Empty until fault injection is built."""

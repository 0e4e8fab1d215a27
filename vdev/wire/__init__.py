"""Bytes to records and back: one class per structure, no state, no policy. Imports only errors."""

"""The pytest plugin that runs test modules inside guests; its host half. The guest's half is in guest_tests/payload."""

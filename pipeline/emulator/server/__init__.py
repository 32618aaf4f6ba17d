"""The emulator's HTTP server: responses, streams, quotas, faults, tokens and counters."""

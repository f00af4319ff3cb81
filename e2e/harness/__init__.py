"""What the end-to-end tests stand on: stacks, clients, waits, the outside log and the oracle."""

"""What every request passes: its id, its limits, its errors, its trace in the audit log."""

"""The doctor: what is wrong with a deployment, what it means, and what to do next."""

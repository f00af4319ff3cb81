"""The tasks that the product brings itself, one module a task or a family of them."""

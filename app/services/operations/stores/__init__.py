"""The stores as the operations reach them: their files, their tables, and the state that they are in."""

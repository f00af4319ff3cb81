"""What the scheduler API and the pages ask for: jobs, runs, changes, actions, previews."""

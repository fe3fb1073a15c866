"""What a run leaves in files: a page, a timeline, rows of a table."""

"""What the report shows, gathered from checkpoints, run folders and what bench has measured."""

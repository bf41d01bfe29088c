"""Many checkpoints, one job: the tasks, who runs them, and the journal of what came of each."""

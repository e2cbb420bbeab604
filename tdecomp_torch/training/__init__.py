"""What changes while an adapter is trained: schedules, clusters, learning rates."""

"""Files: checkpoints read lazily and without pickle, outputs written all or nothing."""

"""What a run will take, worked out before it is started: memory, disk, and the arithmetic of its batches."""

"""The only place that imports deepspeed and torch.distributed."""

"""What a run would need before anything of it exists: bytes, FLOPs, seconds, GPUs and money, from shapes alone."""

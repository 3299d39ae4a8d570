"""rlkit: RL post-training for DeepSeek-V3-style models."""

__version__ = "0.1.0"

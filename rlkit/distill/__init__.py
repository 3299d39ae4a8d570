"""Datasets for distillation: a teacher answers, a reward verifies, and what is clean and right is kept."""

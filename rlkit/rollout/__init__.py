"""From prompts to judged groups, for training and for evaluation alike."""

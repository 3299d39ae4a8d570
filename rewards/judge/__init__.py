"""A language model as the judge: rubric.py asks, verdict.py reads, ballots.py counts, reward.py tells the story."""

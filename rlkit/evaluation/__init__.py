"""Evaluation of a model on suites of problems, and the comparison of evaluations."""

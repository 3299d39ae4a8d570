"""The answer is mathematics: `rewards.load("math")`. `verifier.py` is the reward; read it first, then `decide.py`."""

from __future__ import annotations

from rewards.math.verifier import MathVerifier, gold_text, verify

__all__ = ["MathVerifier", "gold_text", "verify"]

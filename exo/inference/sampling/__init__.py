"""From logits to a token: sampling parameters, the draw, and constraints on it. Knows no engine."""

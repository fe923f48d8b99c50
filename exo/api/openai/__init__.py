"""The OpenAI-compatible endpoints: request models, generation, response shapes, streams."""

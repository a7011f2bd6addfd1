"""Graders: right, wrong or missing, for each answer. By rule, by a model here, by a model elsewhere."""

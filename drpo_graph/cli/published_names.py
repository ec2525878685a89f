"""The flags of the published command line, and what they are called here."""

FLAG_BY_PUBLISHED_NAME = {
    "--base-model-name": "--base-model",
    "--metrics-model-name": "--metrics-model",
    "--eval-model-name": "--critic-model",
    "--optimize-model-name": "--optimizer-model",
    "--initial-system-prompt": "--initial-prompt",
    "--num-training-examples": "--num-queries",
    "--metrics-cache-path": "--metrics-cache",
}
"""Accepted everywhere; the help names them once."""

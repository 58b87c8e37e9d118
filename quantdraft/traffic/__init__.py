"""Prompts and responses on disk."""

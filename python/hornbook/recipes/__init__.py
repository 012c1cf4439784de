"""Preset recipes, as TOML files."""

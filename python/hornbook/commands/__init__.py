"""The commands of `hornbook`, by what they work on; `hornbook.cli` puts them together."""

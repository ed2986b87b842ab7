"""A run handed on: its rows as a table for people, its heatmaps as pictures and as objects that a PACS takes."""

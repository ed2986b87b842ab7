"""From scores to decisions: p-values against held-out normals, rules over them, and the tables they leave."""

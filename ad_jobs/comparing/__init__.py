"""Two finished runs beside each other: what they were made with, and row by row what came out."""

"""Scripts that print and store figures with the machine they ran on."""

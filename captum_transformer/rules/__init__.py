"""What each operation does in the three backward passes: gradient, relevance, token flow."""

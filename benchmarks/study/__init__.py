"""How faithful the methods are, by the papers' protocols, on real data."""

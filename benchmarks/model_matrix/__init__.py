"""The model matrix: what each method says of small random models of many families."""

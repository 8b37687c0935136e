"""What explanations cost: time and memory as multiples of a plain forward and backward pass."""

"""What an operator is: base classes, adapters, composition, noise, laws and solves."""
